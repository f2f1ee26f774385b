"""Fuses volumes slice by slice, or whole: NIfTI files, DICOM files and series.

A and B must lie on one grid (`grids.difference`); otherwise the pair is refused, or B resampled
onto A's grid where that was asked for. Series that name different frames of reference are refused
unless the user says that they are registered. Both become 8-bit slices through their windows, B
coloured where a colour map was asked for; `inference.volumes` fuses their slices.

The result's values are grey levels 0..255, not the units of A and B. It has A's grid and place.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from dmfnet_jax.errors import UserError, why_failed
from dmfnet_jax.fusing import stream
from dmfnet_jax.fusing.familiar import Familiarity
from dmfnet_jax.fusing.kinds import DICOM, NIFTI, PICTURE
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.fusing.pictures import BLACK
from dmfnet_jax.fusing.record import describe_windows, make_record
from dmfnet_jax.fusing.volume_results import FusedVolume, write_results
from dmfnet_jax.inference import tiles
from dmfnet_jax.inference.volumes import by_plane, fuse_shown, show
from dmfnet_jax.io import color, grids, nifti, other_volumes, panels, scaling
from dmfnet_jax.io.grids import Volume
from dmfnet_jax.messages import say


def fuse_volumes(
  model: Any,
  pairs: Sequence[Pair],
  options: FuseOptions,
  model_sha256: str,
  familiarity: Familiarity,
) -> dict[str, str]:
  """Fuses pairs of volumes, one after the other, and writes their results.

  Args:
    model: a `Model`, or what fuses like one.
    pairs: the pairs.
    options: of the run.
    model_sha256: the model's fingerprint, for the records.
    familiarity: with what the model was trained on.

  Returns:
    The reasons of the pairs that failed, by name; each was told.
  """
  failures = {}
  for pair in pairs:
    try:
      a, b = read_volume(pair.a, pair.kind_a), read_volume(pair.b, pair.kind_b)
      familiarity.check(pair.stem, a.modality, b.modality)
      result = _fuse_pair(model, pair, a, b, options, model_sha256)
      write_results(pair, result, options, alone=len(pairs) == 1)
    except (UserError, MemoryError) as error:
      failures[pair.stem] = why_failed(error, "the volumes")
      say(f"error: pair {pair.stem}: {failures[pair.stem]}")
  return failures


def _fuse_pair(
  model: Any, pair: Pair, a: Volume, b: Volume, options: FuseOptions, model_sha256: str
) -> FusedVolume:
  warnings = _check_frames(pair, a, b, options)
  b, covered = on_one_grid(a, b, options.resample)
  if covered is not None:
    say(f"pair {pair.stem}: B covers {100 * covered:.3g} % of A's voxels")
  plane = grids.find_plane(options.axis, a)
  count = len(grids.to_pictures(a.data, a.affine, plane))
  if pair.out_kind == PICTURE and count != 1:
    raise UserError(f"{pair.out}: {count} slices do not fit a picture: name a folder, with --png")

  if pair.out_kind == NIFTI and (told := nifti.describe_place(a)):
    say(f"warning: {pair.out}: {told}")
  grey_a, window_a = show(pair.a, a, options.windows["a"])
  if a.is_rgb:
    say(f"warning: {pair.a}: is coloured: only the luma is used")
    grey_a = by_plane(color.rgb_to_luma, grey_a)
  shown_b, window_b = show(pair.b, b, options.windows["b"])
  if b.is_rgb and not any(field.gives_colour for field in model.method.sources):
    say(f"warning: {pair.b}: is coloured: only the luma is used")
  lut = None if b.is_rgb else options.volume_lut
  if b.is_rgb and options.lut is not None:
    raise UserError(f"{pair.b}: is coloured already: --lut is for scalar volumes")
  for path, shown in ((pair.a, grey_a), (pair.b, shown_b)):
    if not shown.any():
      say(f"warning: {path}: {BLACK}")
  overlay = None
  if options.overlay is not None:
    lay = functools.partial(panels.overlay, alpha=options.overlay, table=options.table)
    overlay = by_plane(lay, grey_a, color.drop_neutral(shown_b, 3))
  if lut is not None:
    shown_b = scaling.apply_lut(shown_b, options.table)
  windows = {"a": window_a, "b": window_b}
  if any(windows.values()):
    colours = f"; colours: {lut}" if lut else ""
    say(f"pair {pair.stem}: windows: {describe_windows(windows, with_above=True)}{colours}")

  if model.method.space == 3:
    size = a.data.shape[:3]
    tile = model.block_size(size, options.tile)
  else:
    size = grids.to_pictures(a.data, a.affine, plane).shape[1:3]
    tile = model.tile_size(*size, options.tile)
  if tile is not None:
    say(f"pair {pair.stem}: {tiles.describe(model.method, size, tile)}")
    options = dataclasses.replace(options, tile=tile)
  with stream.Progress(count, "slice") as progress:
    luma, rgb, std = fuse_shown(
      model,
      grey_a,
      shown_b,
      a.affine,
      plane,
      pair.stem,
      seed=options.seed,
      samples=options.samples,
      batch_size=options.batch_size,
      on_done=progress.done,
      tile=tile or "off",
      emphasis=options.emphasis,
    )
  record = make_record(options, pair.stem, model_sha256, windows, lut, plane, a.shape, warnings)
  if covered is not None:
    record["b_covers"] = round(covered, 4)
  return FusedVolume(
    a=a,
    b=b,
    grey_a=grey_a,
    shown_b=shown_b,
    overlay=overlay,
    luma=luma,
    rgb=rgb,
    std=std,
    plane=plane,
    windows=windows,
    table=None if lut is None else options.table,
    record=record,
  )


def read_volume(path: Any, kind: str, tell: Callable[[str], None] = say) -> Volume:
  """Reads a volume of a kind of `kinds`; `tell` takes what is to be known of it, a line each."""
  if kind == DICOM:
    from dmfnet_jax.io.dicom import read_dicom  # it loads pydicom

    volume = read_dicom(path)
  else:
    volume = (
      other_volumes.read_other(path) if other_volumes.is_other(path) else nifti.read_nifti(path)
    )
  if volume.unit_from:
    tell(f"{path}: {volume.unit_from}")
  for note in volume.notes:
    tell(f"warning: {path}: {note}")
  return volume


def _check_frames(pair: Pair, a: Volume, b: Volume, options: FuseOptions) -> list[str]:
  """Returns what the record is to say of different frames of reference that the user allows."""
  apart = grids.other_frame(a, b)
  if not apart:
    return []
  if not options.same_frame:
    raise UserError(f"{apart}: add --same-frame if B is registered to A all the same")
  say(f"warning: pair {pair.stem}: {apart}")
  return [apart]


def on_one_grid(a: Volume, b: Volume, resample: bool) -> tuple[Volume, float | None]:
  """Returns B on A's grid, and where it was resampled as asked for, how much of A it covers.

  Raises:
    UserError: they lie on different grids, and `resample` is false.
  """
  apart = grids.difference(a, b)
  if not apart:
    # Voxel by voxel from here on, also where one of them does not know its place.
    return dataclasses.replace(b, affine=a.affine, placed=a.placed), None
  if resample:
    return grids.resample(b, a), grids.covered_share(a, b)
  if grids.is_uneven(a) or grids.is_uneven(b):
    raise UserError(f"A and B lie on different grids: {apart}: {grids.uneven_advice(a, b)}")
  raise UserError(
    f"A and B lie on different grids: {apart}: add --resample to put B on A's grid, once B is "
    "registered to A"
  )
