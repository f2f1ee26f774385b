"""Which images are one volume, in which order, and where it lies; see the package's rules."""

import math
from typing import Any

import numpy as np
import pydicom

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import modalities, paths
from dmfnet_jax.io.dicom import headers
from dmfnet_jax.io.dicom.headers import BadFileError, Tags, normal_of
from dmfnet_jax.io.dicom.mosaic import check_mosaic
from dmfnet_jax.io.dicom.pixels import read_pixels
from dmfnet_jax.io.dicom.suv import Meaning, suv_factor
from dmfnet_jax.io.grids import UNPLACED, Volume
from dmfnet_jax.io.windows import Window

_MAX_SUSPECTS = 50  # images that are decoded before a mixture is refused
# What is to be the same in all images, and by how much its numbers may differ (relative, absolute):
# orientation and spacing are written with few digits, and not always the same ones.
_GEOMETRY = (
  ("sizes", "shape", 0, 0),
  ("orientations", "orientation", 0, 1e-3),
  ("pixel spacings", "spacing", 1e-3, 0),
  ("units", "unit", 0, 0),
)
_POSITION_TOLERANCE = 1e-3  # mm: closer slices are at one position
_GAP_TOLERANCE = 0.05  # of the distance between slices
# Slices are even where none lies farther from its place than this part of the distance between two.
_EVENNESS = 0.01
# What tells images at one position apart; their names are shown, not their values.
_TELLING = """
  TemporalPositionIdentifier TriggerTime EchoNumbers EchoTime InversionTime DiffusionBValue
  ImageType AcquisitionNumber
""".split()
_SHOWN = 10
_NO_GEOMETRY = "no ImagePositionPatient and ImageOrientationPatient: the result has no geometry"
_Skipped = list[tuple[Any, str]]  # files that are left out, each with its reason
_TO_RAS = np.array([-1.0, -1.0, 1.0])


class Frame:
  """One image of a file, not decoded yet; what the file does not say is None.

  Attributes:
    header: of the file `path`, without pixels, shared by its frames. It holds patient data.
    index: number of the frame in the file, from 0; `single` if the file holds no other.
    shape: rows, columns, and 3 where coloured.
    position, orientation: as `headers.place_of` says.
    spacing: float64 [2], the distance between rows and between columns in mm.
    meaning: of its values.
  """

  position: Any  # not None where `is_placed`
  orientation: Any

  def __init__(self, path: Any, header: pydicom.Dataset, index: int, count: int):
    self.path, self.header, self.index, self.single = path, header, index, count == 1
    self.tags = tags = Tags.of_frame(header, index)
    self.series = tags.uid("SeriesInstanceUID")
    self.shape = (*headers.size_of(tags), *([3] if tags.is_coloured else []))
    self.position, self.orientation = headers.place_of(tags, header, index, count)
    spacing = tags.numbers("PixelSpacing", 2)
    self.spacing = None if spacing is None or spacing.min() <= 0 else spacing
    self.meaning = Meaning(tags)
    self.unit = self.meaning.unit

  @property
  def is_placed(self) -> bool:
    """Whether the file says where it lies."""
    return self.position is not None and self.orientation is not None


class _MixedError(UserError):
  """The images are not one volume.

  A broken file among the `suspects`, those outside the largest group, may be the whole mixture.
  """

  def __init__(self, message: str, groups: list[list[Frame]]):
    super().__init__(message)
    largest = max(groups, key=len)
    self.suspects = [frame for group in groups if group is not largest for frame in group]


def read_dicom(path: paths.PathLike, *, max_voxels: int = headers.MAX_VOXELS) -> Volume:
  """Reads a file (of one image or many frames), or the series in a folder, without subfolders.

  Args:
    path: the file or folder.
    max_voxels: more are refused before they are decoded.

  Returns:
    The volume. Its axes are columns, rows, slices, and its `source` is the `Frame` of each slice.

  Raises:
    UserError: there is no image that can be read, or the images are not one volume.
  """
  place = paths.as_path(path)
  files = _list_files(place)
  skipped: _Skipped = []
  try:
    with headers.quiet():
      frames, order = _sorted_volume(_read_headers(files, skipped), skipped)
      if sum(math.prod(frame.shape) for frame in frames) > max_voxels:
        raise UserError(f"{len(frames)} images of {frames[0].shape} are too large: cut it up")
      mosaic = check_mosaic(frames) if frames else ""
      frames, arrays = _decode(frames, skipped)
      if frames:
        notes = [f"{file.name} is left out: {reason}" for file, reason in skipped]
        notes += [note for note in (order, mosaic) if note]
        return _assemble(frames, arrays, notes)
  except UserError as error:
    raise UserError(f"{path}: {error}") from None
  if files == [place]:
    raise UserError(f"{path}: {skipped[0][1]}")
  shown = "; ".join(f"{file.name}: {reason}" for file, reason in skipped[:3])
  more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
  raise UserError(f"{path}: holds no DICOM image that can be read: {shown}{more}")


