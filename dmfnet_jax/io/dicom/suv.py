"""What stored values mean: their unit, their window, and PET in standardised uptake values (SUV).

    SUVbw [g/ml] = activity concentration [Bq/ml] x patient's weight [g] / dose [Bq],

the dose as it decayed to the time to which the image was decay-corrected. This follows the vendor-
neutral procedure of the Quantitative Imaging Biomarkers Alliance (QIBA FDG-PET/CT profile,
"Standardized Uptake Value (SUV) calculation", the robust version), by D. Clunie and others:

* `Units` BQML, `CorrectedImage` with ATTN and DECY.
* `DecayCorrection` ADMIN: to the time of injection, the dose as injected. START: to the start of
  the scan, dose x 2^(-(scan start - injection) / half life).
* The scan starts at SeriesDate/SeriesTime, unless that is after the first acquisition, as in a
  series made later. Then GE's private scan time is used, or else AcquisitionTime -
  FrameReferenceTime + t, where t = ln(l d / (1 - exp(-l d))) / l is when in a frame of length d
  the average count rate occurs (l = ln 2 / half life).
* The injection is RadiopharmaceuticalStartDateTime, or RadiopharmaceuticalStartTime on the day of
  the scan's start, the day before where it would come later.
* Enhanced PET has the unit in its real world values (Bq/ml), and says by DecayCorrected,
  DecayCorrectionDateTime and AttenuationCorrected what the tags above say.
* Units GML are SUV already (SUVType BW or none); units CNTS have Philips' private factors.

What remains in the syringe is not known to the header, and not subtracted. Sections are those of
DICOM PS3.3; everything here is called inside `headers.quiet()`.
"""

import contextlib
import datetime
import math
import re

import numpy as np
import pydicom
import pydicom.pixels
from pydicom.uid import EnhancedPETImageStorage
from pydicom.valuerep import DT

from dmfnet_jax.io.dicom.headers import BadFileError, Tags, private_text
from dmfnet_jax.io.windows import Window

Linear = tuple[float, float]  # slope, intercept

# Codes of units, as real world values name them, in our words.
_UCUM = {"{SUVbw}g/ml": "SUV", "[hnsf'U]": "HU", "": "a.u.", "1": "a.u.", "{counts}": "a.u."}
_UCUM |= {"Bq/ml": "BQML", "Bq/mL": "BQML"}
# Their values are quantities to be windowed and coloured, whatever grey a viewer gives them.
_QUANTITIES = ("PT", "NM", "RTDOSE")
# The tag is in Bq for PET and in MBq for nuclear medicine and enhanced PET (C.8.22.4), and some
# write MBq in PET and Bq in enhanced PET as well: less than this is no dose that could be imaged.
_LEAST_DOSE_BQ = 1e4
# Farther from the injection than this there is nothing to see: the times are not of one day.
_MOST_HALF_LIVES = 12


