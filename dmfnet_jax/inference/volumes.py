"""Fuses volumes slice by slice: NIfTI files, DICOM files and series.

A and B must lie on one grid (`grids.difference`); otherwise the pair is refused, or B resampled
onto A's grid where that was asked for. Both become 8-bit slices through their windows, B coloured
where a colour map was asked for; the network fuses their luma, and B's chroma goes back where the
result is to be coloured. The noise of a slice is drawn from (seed, "STEM/plane/index"), so a slice
does not depend on the others nor on the batch. A slice that is black in both sources stays black
without being fused.

The result's values are grey levels 0..255, not the sources' units. It has A's grid and place.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dmfnet_jax.data import color, grids, nifti, scaling
from dmfnet_jax.data.grids import Volume
from dmfnet_jax.data.scaling import Window
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.batches import is_out_of_memory, pairs_at_once
from dmfnet_jax.inference.options import (
  FuseOptions,
  UsedWindow,
  make_record,
  percentiles,
)
from dmfnet_jax.inference.pairs import Pair
from dmfnet_jax.inference.sources import DICOM, PICTURE
from dmfnet_jax.inference.volume_results import FusedVolume, write_results
from dmfnet_jax.messages import say

_BATCHES_PER_CALL = 4


def fuse_volumes(
  model: Any, pairs: Sequence[Pair], options: FuseOptions, model_sha256: str | None
) -> int:
  """Fuses pairs of volumes, one after the other, and writes their results.

  Args:
    model: a `DMFNet`, or what fuses like one.
    pairs: the pairs.
    options: of the run; see `fuse_files`.
    model_sha256: the model's fingerprint, for the records.

  Returns:
    How many pairs failed; each was named with its reason.
  """
  failed = 0
  for pair in pairs:
    try:
      _fuse_pair(model, pair, options, model_sha256, alone=len(pairs) == 1)
    except UserError as error:
      failed += 1
      say(f"error: pair {pair.stem}: {error}")
    except MemoryError:
      failed += 1
      say(f"error: pair {pair.stem}: the volumes do not fit the memory")
  return failed


def read_volume(path: Any, kind: str) -> Volume:
  """Reads a NIfTI file, or a DICOM file or series.

  Raises:
    UserError: it cannot be read, or is not one volume.
  """
  if kind != DICOM:
    return nifti.read_nifti(path)
  from dmfnet_jax.data.dicom import read_dicom

  series = read_dicom(path)
  # NIfTI's order of axes: columns, rows, slices.
  data = series.data.swapaxes(0, 2)
  affine = None if series.affine is None else series.affine[:, [2, 1, 0, 3]]
  notes = [f"{file.name} is left out: {reason}" for file, reason in series.skipped] + series.notes
  return Volume(
    data=data.astype(np.uint8) if series.is_rgb else data,
    affine=grids.UNPLACED if affine is None else affine,
    placed=affine is not None,
    window=series.window,
    unit="" if series.is_rgb else series.unit,
    source=series,
    notes=tuple(notes),
  )


def _fuse_pair(
  model: Any, pair: Pair, options: FuseOptions, model_sha256: str | None, *, alone: bool
) -> None:
  a, b = _read(pair.a, pair.kind_a), _read(pair.b, pair.kind_b)
  b = _on_one_grid(a, b, options.resample)
  plane = _plane(options.axis, a)
  if pair.out_kind == PICTURE and a.shape[_array_axis(a, plane)] != 1:
    count = a.shape[_array_axis(a, plane)]
    raise UserError(f"{pair.out}: {count} slices do not fit a picture: name a folder, with --png")

  grey_a, window_a = _as_grey(a, options.window_a, pair.a)
  table, lut = options.volume_table, options.volume_lut
  if b.is_rgb:
    if options.window_b is not None or options.lut is not None:
      raise UserError(f"{pair.b}: is coloured already: --window-b and --lut are for scalar volumes")
    coloured_b, window_b, table, lut = b.data, None, None, None
    grey_b = _by_plane(color.rgb_to_luma, coloured_b)
  else:
    grey_b, window_b = _as_grey(b, options.window_b, pair.b)
    coloured_b = None
    if table is not None:
      coloured_b = scaling.apply_lut(grey_b, table)
      grey_b = _by_plane(color.rgb_to_luma, coloured_b)
  windows = {"A": window_a, "B": window_b}
  shown = [f"{role} {window}" for role, window in windows.items() if window]
  if shown:
    say(f"pair {pair.stem}: windows: {', '.join(shown)}{f'; colours: {lut}' if lut else ''}")

  slices_a, slices_b = (grids.to_pictures(grey, a.affine, plane) for grey in (grey_a, grey_b))
  fused, std = _fuse_slices(model, slices_a, slices_b, f"{pair.stem}/{plane}", options)
  luma = grids.from_pictures(fused, a.affine, plane)
  record = make_record(
    options,
    name=pair.stem,
    window_a=window_a,
    window_b=window_b,
    lut=lut,
    table=table,
    model_sha256=model_sha256,
    plane=plane,
    shape=a.shape,
  )
  result = FusedVolume(
    a=a,
    grey_a=grey_a,
    shown_b=grey_b if coloured_b is None else coloured_b,
    luma=luma,
    rgb=None if coloured_b is None else _by_plane(color.replace_luma, coloured_b, luma),
    std=None if std is None else grids.from_pictures(std, a.affine, plane),
    plane=plane,
    record=record,
  )
  write_results(pair, result, options, alone=alone)


def _read(path: Any, kind: str) -> Volume:
  volume = read_volume(path, kind)
  for note in volume.notes:
    say(f"warning: {path}: {note}")
  return volume


def _on_one_grid(a: Volume, b: Volume, resample: bool) -> Volume:
  """Returns B on A's grid, resampled where that was asked for."""
  apart = grids.difference(a, b) or _differing_positions(a, b)
  if not apart:
    # Voxel by voxel from here on, also where one of them does not know its place.
    return Volume(b.data, a.affine, a.placed, b.window, b.unit, b.source)
  if resample:
    return grids.resample(b, a)
  raise UserError(
    f"A and B lie on different grids: {apart}: add --resample to put B on A's grid, once B is "
    "registered to A"
  )


