"""What the header says about one image: its place, its values' meaning, its window.

Enhanced multi-frame objects keep these in functional groups, one set a frame and one shared;
classic objects in the header itself; nuclear medicine and dose have ways of their own. All become a
`Frame` here. Sections are those of DICOM PS3.3.
"""

import dataclasses
from typing import Any

import numpy as np
import pydicom

from dmfnet_jax.data import dicom_headers as headers
from dmfnet_jax.data.decoding import MAX_PIXELS
from dmfnet_jax.data.dicom_volume import normal_of

MAX_VOXELS = 1 << 30
"""Larger volumes are refused (4 GiB as float32): a small file may claim any size."""

Linear = tuple[float, float]  # slope, intercept

_RESCALE = ("Slope", "Intercept")
# Codes of units, as real world values name them, in our words.
_UCUM = {"{SUVbw}g/ml": "SUV", "[hnsf'U]": "HU", "": "a.u.", "1": "a.u.", "{counts}": "a.u."}

# Their values are quantities to be windowed and coloured, whatever grey a viewer gives them.
_QUANTITIES = ("PT", "NM", "RTDOSE")


@dataclasses.dataclass
class Frame:
  """One image of a series, not decoded yet; geometry as in `DicomVolume`, None where unknown.

  Attributes:
    path: the file.
    header: of the file, shared by its frames.
    index: number of the frame in the file, from 0.
    single: the file holds this image only.
    to_unit: slope and intercept from stored values to `unit`; None where a lookup table maps them.
    window: in `unit`, or None.
    pivot: what a value and its inverse add up to where the image is to be inverted, else None.
    notes: what had to be decided.
  """

  path: Any
  header: pydicom.Dataset
  index: int
  single: bool
  shape: tuple[int, ...]  # rows, columns, and 3 where coloured
  position: np.ndarray | None
  orientation: np.ndarray | None
  spacing: np.ndarray | None
  to_unit: Linear | None
  unit: str
  window: tuple[float, float] | None
  pivot: float | None
  notes: list[str]


def frames_of(path: Any, header: pydicom.Dataset) -> list[Frame]:
  """Describes all images of a file; call inside `quiet()`.

  Raises:
    BadFileError: the header announces more frames than it describes, or more pixels than we take.
  """
  count = headers.frame_count(header)
  rows, columns = _size(header)
  pixels = rows * columns
  if pixels > MAX_PIXELS or count * pixels > MAX_VOXELS:
    raise headers.BadFileError(f"claims {count} x {pixels} pixels, over the limit: cut it up")
  described = headers.item_count(header, "PerFrameFunctionalGroupsSequence")
  if "PerFrameFunctionalGroupsSequence" in header and described < count:
    raise headers.BadFileError(f"announces {count} frames and describes {described}")
  return [_frame(path, header, index, count) for index in range(count)]


def slice_distances(header: pydicom.Dataset) -> tuple[float | None, float | None]:
  """SliceThickness and SpacingBetweenSlices in mm, as the header says; None where it does not."""
  found = []
  for keyword in ("SliceThickness", "SpacingBetweenSlices"):
    place = headers.holder(header, 0, "PixelMeasuresSequence", keyword)
    found.append(headers.number(place, keyword) or None)  # a zero is no distance
  return found[0], found[1]


def _frame(path: Any, header: pydicom.Dataset, index: int, count: int) -> Frame:
  notes: list[str] = []
  colour = headers.is_rgb(header)
  shape = (*_size(header), *([3] if colour else []))
  position, orientation = _place(header, index, count)
  place = headers.holder(header, index, "PixelMeasuresSequence", "PixelSpacing")
  spacing = headers.numbers(place, "PixelSpacing", 2)
  if spacing is not None and spacing.min() <= 0:
    spacing = None
  to_unit: Linear | None = (1.0, 0.0)
  unit, window = "RGB", None
  if not colour:
    to_unit, unit, window = _meaning(header, index, notes)
  pivot = None
  if headers.photometric(header) == "MONOCHROME1":
    if headers.text(header, "Modality").upper() in _QUANTITIES:
      notes.append("MONOCHROME1, shown black on white elsewhere: the values are used as they are")
    else:
      pivot = _pivot(header, to_unit)
      window = window and (pivot - window[1], pivot - window[0])
      if unit != "a.u.":
        notes.append(f"MONOCHROME1: inverted, so that values are no longer {unit}")
        unit = "a.u."
  return Frame(
    path=path,
    header=header,
    index=index,
    single=count == 1,
    shape=shape,
    position=position,
    orientation=orientation,
    spacing=spacing,
    to_unit=to_unit,
    unit=unit,
    window=window,
    pivot=pivot,
    notes=notes,
  )


