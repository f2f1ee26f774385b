"""Two volumes and what they were fused to, as the pictures that the network saw and gave."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.montage import choose_filled
from dmfnet_jax.fusing.record import colours_sha256, describe_windows, read_record
from dmfnet_jax.fusing.volumes import read_volume
from dmfnet_jax.inference.volumes import by_plane, show
from dmfnet_jax.io import color, grids, scaling
from dmfnet_jax.io.grids import Volume
from dmfnet_jax.messages import say


class Slices(NamedTuple):
  """The slices of a pair that show something.

  Attributes:
    names: such as "axial_034", as fusing names pictures of them; N of them.
    a: uint8 [N, H, W], A through its window.
    b: uint8 [N, H, W], or [N, H, W, 3] where B is coloured.
    fused: uint8 [N, H, W], the luma.
    pixel: (height, width) of a pixel in mm.
    total: how many slices the volume has.
    note: the windows in words.
  """

  names: list[str]
  a: np.ndarray
  b: np.ndarray
  fused: np.ndarray
  pixel: tuple[float, float]
  total: int
  note: str


def read_slices(pair: Pair, *, tell: Callable[[str], None] = say) -> Slices:
  """Reads a pair of volumes with its result, and shows A and B as they were fused.

  Windows, colours, plane and whether B was put on A's grid are those of the record that fusing
  leaves beside its result. Without one they are the defaults, which is told.

  Args:
    pair: of volumes; `out` is the fused one.
    tell: takes what is to be known of the files, a line each.

  Raises:
    UserError: a file cannot be read, or the three do not fit together.
  """
  record = read_record(pair)
  if not record:
    tell(f"warning: {pair.out}: no {pair.out_record.name} beside it: A and B in default windows")
  kinds = (pair.kind_a, pair.kind_b, pair.out_kind)
  places = zip((pair.a, pair.b, pair.out), kinds, strict=True)
  a, b, fused = (read_volume(path, kind, tell) for path, kind in places)
  if apart := grids.difference(a, b):
    if not record.get("resample"):
      raise UserError(f"A and B lie on different grids: {apart}")
    b = grids.resample(b, a)
  if apart := grids.difference(a, fused):
    raise UserError(f"{pair.out}: lies on another grid than A: {apart}")
  grey_a, window_a = show(pair.a, a, _window(record, "a"))
  shown_b, window_b = show(pair.b, b, _window(record, "b"))
  if a.is_rgb:
    grey_a = by_plane(color.rgb_to_luma, grey_a)
  if (lut := record.get("lut")) is not None and not b.is_rgb:
    table = scaling.read_lut(lut)
    if colours_sha256(table) != record.get("lut_sha256"):
      raise UserError(f"{lut}: is not the colour map any more that {pair.out} was made with")
    shown_b = scaling.apply_lut(shown_b, table)
  plane = grids.find_plane(record.get("axis"), a)
  in_a, in_b, in_fused = (
    grids.to_pictures(data, a.affine, plane) for data in (grey_a, shown_b, luma_of(pair.out, fused))
  )
  filled = choose_filled(in_a, in_b)
  return Slices(
    names=[f"{plane}_{i:03d}" for i in filled],
    a=in_a[filled],
    b=in_b[filled],
    fused=in_fused[filled],
    pixel=grids.pixel_size(a, plane),
    total=len(in_a),
    note=describe_windows({"a": window_a, "b": window_b}),
  )


def _window(record: Mapping[str, Any], letter: str) -> tuple[float, float] | None:
  ends = record.get(f"window_{letter}")
  return None if ends is None else (ends[0], ends[1])


def luma_of(path: Any, fused: Volume) -> np.ndarray:
  """The grey levels of a fused volume, uint8 [I, J, K]."""
  if fused.is_rgb:
    return by_plane(color.rgb_to_luma, fused.data)
  levels = np.rint(fused.data)
  low, high = float(fused.data.min()), float(fused.data.max())
  if low < 0 or high > 255 or not (levels == fused.data).all():
    raise UserError(
      f"{path}: is no fused volume: it holds {low:g} to {high:g} and not whole grey levels 0 to 255"
    )
  return levels.astype(np.uint8)
