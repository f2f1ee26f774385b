"""Reading DICOM: a file, or the folder of a series, as one sorted volume with a unit.

The rules, in the order in which they apply:

1. Files that hold no image (reports, structure sets, plans, segmentations, DICOMDIR), that are no
   DICOM, broken, or compressed without a decoder being installed are left out, each with its
   reason; the rest goes on. Hidden files and subfolders are not looked at.
2. What is left must be one series, of one size, orientation and pixel spacing. Otherwise nothing is
   read, and the error says what there is: Series Instance UIDs, never patients.
3. Slices are sorted by position: ImagePositionPatient along the normal of ImageOrientationPatient.
   Where a series lacks these, by SliceLocation, else InstanceNumber, else the frame's number in the
   file, else the file's name; the volume then has no geometry. Several images at one position (a
   time series, several echoes) are refused, and gaps noted.
4. Stored values become `unit` (see `dicom_frames`), PET becomes SUV where the tags allow (see
   `dicom_suv`), MONOCHROME1 is inverted (not PET, nuclear medicine and dose, whose values are
   quantities), padding takes the lowest value of its slice, colour becomes 8-bit RGB.
5. The window is the file's first; where slices have different ones, the medians of their ends.

What is printed or raised here names files, tags and UIDs, and no value that describes a patient.
"""

from typing import Any

import numpy as np

from dmfnet_jax.data import dicom_frames, images
from dmfnet_jax.data import dicom_headers as headers
from dmfnet_jax.data.dicom_frames import Frame
from dmfnet_jax.data.dicom_headers import BadFileError, looks_like_dicom
from dmfnet_jax.data.dicom_pixels import decode_file
from dmfnet_jax.data.dicom_series import (
  MixedError,
  check_one_geometry,
  check_one_series,
  gap_notes,
  leave_out_lost,
  sort_frames,
)
from dmfnet_jax.data.dicom_suv import suv_factor
from dmfnet_jax.data.dicom_volume import DicomVolume
from dmfnet_jax.data.dicom_write import write_secondary_capture
from dmfnet_jax.errors import UserError

_MAX_SUSPECTS = 50  # images that are decoded before a mixture is refused

__all__ = ["DicomVolume", "looks_like_dicom", "read_dicom", "write_secondary_capture"]


def read_dicom(path: images.PathLike) -> DicomVolume:
  """Reads one DICOM file, or the series whose files lie in a folder.

  Args:
    path: a file (of one image or many frames), or a folder, of which subfolders are left out.

  Returns:
    The volume, see `DicomVolume`: values in a unit, sorted by position, with its geometry, its
    window, and in `skipped` and `notes` what a user should be told.

  Raises:
    UserError: there is no image that can be read, or the images are not one volume.
  """
  place = images.as_path(path)
  try:
    if place.is_dir():
      files = images.list_files(place)
      if not files:
        inside = any(entry.is_dir() for entry in place.iterdir())
        hint = ": name the subfolder of one series" if inside else ""
        raise UserError(f"{path}: holds no files{hint}")
    else:
      files = [place]
  except OSError as error:
    raise UserError(f"{path}: cannot read: {error.strerror or type(error).__name__}") from None

  skipped: list[tuple[Any, str]] = []
  with headers.quiet():
    frames = _read_headers(files, skipped)
    if not frames:
      raise _nothing(path, skipped)
    frames, order_note = _one_sorted_volume(path, frames, skipped)
    if len(frames) * int(np.prod(frames[0].shape)) > dicom_frames.MAX_VOXELS:
      raise UserError(f"{path}: {len(frames)} images of {frames[0].shape} are too large: cut it up")
    frames, arrays = _decode(frames, skipped)
    if not frames:
      raise _nothing(path, skipped)
    return _assemble(frames, arrays, skipped, order_note)


def _read_headers(files: list[Any], skipped: list[tuple[Any, str]]) -> list[Frame]:
  """Reads all headers; equal copies of an image are left out, as are files without one."""
  frames: list[Frame] = []
  seen: dict[str, Any] = {}
  for file in files:
    try:
      header = headers.read_header(file)
      uid = headers.text(header, "SOPInstanceUID")
      if uid and uid in seen:
        raise BadFileError(f"the same image as {seen[uid].name} (SOP Instance UID)")
      frames += dicom_frames.frames_of(file, header)
      seen[uid] = file
    except BadFileError as reason:
      skipped.append((file, str(reason)))
  return frames