def _list_files(place: Any) -> list[Any]:
  try:
    files = paths.list_files(place) if place.is_dir() else [place]
    if files:
      return files
    inside = any(entry.is_dir() for entry in place.iterdir())
  except OSError as error:
    raise UserError(f"{place}: cannot read: {paths.reason(error)}") from None
  hint = ": name the subfolder of one series" if inside else ""
  raise UserError(f"{place}: holds no files{hint}")


def _read_headers(files: list[Any], skipped: _Skipped) -> list[Frame]:
  """Reads all headers; equal copies of an image are left out, as are files without one."""
  frames: list[Frame] = []
  seen: dict[str, Any] = {}
  for file in files:
    try:
      header = headers.read_file(file)
      uid = Tags(header).text("SOPInstanceUID")
      if uid and uid in seen:
        raise BadFileError(f"the same image as {seen[uid].name} (SOP Instance UID)")
      count = headers.frame_count(header)
      frames += [Frame(file, header, index, count) for index in range(count)]
      seen[uid] = file
    except BadFileError as reason:
      skipped.append((file, str(reason)))
  return frames


def _sorted_volume(frames: list[Frame], skipped: _Skipped) -> tuple[list[Frame], str]:
  """Checks that the images are one volume, and sorts them; see `_sort` for the note.

  By their headers, before the pixels, which take their time. Where headers disagree, those that
  stand against the most are decoded: a broken file is to be left out, not to stop the others.
  """
  while frames:
    try:
      _check_alike(frames, "series", "series")
      frames = _leave_out_lost(frames, skipped)
      for feature in _GEOMETRY:
        _check_alike(frames, *feature)
      return _sort(frames) if frames else ([], "")
    except _MixedError as error:
      left_out = len(skipped)
      files = {frame.path for frame in error.suspects[:_MAX_SUSPECTS]}
      _decode([frame for frame in frames if frame.path in files], skipped)
      broken = {file for file, _ in skipped[left_out:]}
      if not broken:
        raise
      frames = [frame for frame in frames if frame.path not in broken]
  return [], ""


def _leave_out_lost(frames: list[Frame], skipped: _Skipped) -> list[Frame]:
  """Leaves out files that have an image without a position where most of their series have one."""
  if sum(frame.is_placed for frame in frames) < len(frames) / 2:
    return frames
  lost = dict.fromkeys(frame.path for frame in frames if not frame.is_placed)
  reason = "lacks ImagePositionPatient or ImageOrientationPatient, which most of its series have"
  skipped += [(file, reason) for file in lost]
  return [frame for frame in frames if frame.path not in lost]


def _check_alike(
  frames: list[Frame], what: str, name: str, relative: float = 0, absolute: float = 0
) -> None:
  """Checks that all images have one value of an attribute, within tolerances if it is an array."""

  def is_same(value: Any, known: Any) -> bool:
    if isinstance(value, np.ndarray) and isinstance(known, np.ndarray):
      return np.allclose(value, known, relative, absolute)
    return type(value) is type(known) and value == known

  groups: list[list[Frame]] = []
  for frame in frames:
    same = (group for group in groups if is_same(getattr(frame, name), getattr(group[0], name)))
    group = next(same, [])
    if not group:
      groups.append(group)
    group.append(frame)
  if len(groups) < 2:
    return
  more = f", and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
  if what == "series":
    listed = [
      f"{group[0].series or 'no Series Instance UID'}"
      f" ({group[0].tags.code('Modality') or 'no modality'}, {_images(len(group))})"
      for group in groups[:_SHOWN]
    ]
    says = f"holds {len(groups)} series"
    advice = "put the files of each series into a folder of its own and name one of these"
  else:
    listed = [
      f"{_describe(getattr(group[0], name))} ({_images(len(group))}, {group[0].path.name}"
      f"{' ...' if len(group) > 1 else ''})"
      for group in groups[:_SHOWN]
    ]
    says = f"the images of the series have {len(groups)} {what}"
    advice = "keep those of one kind (localizers and screenshots are often to be taken out)"
  raise _MixedError(f"{says}: {', '.join(listed)}{more}: {advice}", groups)