def _differing_positions(a: Volume, b: Volume) -> str:
  """Compares uneven series, which have no affine, by the positions of their slices."""
  first, second = (getattr(volume.source, "positions", None) for volume in (a, b))
  if a.placed or b.placed or first is None or second is None:
    return ""
  apart = np.linalg.norm(first - second, axis=1).max()
  return f"the same slice up to {apart:.3g} mm apart" if apart > grids.TOLERANCE else ""


def _plane(axis: str | int | None, a: Volume) -> str:
  """The plane to cut: axial where the user does not say, or that of a single slice."""
  if axis is not None:
    return grids.find_plane(axis, a)
  single = [i for i, length in enumerate(a.shape) if length == 1]
  return grids.find_plane(single[0], a) if len(single) == 1 else "axial"


def _array_axis(a: Volume, plane: str) -> int:
  return next(i for i in range(3) if grids.find_plane(i, a) == plane)


def _as_grey(
  volume: Volume, given: Window | str | None, path: Any
) -> tuple[np.ndarray, UsedWindow | None]:
  """Shows a volume through its window: uint8 [I, J, K]; of a coloured one the luma as it is."""
  if volume.is_rgb:
    if given is not None:
      raise UserError(f"{path}: is coloured: a window is for scalar volumes")
    say(f"warning: {path}: is coloured: only the luma is used")
    return _by_plane(color.rgb_to_luma, volume.data), None
  if isinstance(given, tuple):
    used = UsedWindow(given, "given", volume.unit)
  elif given is None and volume.window is not None:
    used = UsedWindow(volume.window, "file", volume.unit)
  else:
    try:
      used = percentiles(volume.data, volume.unit)
    except UserError as error:
      raise UserError(f"{path}: {error}") from error
  return scaling.to_uint8(volume.data, used.window), used


def _fuse_slices(
  model: Any, a: np.ndarray, b: np.ndarray, prefix: str, options: FuseOptions
) -> tuple[np.ndarray, np.ndarray | None]:
  """Fuses grey slices uint8 [N, H, W]: the same, and float32 deviations where there are samples."""
  import jax
  from tqdm import tqdm

  todo = [i for i in range(len(a)) if a[i].any() or b[i].any()]
  fused = np.zeros(a.shape, np.uint8)
  std = None if options.samples is None else np.zeros(a.shape, np.float32)
  size = min(pairs_at_once((a.shape[1], a.shape[2]), options.batch_size), max(len(todo), 1))
  interval = 0.1 if sys.stderr.isatty() else 30
  done = 0
  with tqdm(
    total=len(todo), unit="slice", file=sys.stderr, mininterval=interval, disable=len(todo) < 2
  ) as bar:
    while done < len(todo):
      # Several batches in a call, where a batch is more than one: the model prepares the next while
      # it computes. It is compiled for each batch size: a remainder is filled up with repeats.
      chosen = todo[done : done + (size if size == 1 else _BATCHES_PER_CALL * size)]
      filled = chosen + [chosen[-1]] * (-len(chosen) % size)
      on_each = -(-size // jax.local_device_count())
      asked: dict[str, Any] = {"seed": options.seed, "batch_size": on_each}
      asked["names"] = [f"{prefix}/{i}" for i in filled]
      try:
        if std is None:
          result = model.fuse(a[filled], b[filled], **asked)
        else:
          result, deviation = model.fuse(a[filled], b[filled], **asked, samples=options.samples)
          std[chosen] = np.asarray(deviation, np.float32)[: len(chosen)]
      except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
          raise
        if size == 1:
          pixels = " x ".join(map(str, a.shape[1:]))
          raise UserError(f"a slice of {pixels} does not fit the memory") from error
        size //= 2
        continue
      fused[chosen] = np.asarray(result)[: len(chosen)]
      done += len(chosen)
      bar.update(len(chosen))
  return fused, std


def _by_plane(function: Callable[..., np.ndarray], *volumes: np.ndarray) -> np.ndarray:
  """Applies colour arithmetic plane by plane: its integers take many times the volume's memory."""
  return np.stack([function(*planes) for planes in zip(*volumes, strict=True)])