def _one_sorted_volume(
  path: images.PathLike, frames: list[Frame], skipped: list[tuple[Any, str]]
) -> tuple[list[Frame], str]:
  """Checks that the images are one volume, and sorts them; see `sort_frames` for the note.

  By their headers, before the pixels, which take their time. Where headers disagree, those that
  stand against the most are decoded: a broken file is to be left out, not to stop the others.
  """
  while True:
    try:
      check_one_series(path, frames)
      frames = leave_out_lost(frames, skipped)
      if not frames:
        raise _nothing(path, skipped)
      check_one_geometry(path, frames)
      return sort_frames(path, frames)
    except MixedError as error:
      left_out = len(skipped)
      files = {frame.path for frame in error.suspects[:_MAX_SUSPECTS]}
      _decode([frame for frame in frames if frame.path in files], skipped)
      broken = {file for file, _ in skipped[left_out:]}
      if not broken:
        raise
      frames = [frame for frame in frames if frame.path not in broken]
      if not frames:
        raise _nothing(path, skipped) from None


def _decode(
  frames: list[Frame], skipped: list[tuple[Any, str]]
) -> tuple[list[Frame], list[np.ndarray]]:
  """Decodes file by file; returns those that worked, in the same order."""
  by_file: dict[Any, list[Frame]] = {}
  for frame in frames:
    by_file.setdefault(frame.path, []).append(frame)
  decoded: dict[int, np.ndarray] = {}
  for file, members in by_file.items():
    members = sorted(members, key=lambda frame: frame.index)
    try:
      for frame, array in zip(members, decode_file(file, members), strict=True):
        decoded[id(frame)] = array
    except BadFileError as reason:
      skipped.append((file, str(reason)))
  frames = [frame for frame in frames if id(frame) in decoded]
  return frames, [decoded[id(frame)] for frame in frames]


def _assemble(
  frames: list[Frame], arrays: list[np.ndarray], skipped: list[tuple[Any, str]], order_note: str
) -> DicomVolume:
  first = frames[0]
  notes = [order_note] if order_note else []
  for frame in frames:
    notes += [note for note in frame.notes if note not in notes]
  unit, window = first.unit, _common_window(frames, notes)
  data = np.stack(arrays)
  modality = headers.code(first.header, "Modality").upper()
  if modality == "PT" and unit not in ("SUV", "RGB"):
    factor, how = suv_factor([frame.header for frame in frames])
    notes.append(how)
    if factor is not None:
      data *= np.float32(factor)
      unit = "SUV"
      window = window and (window[0] * factor, window[1] * factor)

  has_place = all(frame.position is not None and frame.orientation is not None for frame in frames)
  positions = [frame.position for frame in frames if frame.position is not None]
  thickness, distance = dicom_frames.slice_distances(first.header)
  volume = DicomVolume(
    data=data,
    unit=unit,
    window=window,
    datasets=[frame.header for frame in frames],
    frames=[None if frame.single else frame.index for frame in frames],
    files=[frame.path for frame in frames],
    positions=np.stack(positions) if has_place else None,
    orientation=first.orientation if has_place else None,
    pixel_spacing=None if first.spacing is None else (first.spacing[0], first.spacing[1]),
    slice_thickness=thickness,
    slice_spacing=distance,
    modality=modality,
    inverted=first.pivot is not None,
    skipped=skipped,
    notes=notes,
  )
  notes += gap_notes(volume)
  return volume


def _common_window(frames: list[Frame], notes: list[str]) -> tuple[float, float] | None:
  windows = [frame.window for frame in frames if frame.window and np.isfinite(frame.window).all()]
  if not windows:
    return None
  if len(set(windows)) > 1:
    notes.append("the slices' windows differ: the medians of their ends are used")
  low, high = np.median(np.array(windows), axis=0)
  return float(low), float(high)


def _nothing(path: images.PathLike, skipped: list[tuple[Any, str]]) -> UserError:
  """The error for a path without any image: the first reasons, and how many more there are."""
  if len(skipped) == 1 and str(skipped[0][0]) == str(images.as_path(path)):
    return UserError(f"{path}: {skipped[0][1]}")
  shown = "; ".join(f"{file.name}: {reason}" for file, reason in skipped[:3])
  more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
  return UserError(f"{path}: holds no DICOM image that can be read: {shown}{more}")