def _sort(frames: list[Frame]) -> tuple[list[Frame], str]:
  """Sorts images along the normal of the slices, or by what comes closest, and then says so.

  Raises _MixedError where several images are at one position.
  """
  positions = _positions(frames)
  if positions is not None:
    heights = positions @ normal_of(frames[0].orientation)
    order = np.argsort(heights, kind="stable")
    frames = [frames[i] for i in order]
    _check_distinct(frames, heights[order])
    return frames, ""

  # No geometry, but there may be an order.
  if len(frames) == 1:
    return frames, _NO_GEOMETRY
  for keyword in ("SliceLocation", "InstanceNumber"):  # the same in all frames of a file
    values = [frame.tags.number(keyword) for frame in frames]
    known = [value for value in values if value is not None]
    if len(known) == len(frames) == len(set(known)):
      frames = [frames[i] for i in np.argsort(known)]
      return frames, f"{_NO_GEOMETRY}, and slices in the order of {keyword}"
  by = "file names" if any(frame.single for frame in frames) else "the file"
  frames = sorted(frames, key=lambda frame: (frame.path.name, frame.index))
  return frames, f"{_NO_GEOMETRY}, and slices in the order of {by}"


def _check_distinct(frames: list[Frame], heights: np.ndarray) -> None:
  same = np.flatnonzero(np.diff(heights) < _POSITION_TOLERANCE)
  if not len(same):
    return
  a, b = frames[same[0] : same[0] + 2]
  names = [f.path.name + ("" if f.single else f" frame {f.index + 1}") for f in (a, b)]
  telling = [key for key in _TELLING if a.tags.text(key) != b.tags.text(key)]
  differing = f", differing in {', '.join(telling)}" if telling else ""
  raise _MixedError(
    f"{len(frames)} images at {len(frames) - len(same)} positions"
    f" ({names[0]} and {names[1]}, for example{differing}): a time series or several"
    " contrasts: keep one image a position",
    [frames, [frames[i] for i in sorted({*same, *(same + 1)})]],
  )


def _decode(frames: list[Frame], skipped: _Skipped) -> tuple[list[Frame], list[np.ndarray]]:
  """Decodes file by file; returns those that worked, in the same order."""
  by_file: dict[Any, list[Frame]] = {}
  for frame in frames:
    by_file.setdefault(frame.path, []).append(frame)
  decoded: dict[Frame, np.ndarray] = {}
  for file, members in by_file.items():
    shape = (len(members), *members[0].shape)
    try:
      pixels = read_pixels(file)
      if pixels.shape != shape and (1, *pixels.shape) != shape:
        raise BadFileError("pixel data does not have the size that the header announces")
      pixels = pixels.reshape(shape)
      decoded |= {
        frame: frame.meaning.apply(pixels[frame.index], frame.header) for frame in members
      }
    except BadFileError as reason:
      skipped.append((file, str(reason)))
  frames = [frame for frame in frames if frame in decoded]
  return frames, [decoded[frame] for frame in frames]


