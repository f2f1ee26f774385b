"""The two pictures of a pair and its results, from and to files."""

import dataclasses
from typing import Any

import numpy as np

from dmfnet_jax.data import color, images, panels, scaling
from dmfnet_jax.data.scaling import Window
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.options import (
  FuseOptions,
  UsedWindow,
  make_record,
  percentiles,
  write_record,
)
from dmfnet_jax.inference.pairs import Pair


@dataclasses.dataclass(frozen=True)
class LoadedPair:
  """The two pictures of a pair: uint8 [H, W], and [H, W] or [H, W, 3] with its luma [H, W].

  The windows are None where a picture is shown as stored.
  """

  pair: Pair
  a: np.ndarray
  b: np.ndarray
  luma_b: np.ndarray
  a_had_colour: bool
  window_a: UsedWindow | None = None
  window_b: UsedWindow | None = None


def load_pair(pair: Pair, options: FuseOptions) -> LoadedPair:
  """Reads the pictures of a pair and applies windows and the colour map where asked to.

  Raises:
    UserError: a file cannot be read, the sizes differ, or an option does not fit a picture.
  """
  a, window_a = _read(pair.a, options.window_a)
  b, window_b = _read(pair.b, options.window_b)
  if a.shape[:2] != b.shape[:2]:
    size_a, size_b = (f"{x.shape[1]} x {x.shape[0]}" for x in (a, b))
    raise UserError(f"A is {size_a} and B {size_b} pixels (width x height): register B to A first")
  # Grey pictures are often stored with three equal channels: nothing is lost there.
  a_had_colour = a.ndim == 3 and not _is_neutral(a)
  a = color.to_grey(a)
  if options.table is not None:
    if b.ndim == 3 and not _is_neutral(b):
      raise UserError(f"{pair.b}: is coloured already: --lut is for grey pictures")
    b = scaling.apply_lut(b if b.ndim == 2 else b[..., 0], options.table)
  return LoadedPair(pair, a, b, color.to_grey(b), a_had_colour, window_a, window_b)


def write_pair(
  loaded: LoadedPair,
  fused: np.ndarray,
  std: np.ndarray | None,
  options: FuseOptions,
  model_sha256: str | None,
) -> None:
  """Writes the results of a pair, in B's colour where it has some.

  Args:
    loaded: the pair.
    fused: uint8 [H, W], the fused luma.
    std: float32 [H, W] in grey levels, where there are several samples.
    options: of the run.
    model_sha256: the model's fingerprint, for the record.

  Raises:
    UserError: a file cannot be written.
  """
  pair = loaded.pair
  if loaded.b.ndim == 3:
    fused = color.replace_luma(loaded.b, fused)
  if std is not None:
    images.write_image(pair.out_std, std)
    picture = panels.deviation_map(fused, std, samples=options.samples or 1)
    images.write_image(pair.out_map, picture)
  if options.scales:
    record = make_record(
      options,
      name=pair.stem,
      window_a=loaded.window_a,
      window_b=loaded.window_b,
      lut=options.lut,
      table=options.table,
      model_sha256=model_sha256,
    )
    write_record(pair.out_record, record)
  # The picture last: where it stands, all of the pair's results stand.
  images.write_image(pair.out, fused)


def _read(path: Any, window: Window | str | None) -> tuple[np.ndarray, UsedWindow | None]:
  """Reads a picture as stored, or through a window: uint8."""
  if window is None:
    return images.read_image(path), None
  values = images.read_values(path)
  if values.ndim == 3:
    if not _is_neutral(values):
      raise UserError(f"{path}: is coloured: a window is for grey pictures")
    values = values[..., 0]
  try:
    used = percentiles(values) if isinstance(window, str) else UsedWindow(window, "given")
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  return scaling.to_uint8(values, used.window), used


def _is_neutral(picture: np.ndarray) -> bool:
  return bool((picture == picture[..., :1]).all())
