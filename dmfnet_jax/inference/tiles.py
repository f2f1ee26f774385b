"""Large pictures in overlapping tiles: where these lie, and how they become one picture again.

Volumes are computed in blocks in the same way; a tile is one here.

Neighbours overlap by a quarter of a tile. The outermost quarter of an overlap is dropped from each
of them, for a network sees the padding there; over the middle half one fades into the other by a
raised cosine. The weights of all tiles add up to 1 at every pixel. Tiles begin at multiples of the
method's stride, so that networks halve them on the grid on which they halve the whole picture.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dmfnet_jax import methods
from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.method import WINDOW, Method

TILE = 1024
"""Side of the tiles of what does not fit the memory; no smaller picture is cut for that."""

BLOCK = 128
"""Side of the blocks of volumes that do not fit."""

_LEAST_TILE = 32  # less would be hardly more than overlap
_LEAST_TILE_IN_STEPS = 8
_OVERLAP = 4  # so many overlaps are a tile
_DROPPED = 4  # so many dropped margins are an overlap


class Tile(NamedTuple):
  """A tile of a picture.

  Attributes:
    corner: its first row and column; of a volume of each axis.
    size: its height and width within the picture, beyond whose end the last ones reach.
    full: its height and width with what it must be padded to.
    weights: of its rows [height] and of its columns [width], float32.
  """

  corner: tuple[int, ...]
  size: tuple[int, ...]
  full: tuple[int, ...]
  weights: tuple[np.ndarray, ...]

  def take(self, source: Mapping[str, np.ndarray], whole: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Its views of a picture's sources [*space, C], vectors, and its `WINDOW` in the `whole`."""
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
      outputs: pictures [*(scale * size), C].
      size: of the picture.
      scale: of the method.
    """
    along = [np.repeat(weights, scale) for weights in self.weights]
    weights = functools.reduce(np.multiply.outer, along)[..., None]
    for name, value in outputs.items():
      if name not in result:
        shape = (*(scale * side for side in size), value.shape[-1])
        result[name] = np.zeros(shape, np.float32)
      part = value[tuple(slice(len(of_axis)) for of_axis in along)]
      result[name][self._slices(scale)] += weights * part

  def _slices(self, scale: int) -> tuple[slice, ...]:
    ends = zip(self.corner, self.size, strict=True)
    return tuple(slice(scale * start, scale * (start + length)) for start, length in ends)


class Piece(NamedTuple):
  """What is computed as one example: an example, or a tile of it.

  Attributes:
    example: the example's number.
    source: pictures [*space, C] and vectors.
    padded: to which size the pictures are padded.
    tile: which tile it is; None for all of it.
  """

  example: int
  source: Mapping[str, np.ndarray]
  padded: tuple[int, ...]
  tile: Tile | None = None


def choose_side(
  name: str, step: int, padded: tuple[int, ...], tile: int | str, fits: Callable[[], bool]
) -> int | None:
  """The side of the tiles of a picture; None: it is to be computed whole.

  Args:
    name: of the method.
    step: what the method's tiles begin at multiples of.
    padded: the picture's padded size.
    tile: the side; "auto": `TILE`, or `BLOCK`, for a picture that does not fit; "off".
    fits: whether the picture fits the memory, by estimate.

  Raises:
    UserError: a side too small for the method, or a method that has no tiles.
  """
  has_tiles = methods.in_tiles(methods.get(name)) != "no"
  default = TILE if len(padded) == 2 else BLOCK
  if tile == "off" or (tile == "auto" and not has_tiles):
    return None
  if tile == "auto":
    return None if math.prod(padded) <= default ** len(padded) or fits() else default
  least = max(_LEAST_TILE, _LEAST_TILE_IN_STEPS * step)
  if not isinstance(tile, int) or tile < least:
    raise UserError(f"tile is {tile!r}: give auto, off or a side from {least} pixels on")
  if not has_tiles:
    raise UserError(f"{name} has no tiles: it must see all of a picture")
  return tile


def plan(size: tuple[int, ...], side: int, step: int) -> list[Tile]:
  """Lays tiles over a picture, row by row.

  Args:
    size: the picture's height and width, or a volume's sides.
    side: of the tiles, a multiple of `step`; where a picture is narrower, they are, too.
    step: what they begin at multiples of.
  """
  of_axes = itertools.product(*(_along(length, side, step) for length in size))
  tiles = []
  for along in of_axes:
    corner, full, weights = zip(*along, strict=True)
    tiles.append(Tile(corner, tuple(map(len, weights)), full, weights))
  return tiles


def describe(method: Method, size: tuple[int, ...], side: int) -> str:
  """Says in a line that pictures of a size are fused in tiles, and what that means."""
  sides, whole = " x ".join(map(str, size)), "picture" if len(size) == 2 else "volume"
  told = f"{sides} pixels (height x width): fused in tiles of {side}"
  if len(size) == 3:
    told = f"{sides} voxels: fused in blocks of {side}"
  close = f", which is close to fusing the whole {whole} but not the same"
  return told + close * (methods.in_tiles(method) == "close")


def _along(length: int, side: int, step: int) -> list[tuple[int, int, np.ndarray]]:
  """The start, full length and weights of the tiles along one axis."""
  covered = -(-length // step) * step
  if covered <= side:
    return [(0, covered, np.ones(length, np.float32))]
  shared = max(side // _OVERLAP, step)
  count = math.ceil((covered - shared) / (side - shared))
  starts = [(covered - side) * i // (count - 1) // step * step for i in range(count)]
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