def _assemble(frames: list[Frame], arrays: list[np.ndarray], notes: list[str]) -> Volume:
  notes += dict.fromkeys(note for frame in frames for note in frame.meaning.notes)
  first, window = frames[0], _common_window(frames, notes)
  data, unit, unit_from = np.stack(arrays).swapaxes(0, 2), first.unit, ""
  if first.tags.modality == "PT" and unit not in ("SUV", ""):
    factor, how = suv_factor([frame.header for frame in frames], unit)
    if factor is None:
      notes.append(how)
    else:
      unit_from = how
      data *= np.float32(factor)
      unit = "SUV"
      window = window and (window[0] * factor, window[1] * factor)
  positions = _positions(frames)
  affine = None if positions is None else _affine(frames, positions)
  steps = None
  if first.spacing is not None and first.orientation is not None:
    steps = first.orientation.reshape(2, 3) * first.spacing[::-1, None] * _TO_RAS
  if positions is not None and len(frames) > 1:
    notes += _gap_notes(positions, normal_of(first.orientation))
  return Volume(
    data=data,
    affine=UNPLACED if affine is None else affine,
    placed=affine is not None,
    window=window,
    unit=unit,
    unit_from=unit_from,
    notes=tuple(notes),
    frame_uid=str(first.tags.uid("FrameOfReferenceUID")),
    positions=positions * _TO_RAS if affine is None and positions is not None else None,
    steps=steps if affine is None else None,
    modality=modalities.of_code(first.tags.modality, first.tags.text("ImageType")),
    source=frames,
  )


def _common_window(frames: list[Frame], notes: list[str]) -> Window | None:
  given = [frame.meaning.window for frame in frames if frame.meaning.window]
  windows = [window for window in given if np.isfinite(window).all()]
  if not windows:
    return None
  if len(set(windows)) > 1:
    notes.append("the slices' windows differ: the medians of their ends are used")
  low, high = np.median(np.array(windows), axis=0)
  return float(low), float(high)


def _positions(frames: list[Frame]) -> np.ndarray | None:
  """float64 [slices, 3] in LPS mm, None where not all images are placed."""
  if not all(frame.is_placed for frame in frames):
    return None
  return np.array([frame.position for frame in frames])


def _affine(frames: list[Frame], positions: np.ndarray) -> np.ndarray | None:
  """float64 [4, 4] from (column, row, slice, 1) to RAS mm; None where slices are not even.

  A single slice is as thick as the header says.
  """
  first = frames[0]
  if first.spacing is None:
    return None
  if len(frames) == 1:
    size = first.tags.number("SpacingBetweenSlices") or first.tags.number("SliceThickness") or 0
    step = normal_of(first.orientation) * abs(size)
  else:
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    even = positions[0] + np.arange(len(frames))[:, None] * step
    if np.linalg.norm(positions - even, axis=1).max() > _EVENNESS * np.linalg.norm(step):
      return None
  if not step.any():
    return None
  along_row, along_column = first.orientation[:3], first.orientation[3:]
  edges = along_row * first.spacing[1], along_column * first.spacing[0], step, positions[0]
  return np.vstack([np.column_stack(edges) * _TO_RAS[:, None], [0, 0, 0, 1]])


def _gap_notes(positions: np.ndarray, normal: np.ndarray) -> list[str]:
  """Says in one line each where slices are missing, uneven or sheared, by their number from 1."""
  distances = np.diff(positions, axis=0) @ normal
  usual = float(np.median(distances))
  notes = []
  gaps = np.flatnonzero(distances > (1 + _GAP_TOLERANCE) * usual)
  for i in gaps[:_SHOWN]:
    missing = distances[i] / usual - 1
    whole = abs(missing - round(missing)) <= _GAP_TOLERANCE and round(missing) > 0
    found = f"{_images(round(missing))} missing" if whole else f"{distances[i]:.4g} mm"
    notes.append(f"a gap after slice {i + 1}: {found} (slices are {usual:.4g} mm apart)")
  if len(gaps) > _SHOWN:
    notes.append(f"and {len(gaps) - _SHOWN} more gaps")
  if not len(gaps) and (distances < (1 - _GAP_TOLERANCE) * usual).any():
    notes.append(f"slices are {distances.min():.4g} to {distances.max():.4g} mm apart")
  total = positions[-1] - positions[0]
  sideways = np.linalg.norm(total - (total @ normal) * normal)
  if sideways > 0.01 * abs(total @ normal):
    angle = np.degrees(np.arctan2(sideways, abs(total @ normal)))
    notes.append(f"slices are stacked at an angle of {angle:.1f} degrees (tilted gantry)")
  return notes


def _describe(value: Any) -> str:
  if value is None or isinstance(value, str):
    return value or "none"
  return " x ".join(f"{v:.4g}" for v in value) if len(value) < 6 else str(value.round(3).tolist())


def _images(count: int) -> str:
  return "1 image" if count == 1 else f"{count} images"