def _size(header: pydicom.Dataset) -> tuple[int, int]:
  return int(headers.number(header, "Rows") or 0), int(headers.number(header, "Columns") or 0)


def _pivot(header: pydicom.Dataset, to_unit: Linear | None) -> float:
  """The sum of a value and its inverse: the ends of the stored range change places."""
  if to_unit is None:
    lut = headers.numbers(headers.item(header, "ModalityLUTSequence"), "LUTDescriptor", 3)
    return 2.0 ** min(16, max(1, lut[2])) - 1 if lut is not None else 65535.0
  bits = headers.number(header, "BitsStored") or headers.number(header, "BitsAllocated") or 16
  # Signed ones run from -2^(bits - 1) to 2^(bits - 1) - 1, unsigned ones from 0 to 2^bits - 1.
  is_signed = headers.number(header, "PixelRepresentation") == 1
  ends = -1 if is_signed else 2.0 ** min(64, max(1, bits)) - 1
  slope, intercept = to_unit
  return ends * slope + 2 * intercept


def _place(
  header: pydicom.Dataset, index: int, count: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Position and orientation of one image."""
  source: pydicom.Dataset | None
  source = headers.holder(header, index, "PlaneOrientationSequence", "ImageOrientationPatient")
  detector = headers.item(header, "DetectorInformationSequence")
  if source is None:
    source = detector
  orientation = _unit_vectors(headers.numbers(source, "ImageOrientationPatient", 6))

  source = headers.holder(header, index, "PlanePositionSequence", "ImagePositionPatient")
  if source is None:
    source = detector
  position = headers.numbers(source, "ImagePositionPatient", 3)
  if source is not header and source is not detector:
    return position, orientation
  if position is None or orientation is None or count == 1:
    return position, orientation

  # One position for all frames: where the others lie depends on the kind of object.
  offset = None
  if "GridFrameOffsetVector" in header:
    # Dose, C.8.8.3.2: distances from the first frame, or the z of each where the first is not 0.
    offsets = headers.numbers(header, "GridFrameOffsetVector", count)
    if offsets is not None:
      along = np.sign(normal_of(orientation)[2]) if offsets[0] else 1
      offset = (offsets[index] - offsets[0]) * along
  elif "RECON TOMO" in headers.text(header, "ImageType").upper():
    # Nuclear medicine, C.8.4.15: the sign of the spacing is the direction of stacking.
    spacing = headers.number(header, "SpacingBetweenSlices")
    offset = None if spacing is None else index * spacing
  if offset is None:
    return None, orientation
  return position + offset * normal_of(orientation), orientation


def _unit_vectors(orientation: np.ndarray | None) -> np.ndarray | None:
  """Returns an orientation, None where it is not two perpendicular directions."""
  if orientation is None:
    return None
  vectors = orientation.reshape(2, 3)
  lengths = np.linalg.norm(vectors, axis=1)
  if np.abs(lengths - 1).max() > 0.01 or abs(vectors[0] @ vectors[1]) > 0.01:
    return None
  if np.abs(lengths - 1).max() < 1e-4:
    return orientation  # as written: what is copied to a result stays the same
  return (vectors / lengths[:, None]).ravel()


def _meaning(
  header: pydicom.Dataset, index: int, notes: list[str]
) -> tuple[Linear | None, str, tuple[float, float] | None]:
  """What stored values mean: the map to `unit`, the unit, the window in it.

  A lookup table or the rescale tags (C.11.1), or a dose's scaling. Real world values
  (C.7.6.16.2.11) where there is none of these, and for PET where they are SUV or the only ones with
  a unit.
  """
  window = _window(header, index, notes)
  if headers.item(header, "ModalityLUTSequence") is not None:
    return None, "a.u.", window
  is_pet = headers.text(header, "Modality").upper() == "PT"
  found = _rescale(header, index)
  real = _real_world(header, index)
  if real is not None:
    no_other = found is None or (is_pet and found[1] == "a.u.")
    if no_other or (is_pet and real[1] == "SUV"):
      # The window is meant for rescaled values: back to stored ones, and on to real ones.
      slope, intercept = (1.0, 0.0) if found is None else found[0]
      edges = sorted((edge - intercept) / slope * real[0][0] + real[0][1] for edge in window or ())
      return real[0], real[1], (edges[0], edges[1]) if edges else None
  if found is None:
    if is_pet or headers.text(header, "Modality").upper() == "CT":
      notes.append("no RescaleSlope and RescaleIntercept: stored values are used as they are")
    units = headers.code(header, "Units").upper() if is_pet else ""
    return (1.0, 0.0), units or "a.u.", window
  notes += found[2]
  return found[0], found[1], window


def _rescale(header: pydicom.Dataset, index: int) -> tuple[Linear, str, list[str]] | None:
  """The map of the rescale tags or of a dose, its unit, and notes; None where there is no map."""
  macro, modality = "PixelValueTransformationSequence", headers.text(header, "Modality").upper()
  places = [headers.holder(header, index, macro, f"Rescale{part}") for part in _RESCALE]
  slope, intercept = (
    headers.number(place, f"Rescale{part}") for place, part in zip(places, _RESCALE, strict=True)
  )
  if slope is None and intercept is None:
    scaling = headers.number(header, "DoseGridScaling")
    unit = headers.code(header, "DoseUnits").upper() or "a.u."
    return None if not scaling else ((scaling, 0.0), unit, [])

  notes = []
  if slope is None or intercept is None:
    missing, usual = ("RescaleSlope", 1) if slope is None else ("RescaleIntercept", 0)
    notes.append(f"no {missing}: taken as {usual}")
  if slope == 0:
    notes.append("RescaleSlope is 0, which would make every value the same: taken as 1")
  # The last place is the header itself; `or` would take an empty dataset for none.
  kind = headers.code(places[0] if places[0] is not None else places[1], "RescaleType").upper()
  unit = "a.u." if kind in ("", "US") else kind  # US: unspecified
  if modality == "CT" and kind == "":
    unit = "HU"
  elif modality == "PT":
    unit = headers.code(header, "Units").upper() or unit
  return (slope or 1.0, intercept or 0.0), unit, notes


def _real_world(header: pydicom.Dataset, index: int) -> tuple[Linear, str] | None:
  """The first linear real world map and the code of its unit."""
  macro = "RealWorldValueMappingSequence"
  place = headers.holder(header, index, macro, "RealWorldValueSlope")
  if place is None:
    place = headers.item(header, macro)
  slope = headers.number(place, "RealWorldValueSlope")
  intercept = headers.number(place, "RealWorldValueIntercept")
  if not slope or intercept is None:
    return None
  unit = headers.code(headers.item(place, "MeasurementUnitsCodeSequence"), "CodeValue")
  return (slope, intercept), _UCUM.get(unit, unit)


def _window(header: pydicom.Dataset, index: int, notes: list[str]) -> tuple[float, float] | None:
  """The first window (C.11.2.1.2, C.11.2.1.3), as the values that become black and white."""
  place = headers.holder(header, index, "FrameVOILUTSequence", "WindowCenter")
  centre, width = headers.number(place, "WindowCenter"), headers.number(place, "WindowWidth")
  if centre is None or width is None:
    lut = headers.item(header, "VOILUTSequence")
    descriptor = headers.numbers(lut, "LUTDescriptor", 3)
    if descriptor is None:
      return None
    notes.append("a VOI lookup table stands for the window: its ends are used, straight between")
    return float(descriptor[1]), float(descriptor[1] + (descriptor[0] or 65536) - 1)
  function = headers.text(place, "VOILUTFunction").upper() or "LINEAR"
  if function == "LINEAR":
    # Half a step off the middle: the standard's rule for integers.
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
  else:
    if function == "SIGMOID":
      notes.append("the window is a sigmoid: its straight middle part is used")
    low, high = centre - width / 2, centre + width / 2
  if not high > low:
    notes.append("WindowWidth is too small to be a window: ignored")
    return None
  return low, high
