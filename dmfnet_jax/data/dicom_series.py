"""Which images are one volume: one series, one geometry, in the order of their positions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dmfnet_jax.data import dicom_headers as headers
from dmfnet_jax.data import images
from dmfnet_jax.data.dicom_frames import Frame
from dmfnet_jax.data.dicom_volume import DicomVolume, normal_of
from dmfnet_jax.errors import UserError

# Orientation and spacing are written with few digits, and not always the same ones.
_DIRECTION_TOLERANCE = 1e-3
_SPACING_TOLERANCE = 1e-3  # relative
_POSITION_TOLERANCE = 1e-3  # mm: closer slices are at one position
_GAP_TOLERANCE = 0.05  # of the distance between slices
# What tells images at one position apart; their names are shown, not their values.
_TELLING = (
  "TemporalPositionIdentifier",
  "TriggerTime",
  "EchoNumbers",
  "EchoTime",
  "InversionTime",
  "DiffusionBValue",
  "ImageType",
  "AcquisitionNumber",
)
_SHOWN = 10


class MixedError(UserError):
  """The images are not one volume.

  Attributes:
    suspects: those outside the largest group; a broken file among them may be the whole mixture.
  """

  def __init__(self, message: str, suspects: list[Frame]):
    super().__init__(message)
    self.suspects = suspects


def check_one_series(path: images.PathLike, frames: list[Frame]) -> None:
  """Checks that all images are of one series.

  Raises:
    MixedError: they are not; the message lists the series.
  """
  series: dict[str, list[Frame]] = {}
  for frame in frames:
    series.setdefault(headers.uid(frame.header, "SeriesInstanceUID"), []).append(frame)
  if len(series) > 1:
    listed = [
      f"{uid or 'no Series Instance UID'} ({_modality(members[0])}, {_images(len(members))})"
      for uid, members in series.items()
    ]
    raise MixedError(
      f"{path}: holds {len(series)} series: {_enumerate(listed)}:"
      " put the files of each series into a folder of its own and name one of these",
      _outside_largest(list(series.values())),
    )


def leave_out_lost(frames: list[Frame], skipped: list[tuple[Any, str]]) -> list[Frame]:
  """Leaves out files that have an image without a position where most of their series have one."""
  placed = [frame for frame in frames if _is_placed(frame)]
  if not len(frames) / 2 <= len(placed) < len(frames):
    return frames
  without = dict.fromkeys(frame.path for frame in frames if not _is_placed(frame))
  reason = "lacks ImagePositionPatient or ImageOrientationPatient, which most of its series have"
  skipped += [(file, reason) for file in without]
  return [frame for frame in placed if frame.path not in without]


def check_one_geometry(path: images.PathLike, frames: list[Frame]) -> None:
  """Checks that all images have one size, orientation, pixel spacing and unit.

  Raises:
    MixedError: they have not; the message lists what there is, with a file of each.
  """
  for what, key, is_same in (
    ("sizes", lambda frame: np.array(frame.shape), _is_equal),
    ("orientations", lambda frame: frame.orientation, _is_same_direction),
    ("pixel spacings", lambda frame: frame.spacing, _is_same_spacing),
    ("units", lambda frame: frame.unit, _is_equal),
  ):
    kinds: list[tuple[Any, list[Frame]]] = []
    for frame in frames:
      value = key(frame)
      for known, members in kinds:
        if value is known or (value is not None and known is not None and is_same(value, known)):
          members.append(frame)
          break
      else:
        kinds.append((value, [frame]))
    if len(kinds) > 1:
      listed = [
        f"{_describe(value)} ({_images(len(members))}, {members[0].path.name}"
        f"{' ...' if len(members) > 1 else ''})"
        for value, members in kinds
      ]
      raise MixedError(
        f"{path}: the images of the series have {len(kinds)} {what}: {_enumerate(listed)}:"
        " keep those of one kind (localizers and screenshots are often to be taken out)",
        _outside_largest([members for _, members in kinds]),
      )


def sort_frames(path: images.PathLike, frames: list[Frame]) -> tuple[list[Frame], str]:
  """Sorts images along the normal of the slices, or by what comes closest.

  Returns:
    The images, and a note where they are not sorted by position, else "".

  Raises:
    MixedError: several images at one position.
  """
  if all(_is_placed(frame) for frame in frames):
    orientation = frames[0].orientation
    assert orientation is not None
    normal = normal_of(orientation)
    heights = [float(normal @ _position(frame)) for frame in frames]
    order = np.argsort(heights, kind="stable")
    frames = [frames[i] for i in order]
    _check_distinct(path, frames, np.asarray(heights)[order])
    return frames, ""

  # No geometry, but there may be an order.
  if len(frames) == 1:
    return frames, _NO_GEOMETRY
  if all(not frame.single for frame in frames):
    frames = sorted(frames, key=lambda frame: (frame.path.name, frame.index))
    return frames, f"{_NO_GEOMETRY}, and slices in the order of the file"
  for keyword in ("SliceLocation", "InstanceNumber"):
    values = [headers.number(frame.header, keyword) for frame in frames]
    known = [value for value in values if value is not None]
    if len(known) == len(frames) == len(set(known)):
      frames = [frames[i] for i in np.argsort(known)]
      return frames, f"{_NO_GEOMETRY}, and slices in the order of {keyword}"
  frames = sorted(frames, key=lambda frame: (frame.path.name, frame.index))
  return frames, f"{_NO_GEOMETRY}, and slices in the order of file names"


_NO_GEOMETRY = "no ImagePositionPatient and ImageOrientationPatient: the result has no geometry"


def gap_notes(volume: DicomVolume) -> list[str]:
  """Says in one line each where slices are missing, uneven or sheared, by their number from 1."""
  if volume.positions is None or volume.orientation is None or len(volume.positions) < 2:
    return []
  steps = np.diff(volume.positions, axis=0)
  normal = normal_of(volume.orientation)
  distances = steps @ normal
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
  total = volume.positions[-1] - volume.positions[0]
  sideways = np.linalg.norm(total - (total @ normal) * normal)
  if sideways > 0.01 * abs(total @ normal):
    angle = np.degrees(np.arctan2(sideways, abs(total @ normal)))
    notes.append(f"slices are stacked at an angle of {angle:.1f} degrees (tilted gantry)")
  return notes


def _check_distinct(path: images.PathLike, frames: list[Frame], heights: np.ndarray) -> None:
  same = np.flatnonzero(np.diff(heights) < _POSITION_TOLERANCE)
  if not len(same):
    return
  pair = frames[same[0]], frames[same[0] + 1]
  coinciding = [frames[i] for i in sorted({*same, *(same + 1)})]
  names = [
    frame.path.name + ("" if frame.single else f" frame {frame.index + 1}") for frame in pair
  ]
  telling = [
    keyword
    for keyword in _TELLING
    if headers.text(pair[0].header, keyword) != headers.text(pair[1].header, keyword)
  ]
  differing = f", differing in {', '.join(telling)}" if telling else ""
  raise MixedError(
    f"{path}: {len(frames)} images at {len(frames) - len(same)} positions"
    f" ({names[0]} and {names[1]}, for example{differing}): a time series or several"
    " contrasts: keep one image a position",
    coinciding,
  )


def _is_placed(frame: Frame) -> bool:
  return frame.position is not None and frame.orientation is not None


def _position(frame: Frame) -> np.ndarray:
  assert frame.position is not None
  return frame.position


def _is_equal(value: Any, known: Any) -> bool:
  return bool(np.array_equal(value, known))


def _is_same_direction(value: np.ndarray, known: np.ndarray) -> bool:
  return bool(np.abs(value - known).max() <= _DIRECTION_TOLERANCE)


def _is_same_spacing(value: np.ndarray, known: np.ndarray) -> bool:
  return bool(np.all(np.abs(value - known) <= _SPACING_TOLERANCE * known))


def _describe(value: Any) -> str:
  if value is None or isinstance(value, str):
    return value or "none"
  return " x ".join(f"{v:.4g}" for v in value) if len(value) < 6 else str(value.round(3).tolist())


def _outside_largest(groups: list[list[Frame]]) -> list[Frame]:
  largest = max(groups, key=len)
  return [frame for group in groups if group is not largest for frame in group]


def _modality(frame: Frame) -> str:
  return headers.code(frame.header, "Modality") or "no modality"


def _images(count: int) -> str:
  return "1 image" if count == 1 else f"{count} images"


def _enumerate(parts: Sequence[str]) -> str:
  more = f", and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
  return ", ".join(parts[:_SHOWN]) + more
