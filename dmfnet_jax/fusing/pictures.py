"""The pictures of a pair and its results, from and to files."""

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.fusing.record import describe_windows, make_record, write_record
from dmfnet_jax.inference import tiles
from dmfnet_jax.io import color, panels, pictures, scaling
from dmfnet_jax.io.windows import Asked, UsedWindow, choose_window

BLACK = "is black everywhere as it is shown: the result has nothing of it"


@dataclasses.dataclass(frozen=True)
class LoadedPair:
  """The pictures of a pair.

  Attributes:
    pair: their paths.
    sources: uint8 [H, W] each, or [H, W, 3] where the model takes its colours.
    overlay: uint8 [H, W, 3], the last source laid over A, where that was asked for.
    tile: the side of the tiles in which the pair is fused; None: whole.
    record: to be written beside the result; None where nothing was scaled or coloured.
    remarks: what to tell, by what is not to be told twice.
  """

  pair: Pair
  sources: tuple[np.ndarray, ...]
  overlay: np.ndarray | None
  tile: int | None
  record: Mapping[str, Any] | None
  remarks: Mapping[str, str]


def load_pair(pair: Pair, options: FuseOptions, model_sha256: str, model: Any) -> LoadedPair:
  """Reads the pictures of a pair and applies windows and the colour map where asked to.

  The `model` says whether it is to be fused in tiles, and whose colours are of use.

  Raises:
    UserError: a file cannot be read, the sizes differ, or an option does not fit a picture.
  """
  shown, windows = [], {}
  for letter, (_, path) in zip(string.ascii_lowercase, pair.sources, strict=False):
    picture, windows[letter] = _read(path, options.windows.get(letter))
    shown.append(picture)
  a = shown[0]
  for letter, other in zip(string.ascii_uppercase, shown, strict=False):
    if other.shape[:2] != a.shape[:2]:
      size_a, size = (f"{x.shape[1]} x {x.shape[0]}" for x in (a, other))
      told = f"A is {size_a} and {letter} {size} pixels (width x height)"
      raise UserError(f"{told}: register {letter} to A first")
  remarks = {}
  for i, (field, (_, path)) in enumerate(zip(model.method.sources, pair.sources, strict=True)):
    if shown[i].ndim == 3 and field.drops_colour:
      letter = string.ascii_uppercase[i]
      # Grey pictures are often stored with three equal channels: nothing is lost there.
      if not color.is_neutral(shown[i]):
        remarks[f"colour of {letter}"] = (
          f"warning: {path} is coloured: of {letter} only the luma is used"
        )
      shown[i] = color.to_grey(shown[i])
  last, path = shown[-1], pair.sources[-1][1]
  overlay = None
  if options.overlay is not None:
    overlay = panels.overlay(a, color.drop_neutral(last), options.overlay, table=options.table)
  if options.lut is not None:
    if last.ndim == 3 and not color.is_neutral(last):
      raise UserError(f"{path}: is coloured already: --lut is for grey pictures")
    shown[-1] = scaling.apply_lut(last if last.ndim == 2 else last[..., 0], options.table)
  for (_, path), picture in zip(pair.sources, shown, strict=True):
    if not picture.any():
      remarks[f"black {path}"] = f"warning: {path}: {BLACK}"
  tile = model.tile_size(*a.shape[:2], options.tile)
  if tile is not None:
    told = tiles.describe(model.method, a.shape[:2], tile)
    remarks[told] = f"pair {pair.stem}: {told}"
    options = dataclasses.replace(options, tile=tile)
  if told := describe_windows(windows):
    remarks[told] = f"pair {pair.stem}: windows: {told}"
  record = None
  if told or options.lut is not None:
    record = make_record(options, pair.stem, model_sha256, windows, options.lut)
  return LoadedPair(pair, tuple(shown), overlay, tile, record, remarks)


def write_pair(
  loaded: LoadedPair, fused: np.ndarray, deviation: np.ndarray | None, samples: int | None
) -> None:
  """Writes the results of a pair.

  Args:
    loaded: the pair.
    fused: uint8 [H, W], or [H, W, 3] where B has colour.
    deviation: float32 [H, W] of the luma in grey levels, where there are several samples.
    samples: how many.

  Raises:
    UserError: a file cannot be written.
  """
  pair = loaded.pair
  if deviation is not None:
    pictures.write_image(pair.out_std, deviation)
    drawn = panels.deviation_map(fused, deviation, samples=samples or 1)
    pictures.write_image(pair.beside("_std.png"), drawn)
  if loaded.overlay is not None:
    pictures.write_image(pair.out_overlay, loaded.overlay)
  if loaded.record is not None:
    write_record(pair.out_record, loaded.record)
  # The picture last: where it stands, all of the pair's results stand.
  pictures.write_image(pair.out, fused)


def _read(path: Any, window: Asked) -> tuple[np.ndarray, UsedWindow | None]:
  """Reads a picture as stored, or through a window: uint8."""
  if window is None:
    return pictures.read_image(path), None
  values = pictures.read_values(path)
  if values.ndim == 3:
    if not color.is_neutral(values):
      raise UserError(f"{path}: is coloured: a window is for grey pictures")
    values = values[..., 0]
  used = choose_window(values, path, window)
  return scaling.to_uint8(values, used.window), used
