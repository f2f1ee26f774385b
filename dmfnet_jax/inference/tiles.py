"""Large pictures in overlapping tiles: where these lie, and how they become one picture again.

Neighbours overlap by a quarter of a tile. The outermost quarter of an overlap is dropped from each
of them, for a network sees the padding there; over the middle half one fades into the other by a
raised cosine. The weights of all tiles add up to 1 at every pixel. Tiles begin at multiples of the
method's stride, so that networks halve them on the grid on which they halve the whole picture.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dmfnet_jax import methods
from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.method import WINDOW, Method

TILE = 1024
"""Side of the tiles of what does not fit the memory; no smaller picture is cut for that."""

_LEAST_TILE = 32  # less would be hardly more than overlap
_LEAST_TILE_IN_STRIDES = 8
_OVERLAP = 4  # so many overlaps are a tile
_DROPPED = 4  # so many dropped margins are an overlap


class Tile(NamedTuple):
  """A tile of a picture.

  Attributes:
    corner: its first row and column.
    size: its height and width within the picture, beyond whose end the last ones reach.
    full: its height and width with what it must be padded to.
    weights: of its rows [height] and of its columns [width], float32.
  """

  corner: tuple[int, int]
  size: tuple[int, int]
  full: tuple[int, int]
  weights: tuple[np.ndarray, np.ndarray]

  def take(self, source: Mapping[str, np.ndarray], whole: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Its views of a picture's sources [H, W, C], vectors, and its `WINDOW` in the `whole`."""
    window = self._slices(1)
    taken = {name: x if x.ndim == 1 else x[window] for name, x in source.items()}
    return taken | {WINDOW: np.array([*self.corner, *whole], np.int32)}

  def add(
    self,
    result: dict[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    size: tuple[int, ...],
    scale: int,
  ) -> None:
    """Adds its outputs, padded as it was, to those of the whole picture, by its weights.

    Args:
      result: where they are added; {} before the first tile.
      outputs: pictures [scale * h, scale * w, C].
      size: of the picture.
      scale: of the method.
    """
    rows, columns = (np.repeat(weights, scale) for weights in self.weights)
    for name, value in outputs.items():
      if name not in result:
        shape = (*(scale * side for side in size), value.shape[-1])
        result[name] = np.zeros(shape, np.float32)
      part = value[: len(rows), : len(columns)]
      result[name][self._slices(scale)] += rows[:, None, None] * columns[:, None] * part

  def _slices(self, scale: int) -> tuple[slice, ...]:
    ends = zip(self.corner, self.size, strict=True)
    return tuple(slice(scale * start, scale * (start + length)) for start, length in ends)


class Piece(NamedTuple):
  """What is computed as one example: an example, or a tile of it.

  Attributes:
    example: the example's number.
    source: pictures [H, W, C] and vectors.
    padded: to which size the pictures are padded.
    tile: which tile it is; None for all of it.
  """

  example: int
  source: Mapping[str, np.ndarray]
  padded: tuple[int, ...]
  tile: Tile | None = None


def choose_side(
  name: str, stride: int, padded: tuple[int, ...], tile: int | str, fits: Callable[[], bool]
) -> int | None:
  """The side of the tiles of a picture; None: it is to be computed whole.

  Args:
    name: of the method.
    stride: of the method.
    padded: the picture's padded size.
    tile: the side; "auto": `TILE` for a picture that does not fit; "off".
    fits: whether the picture fits the memory, by estimate.

  Raises:
    UserError: a side too small for the method, or a method that has no tiles.
  """
  has_tiles = methods.in_tiles(methods.get(name)) != "no" and len(padded) == 2
  if tile == "off" or (tile == "auto" and not has_tiles):
    return None
  if tile == "auto":
    return None if math.prod(padded) <= TILE**2 or fits() else TILE
  least = max(_LEAST_TILE, _LEAST_TILE_IN_STRIDES * stride)
  if not isinstance(tile, int) or tile < least:
    raise UserError(f"tile is {tile!r}: give auto, off or a side from {least} pixels on")
  if not has_tiles:
    raise UserError(f"{name} has no tiles: it must see all of a picture")
  return tile


def plan(size: tuple[int, ...], side: int, stride: int) -> list[Tile]:
  """Lays tiles over a picture, row by row.

  Args:
    size: the picture's height and width.
    side: of the tiles, a multiple of `stride`; where a picture is narrower, they are, too.
    stride: of the method.
  """
  rows, columns = (_along(length, side, stride) for length in size)
  return [
    Tile((y, x), (len(wy), len(wx)), (full_y, full_x), (wy, wx))
    for y, full_y, wy in rows
    for x, full_x, wx in columns
  ]


def describe(method: Method, size: tuple[int, ...], side: int) -> str:
  """Says in a line that pictures of a size are fused in tiles, and what that means."""
  told = f"{' x '.join(map(str, size))} pixels (height x width): fused in tiles of {side}"
  close = ", which is close to fusing the whole picture but not the same"
  return told + close * (methods.in_tiles(method) == "close")


def _along(length: int, side: int, stride: int) -> list[tuple[int, int, np.ndarray]]:
  """The start, full length and weights of the tiles along one axis."""
  covered = -(-length // stride) * stride
  if covered <= side:
    return [(0, covered, np.ones(length, np.float32))]
  shared = max(side // _OVERLAP, stride)
  count = math.ceil((covered - shared) / (side - shared))
  starts = [(covered - side) * i // (count - 1) // stride * stride for i in range(count)]
  fades = np.zeros((count, length))
  for i, start in enumerate(starts):
    inside = np.arange(start, min(start + side, length))
    before, after = inside - start + 0.5, start + side - inside - 0.5
    fade = np.ones(len(inside))
    for distance, is_inner in ((before, i > 0), (after, i < count - 1)):
      if is_inner:
        fade *= _fade(distance, shared)
    fades[i, inside] = fade
  fades /= fades.sum(0)
  return [
    (start, side, fades[i, start : start + side].astype(np.float32))
    for i, start in enumerate(starts)
  ]


def _fade(distance: np.ndarray, shared: int) -> np.ndarray:
  """How much a tile counts at a distance from its edge, in 0..1."""
  dropped = shared / _DROPPED
  return 0.5 - 0.5 * np.cos(np.pi * np.clip((distance - dropped) / (shared - 2 * dropped), 0, 1))