class Meaning:
  """What the stored values of an image mean.

  Attributes:
    linear: slope and intercept from stored values to `unit`; None where a lookup table maps them.
    unit: "HU", "SUV" (g/ml, by body weight), "GY", for other PET its own unit ("BQML", "CNTS",
      ...), "a.u." where the file names none, "" where the image is coloured.
    window: the file's first display window, in `unit`, or None.
    pivot: what a value and its inverse add up to where MONOCHROME1 (low is white) is to be turned,
      so that high values are bright as elsewhere; else None.
    notes: what had to be decided.
  """

  def __init__(self, tags: Tags):
    self.notes: list[str] = []
    self.pivot: float | None = None
    self.linear, self.unit, self.window = _meaning(tags, self.notes)
    if tags.photometric != "MONOCHROME1" or tags.is_coloured:
      return
    if tags.modality in _QUANTITIES:
      shown = "MONOCHROME1, shown black on white elsewhere"
      self.notes.append(f"{shown}: the values are used as they are")
      return
    self.pivot = _pivot(tags, self.linear)
    self.window = self.window and (self.pivot - self.window[1], self.pivot - self.window[0])
    if self.unit != "a.u.":
      self.notes.append(f"MONOCHROME1: inverted, so that values are no longer {self.unit}")
      self.unit = "a.u."

  def apply(self, stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Maps stored values to `unit`, padding to the lowest value beside it; colours to 8 bits.

    Real [rows, columns] becomes float32, finite; [rows, columns, 3] uint8. The header is that of
    the file, with its lookup table and padding. Raises BadFileError where there is no such map.
    """
    tags = Tags(header)
    if tags.is_coloured:
      return _to_8_bits(stored, tags)
    if self.linear is None:
      try:
        values = np.asarray(pydicom.pixels.apply_modality_lut(stored, header), np.float64)
      except Exception as error:
        raise BadFileError(f"the lookup table is broken ({type(error).__name__})") from None
    else:
      values = stored.astype(np.float64) * self.linear[0] + self.linear[1]
    if self.pivot is not None:
      values = self.pivot - values
    finite = np.isfinite(values)
    if not finite.any():
      raise BadFileError("holds no finite number")
    if not finite.all():  # float pixel data
      self.notes.append("values that are no finite numbers: set to the lowest of their slice")
      values = np.where(finite, values, values[finite].min())
    # Where there is no image: outside the round field of view of a CT, for example.
    pad, limit = (
      _as_stored(tags, keyword, stored.dtype)
      for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")
    )
    if pad is not None:
      low, high = sorted((pad, pad if limit is None else limit))
      padding = (stored >= low) & (stored <= high)
      if not padding.all():
        values[padding] = values[~padding].min()
    if np.abs(values).max() > np.finfo(np.float32).max:
      raise BadFileError("RescaleSlope and RescaleIntercept make values too large for 32 bits")
    return values.astype(np.float32)


def suv_factor(slices: list[pydicom.Dataset], unit: str) -> tuple[float | None, str]:
  """Finds what rescaled values of a PET series are to be multiplied with, from its headers.

  Args:
    slices: the header of each slice.
    unit: of the rescaled values, where the headers have no `Units`, as enhanced PET has none.

  Returns:
    (factor, how it came about), or (None, why there is none); one line without patient data.
  """
  first = Tags(slices[0])
  units, kind = first.code("Units").upper(), first.code("SUVType").upper()
  units = units or unit.replace("a.u.", "")
  try:
    if units == "GML" and kind in ("", "BW"):
      return 1.0, "PET: Units GML, which are SUV by body weight"
    if units == "GML":
      raise _NoSuvError(f"these are SUV of another kind (SUVType {kind})")
    if units not in ("BQML", "CNTS"):
      raise _NoSuvError(f"Units {units or 'is missing'}, and SUV needs BQML")
    scale = 1.0
    if units == "CNTS":
      if suv := _philips(slices[0], 0x00):
        return suv, "PET: SUV by the scanner's own factor for counts (Philips, 7053,1000)"
      scale = _philips(slices[0], 0x09)
      if not scale:
        raise _NoSuvError("Units CNTS without the scanner's factors to Bq/ml or SUV")
    dose, how = _decayed_dose(slices)
    weight = _positive(first, "PatientWeight")
    return scale * weight * 1000 / dose, f"PET: SUV by body weight from {units}, {how}"
  except _NoSuvError as reason:
    return None, f"PET stays in {units or 'its own unit'}: {reason}"


def _meaning(tags: Tags, notes: list[str]) -> tuple[Linear | None, str, Window | None]:
  """The map to a unit, the unit, the window in it.

  A lookup table or the rescale tags (C.11.1), or a dose's scaling. Real world values
  (C.7.6.16.2.11) where there is none of these, and for PET where they are SUV or the only ones with
  a unit.
  """
  if tags.is_coloured:
    return None, "", None
  window = _window(tags, notes)
  if tags.item("ModalityLUTSequence"):
    return None, "a.u.", window
  is_pet = tags.modality == "PT"
  found, real = _rescale(tags), _real_world(tags)
  if real and (not found or (is_pet and (found[1] == "a.u." or real[1] == "SUV"))):
    # The window is meant for rescaled values: back to stored ones, and on to real ones.
    slope, intercept = found[0] if found else (1.0, 0.0)
    ends = sorted((end - intercept) / slope * real[0][0] + real[0][1] for end in window or ())
    return *real, (ends[0], ends[1]) if ends else None
  if found:
    notes += found[2]
    return found[0], found[1], window
  if tags.modality in ("PT", "CT"):
    notes.append("no RescaleSlope and RescaleIntercept: stored values are used as they are")
  return (1.0, 0.0), (is_pet and tags.code("Units").upper()) or "a.u.", window


def _rescale(tags: Tags) -> tuple[Linear, str, list[str]] | None:
  """The map of the rescale tags or of a dose, its unit, and notes; None where there is no map."""
  slope, intercept = tags.number("RescaleSlope"), tags.number("RescaleIntercept")
  if slope is None and intercept is None:
    scaling = tags.number("DoseGridScaling")
    return ((scaling, 0.0), tags.code("DoseUnits").upper() or "a.u.", []) if scaling else None
  notes = []
  if slope is None or intercept is None:
    missing, usual = ("RescaleSlope", 1) if slope is None else ("RescaleIntercept", 0)
    notes.append(f"no {missing}: taken as {usual}")
  if slope == 0:
    notes.append("RescaleSlope is 0, which would make every value the same: taken as 1")
  kind = tags.code("RescaleType").upper()
  unit = "a.u." if kind in ("", "US") else kind  # US: unspecified
  if tags.modality == "CT" and kind == "":
    unit = "HU"
  elif tags.modality == "PT":
    unit = tags.code("Units").upper() or unit
  return (slope or 1.0, intercept or 0.0), unit, notes


def _real_world(tags: Tags) -> tuple[Linear, str] | None:
  """The first linear real world map and its unit."""
  slope, intercept = tags.number("RealWorldValueSlope"), tags.number("RealWorldValueIntercept")
  if not slope or intercept is None:
    return None
  unit = tags.item("MeasurementUnitsCodeSequence").code("CodeValue")
  return (slope, intercept), _UCUM.get(unit, unit)


def _window(tags: Tags, notes: list[str]) -> Window | None:
  """The first window (C.11.2.1.2, C.11.2.1.3), as the values that become black and white."""
  centre, width = tags.number("WindowCenter"), tags.number("WindowWidth")
  if centre is None or width is None:
    descriptor = tags.item("VOILUTSequence").numbers("LUTDescriptor", 3)
    if descriptor is None:
      return None
    notes.append("a VOI lookup table stands for the window: its ends are used, straight between")
    return float(descriptor[1]), float(descriptor[1] + (descriptor[0] or 65536) - 1)
  function = tags.text("VOILUTFunction").upper() or "LINEAR"
  if function == "LINEAR":  # the standard's rule for integers
    centre, width = centre - 0.5, width - 1
  elif function == "SIGMOID":
    notes.append("the window is a sigmoid: its straight middle part is used")
  low, high = centre - width / 2, centre + width / 2
  if not high > low:
    notes.append("WindowWidth is too small to be a window: ignored")
    return None
  return low, high


def _pivot(tags: Tags, linear: Linear | None) -> float:
  """The sum of a value and its inverse: the ends of the stored range change places."""
  if linear is None:
    lut = tags.item("ModalityLUTSequence").numbers("LUTDescriptor", 3)
    return 2.0 ** min(16, max(1, lut[2])) - 1 if lut is not None else 65535.0
  bits = tags.number("BitsStored") or tags.number("BitsAllocated") or 16
  # Signed ones run from -2^(bits - 1) to 2^(bits - 1) - 1, unsigned ones from 0 to 2^bits - 1.
  is_signed = tags.number("PixelRepresentation") == 1
  ends = -1 if is_signed else 2.0 ** min(64, max(1, bits)) - 1
  return ends * linear[0] + 2 * linear[1]


def _as_stored(tags: Tags, keyword: str, dtype: np.dtype) -> float | None:
  """A padding tag's value among stored values of a type; None where there is none.

  It has the representation of the pixels (C.7.5.1.1.2), but many programs write its 16 bits with
  the sign of another: 63536 stands for -2000 among signed values, and the other way round.
  """
  value = tags.number(keyword)
  raw = tags.value(keyword) if value is None else None
  if isinstance(raw, bytes) and len(raw) == 2:
    value = float(int.from_bytes(raw, "little" if tags.is_little_endian else "big"))
  if value is None or not -(1 << 15) <= value < 1 << 16:
    return value
  if dtype.kind == "i" and value >= 1 << 15:
    return value - (1 << 16)
  return value + (1 << 16) if dtype.kind == "u" and value < 0 else value


def _to_8_bits(colour: np.ndarray, tags: Tags) -> np.ndarray:
  """Scales colours of any depth to uint8 0..255 by their full range."""
  bits = colour.dtype.itemsize * 8
  if tags.photometric != "PALETTE COLOR":  # its depth is that of the palette, not of the indices
    bits = int(tags.number("BitsStored") or bits)
  return np.rint(colour.astype(np.float64) * (255 / ((1 << bits) - 1))).astype(np.uint8)


class _NoSuvError(Exception):
  """Why there is no SUV."""


def _positive(tags: Tags, keyword: str) -> float:
  value = tags.number(keyword)
  if not value or value < 0:
    raise _NoSuvError(f"no {keyword}")
  return value


def _decayed_dose(slices: list[pydicom.Dataset]) -> tuple[float, str]:
  """The dose in Bq at the time to which the image was corrected, and how that was found."""
  first = Tags(slices[0])
  is_enhanced = first.uid("SOPClassUID") == EnhancedPETImageStorage or first.text("DecayCorrected")
  corrected = first.text("CorrectedImage").upper().split("\\")
  for code, name in (("ATTN", "Attenuation"), ("DECY", "Decay")):
    if is_enhanced and first.code(f"{name}Corrected").upper() != "YES":
      raise _NoSuvError(f"{name}Corrected is not YES")
    if not is_enhanced and code not in corrected:
      raise _NoSuvError(f"CorrectedImage does not list {code} (correction of {name.lower()})")
  given = first.item("RadiopharmaceuticalInformationSequence")
  dose = _positive(given, "RadionuclideTotalDose")
  if is_enhanced and dose < _LEAST_DOSE_BQ:
    dose *= 1e6
  if dose < _LEAST_DOSE_BQ:
    raise _NoSuvError("RadionuclideTotalDose is too small to be in Bq")
  correction = first.code("DecayCorrection").upper()
  if correction == "ADMIN":
    return dose, "decay-corrected to the injection (ADMIN)"
  if correction != "START" and not is_enhanced:
    raise _NoSuvError(f"DecayCorrection {correction or 'is missing'}, and SUV needs START or ADMIN")
  half_life = _positive(given, "RadionuclideHalfLife")
  if is_enhanced:
    start, how = _corrected_to(first), "DecayCorrectionDateTime"
  else:
    start, found = _scan_start(slices, half_life)
    how = f"the scan's start (START, {found})"
  passed = (start - _injection(first, given, start)).total_seconds()
  if not 0 <= passed <= _MOST_HALF_LIVES * half_life:
    raise _NoSuvError("the times of injection and scan do not belong together")
  return dose * 2 ** (-passed / half_life), f"decay-corrected to {how}"


def _corrected_to(tags: Tags) -> datetime.datetime:
  """The time to which enhanced PET is corrected, which it names itself."""
  zone = tags.text("TimezoneOffsetFromUTC")
  time = _parse_time(tags.text("DecayCorrectionDateTime"), zone)
  if time is None:
    raise _NoSuvError("no DecayCorrectionDateTime")
  return time


def _scan_start(slices: list[pydicom.Dataset], half_life: float) -> tuple[datetime.datetime, str]:
  series = _date_time(Tags(slices[0]), "Series")
  acquired = {_date_time(Tags(header), "Acquisition"): Tags(header) for header in slices}
  times = [time for time in acquired if time is not None]
  if series is not None and (not times or series <= min(times)):
    return series, "from SeriesTime"
  if not times:
    raise _NoSuvError("no SeriesDate and SeriesTime, nor AcquisitionDate and AcquisitionTime")
  scan = _parse_time(private_text(slices[0], 0x0009, "GEMS_PETD_01", 0x0D))
  if scan is not None:
    return scan, "from GE's scan time"
  earliest = min(times)
  reference = acquired[earliest].number("FrameReferenceTime")  # ms after the scan's start
  duration = acquired[earliest].number("ActualFrameDuration")  # ms
  if reference is None or reference <= 0 or not duration or duration < 0:
    raise _NoSuvError("SeriesTime is missing or after the scan, and no other tag has its start")
  decay = math.log(2) / half_life
  decayed = decay * duration / 1000
  average = math.log(decayed / -math.expm1(-decayed)) / decay
  shift = datetime.timedelta(seconds=average - reference / 1000)
  return earliest + shift, "from FrameReferenceTime"


def _injection(tags: Tags, given: Tags, start: datetime.datetime) -> datetime.datetime:
  injected = _parse_time(
    given.text("RadiopharmaceuticalStartDateTime"), tags.text("TimezoneOffsetFromUTC")
  )
  if injected is not None:
    return injected
  time = given.text("RadiopharmaceuticalStartTime").replace(":", "")
  injected = _parse_time(f"{start:%Y%m%d}{time}") if time else None
  if injected is None:
    raise _NoSuvError("no RadiopharmaceuticalStartDateTime or RadiopharmaceuticalStartTime")
  return injected if injected <= start else injected - datetime.timedelta(days=1)


def _date_time(tags: Tags, event: str) -> datetime.datetime | None:
  date, time = tags.text(f"{event}Date"), tags.text(f"{event}Time")
  # The separators of the standard's ancestor, ACR-NEMA, may still be read.
  return _parse_time(date.replace(".", "") + time.replace(":", "")) if date and time else None


def _parse_time(stamp: str, zone: str = "") -> datetime.datetime | None:
  """Parses YYYYMMDDHHMM[SS[.FFFFFF]]; one that names a zone is told in that of `zone` ("+0100")."""
  if not re.match(r"\d{12}", stamp):
    return None
  try:
    found = DT(stamp)
    if found.tzinfo is not None and re.fullmatch(r"[+-]\d{4}", zone):
      found = found.astimezone(datetime.datetime.strptime(zone, "%z").tzinfo)
    return datetime.datetime(*found.timetuple()[:6], found.microsecond)
  except (ValueError, OverflowError):
    return None


def _philips(header: pydicom.Dataset, element: int) -> float:
  """One of the scanner's factors, 0 where there is none."""
  with contextlib.suppress(ValueError):
    factor = float(private_text(header, 0x7053, "Philips PET Private Group", element))
    return factor if 0 < factor < math.inf else 0.0
  return 0.0
