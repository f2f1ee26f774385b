"""Fuses volumes slice by slice, or whole: NIfTI files, DICOM files and series.

A and the others must lie on one grid (`grids.difference`); otherwise they are refused, or the
others resampled onto A's grid where that was asked for. Series that name different frames of
reference are refused unless the user says that they are registered. All become 8-bit slices through
their windows, the last one coloured where a colour map was asked for; `inference.volumes` fuses
their slices.

The result's values are grey levels 0..255, not the units of the sources. It has A's place, see
`inference.volumes`.
"""

import dataclasses
import functools
import string
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
from dmfnet_jax.fusing.volume_results import FusedVolume, ShownSource, write_results
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
      volumes = [read_volume(path, kind) for kind, path in pair.sources]
      familiarity.check(pair.stem, volumes[0].modality, volumes[1].modality)
      result = _fuse_pair(model, pair, volumes, options, model_sha256)
      write_results(pair, result, options, alone=len(pairs) == 1)
    except (UserError, MemoryError) as error:
      failures[pair.stem] = why_failed(error, "the volumes")
      say(f"error: pair {pair.stem}: {failures[pair.stem]}")
  return failures


def _fuse_pair(
  model: Any, pair: Pair, volumes: Sequence[Volume], options: FuseOptions, model_sha256: str
) -> FusedVolume:
  a = volumes[0]
  warnings, covers = [], {}
  placed = [a]
  for letter, other in zip(string.ascii_uppercase[1:], volumes[1:], strict=False):
    warnings += _check_frames(pair, a, other, letter, options)
    other, covered = on_one_grid(a, other, options.resample, letter)
    placed.append(other)
    if covered is not None:
      say(f"pair {pair.stem}: {letter} covers {100 * covered:.3g} % of A's voxels")
      covers[f"{letter.lower()}_covers"] = round(covered, 4)
  plane = grids.find_plane(options.axis, a)
  size = grids.to_pictures(a.data, a.affine, plane).shape[:3]
  count = size[0]
  if pair.out_kind == PICTURE and count != 1:
    raise UserError(f"{pair.out}: {count} slices do not fit a picture: name a folder, with --png")

  is_finer = model.method.scale(model.config) > 1
  if pair.out_kind == DICOM and is_finer and plane != (stored := grids.find_plane(2, a)):
    raise UserError(
      f"{pair.out}: {plane} slices are enlarged, and a DICOM series here has {stored} ones: leave "
      "out --axis, or name a file in .nii.gz"
    )
  if pair.out_kind == NIFTI and (told := nifti.describe_place(a)):
    say(f"warning: {pair.out}: {told}")
  sources = _show(model, pair, placed, options)
  last, path = sources[-1], pair.sources[-1][1]
  lut = None if last.volume.is_rgb else options.volume_lut
  if last.volume.is_rgb and options.lut is not None:
    raise UserError(f"{path}: is coloured already: --lut is for scalar volumes")
  overlay = None
  if options.overlay is not None:
    lay = functools.partial(panels.overlay, alpha=options.overlay, table=options.table)
    overlay = by_plane(lay, sources[0].shown, color.drop_neutral(last.shown, 3))
  if lut is not None:
    sources[-1] = last._replace(shown=scaling.apply_lut(last.shown, options.table))
  windows = {
    letter: source.window for letter, source in zip(string.ascii_lowercase, sources, strict=False)
  }
  if any(windows.values()):
    colours = f"; colours: {lut}" if lut else ""
    say(f"pair {pair.stem}: windows: {describe_windows(windows, with_above=True)}{colours}")

  if model.method.space == 3:
    size = a.shape
    tile = model.block_size(size, options.tile)
  else:
    size = size[1:]
    tile = model.tile_size(*size, options.tile)
  if tile is not None:
    say(f"pair {pair.stem}: {tiles.describe(model.method, size, tile)}")
    options = dataclasses.replace(options, tile=tile)
  with stream.Progress(count, "slice") as progress:
    luma, rgb, std = fuse_shown(
      model,
      [source.shown for source in sources],
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
  return FusedVolume(
    sources=tuple(sources),
    overlay=overlay,
    luma=luma,
    rgb=rgb,
    std=std,
    plane=plane,
    table=None if lut is None else options.table,
    record=record | covers,
  )


def _show(
  model: Any, pair: Pair, volumes: Sequence[Volume], options: FuseOptions
) -> list[ShownSource]:
  """The sources through their windows, in the colours that are of use."""
  sources = []
  for i, (field, (_, path), volume) in enumerate(
    zip(model.method.sources, pair.sources, volumes, strict=True)
  ):
    shown, window = show(path, volume, options.windows.get(string.ascii_lowercase[i]))
    if volume.is_rgb and field.drops_colour:
      say(f"warning: {path}: is coloured: only the luma is used")
      shown = by_plane(color.rgb_to_luma, shown)
    if not shown.any():
      say(f"warning: {path}: {BLACK}")
    sources.append(ShownSource(volume, shown, window))
  return sources


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


def _check_frames(pair: Pair, a: Volume, b: Volume, letter: str, options: FuseOptions) -> list[str]:
  """Returns what the record is to say of different frames of reference that the user allows."""
  apart = grids.other_frame(a, b, letter)
  if not apart:
    return []
  if not options.same_frame:
    raise UserError(f"{apart}: add --same-frame if {letter} is registered to A all the same")
  say(f"warning: pair {pair.stem}: {apart}")
  return [apart]


def on_one_grid(
  a: Volume, b: Volume, resample: bool, letter: str = "B"
) -> tuple[Volume, float | None]:
  """Returns B on A's grid, and where it was resampled as asked for, how much of A it covers.

  `letter` is what B is called.

  Raises:
    UserError: they lie on different grids, and `resample` is false.
  """
  apart = grids.difference(a, b)
  if not apart:
    # Voxel by voxel from here on, also where one of them does not know its place.
    return dataclasses.replace(b, affine=a.affine, placed=a.placed), None
  if resample:
    return grids.resample(b, a, letter), grids.covered_share(a, b)
  if grids.is_uneven(a) or grids.is_uneven(b):
    advice = grids.uneven_advice(a, b, letter)
    raise UserError(f"A and {letter} lie on different grids: {apart}: {advice}")
  raise UserError(
    f"A and {letter} lie on different grids: {apart}: add --resample to put {letter} on A's grid, "
    f"once {letter} is registered to A"
  )
