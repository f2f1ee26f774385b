"""PET in standardised uptake values by body weight (SUVbw, g/ml).

    SUVbw = activity concentration [Bq/ml] x patient's weight [g] / dose [Bq],

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
* Units GML are SUV already (SUVType BW or none); units CNTS have Philips' private factors.

What remains in the syringe is not known to the header, and not subtracted.
"""

import datetime
import math
import re

import pydicom

from dmfnet_jax.data import dicom_headers as headers

# The tag is in Bq for PET and in MBq for nuclear medicine, and some write MBq in PET as well: less
# than this is no dose that could be imaged.
_LEAST_DOSE_BQ = 1e4
# Farther from the injection than this there is nothing to see: the times are not of one day.
_MOST_HALF_LIVES = 12


class _NoSuvError(Exception):
  """Why there is no SUV."""


def suv_factor(slices: list[pydicom.Dataset]) -> tuple[float | None, str]:
  """Finds what rescaled values of a PET series are to be multiplied with; call inside `quiet()`.

  Args:
    slices: the headers of the series.

  Returns:
    (factor, how it came about), or (None, why there is none); one line without patient data.
  """
  first = slices[0]
  units = headers.code(first, "Units").upper()
  try:
    if units == "GML":
      kind = headers.code(first, "SUVType").upper()
      if kind not in ("", "BW"):
        raise _NoSuvError(f"these are SUV of another kind (SUVType {kind})")
      return 1.0, "PET: Units GML, which are SUV by body weight"
    if units not in ("BQML", "CNTS"):
      raise _NoSuvError(f"Units {units or 'is missing'}, and SUV needs BQML")
    scale = 1.0
    if units == "CNTS":
      suv = _philips(first, 0x00)
      if suv:
        return suv, "PET: SUV by the scanner's own factor for counts (Philips, 7053,1000)"
      scale = _philips(first, 0x09) or 0.0
      if not scale:
        raise _NoSuvError("Units CNTS without the scanner's factors to Bq/ml or SUV")
    dose, how = _decayed_dose(slices)
    weight = headers.number(first, "PatientWeight")
    if not weight or weight < 0:
      raise _NoSuvError("no PatientWeight")
    return scale * weight * 1000 / dose, f"PET: SUV by body weight from {units}, {how}"
  except _NoSuvError as reason:
    return None, f"PET stays in {units or 'its own unit'}: {reason}"


def _decayed_dose(slices: list[pydicom.Dataset]) -> tuple[float, str]:
  """The dose in Bq at the time to which the image was corrected, and how that was found."""
  first = slices[0]
  corrected = headers.text(first, "CorrectedImage").upper().split("\\")
  for code, name in (("ATTN", "attenuation"), ("DECY", "decay")):
    if code not in corrected:
      raise _NoSuvError(f"CorrectedImage does not list {code} (correction of {name})")
  dose_item = headers.item(first, "RadiopharmaceuticalInformationSequence")
  dose = headers.number(dose_item, "RadionuclideTotalDose")
  if not dose or dose < 0:
    raise _NoSuvError("no RadionuclideTotalDose")
  if dose < _LEAST_DOSE_BQ:
    raise _NoSuvError("RadionuclideTotalDose is too small to be in Bq")

  correction = headers.code(first, "DecayCorrection").upper()
  if correction == "ADMIN":
    return dose, "decay-corrected to the injection (ADMIN)"
  if correction != "START":
    raise _NoSuvError(f"DecayCorrection {correction or 'is missing'}, and SUV needs START or ADMIN")
  half_life = headers.number(dose_item, "RadionuclideHalfLife")
  if not half_life or half_life < 0:
    raise _NoSuvError("no RadionuclideHalfLife")
  start, how = _scan_start(slices, half_life)
  passed = (start - _injection(first, dose_item, start)).total_seconds()
  if not 0 <= passed <= _MOST_HALF_LIVES * half_life:
    raise _NoSuvError("the times of injection and scan do not belong together")
  return dose * 2 ** (-passed / half_life), f"decay-corrected to the scan's start (START, {how})"


def _scan_start(slices: list[pydicom.Dataset], half_life: float) -> tuple[datetime.datetime, str]:
  series = _date_time(slices[0], "Series")
  acquired = {_date_time(header, "Acquisition"): header for header in slices}
  times = [time for time in acquired if time is not None]
  if not times:
    if series is None:
      raise _NoSuvError("no SeriesDate and SeriesTime, nor AcquisitionDate and AcquisitionTime")
    return series, "from SeriesTime"
  earliest = min(times)
  if series is not None and series <= earliest:
    return series, "from SeriesTime"

  ge = _private(slices[0], 0x0009, "GEMS_PETD_01", 0x0D)
  if (scan := _parse_date_time(ge)) is not None:
    return scan, "from GE's scan time"
  reference = headers.number(acquired[earliest], "FrameReferenceTime")  # ms after the scan's start
  duration = headers.number(acquired[earliest], "ActualFrameDuration")  # ms
  if reference is None or reference <= 0 or not duration or duration < 0:
    raise _NoSuvError("SeriesTime is missing or after the scan, and no other tag has its start")
  decay = math.log(2) / half_life
  decayed = decay * duration / 1000
  average = math.log(decayed / -math.expm1(-decayed)) / decay
  shift = datetime.timedelta(seconds=average - reference / 1000)
  return earliest + shift, "from FrameReferenceTime"


def _injection(
  header: pydicom.Dataset, dose_item: pydicom.Dataset | None, start: datetime.datetime
) -> datetime.datetime:
  stamp = headers.text(dose_item, "RadiopharmaceuticalStartDateTime")
  injected = _parse_date_time(stamp)
  if injected is not None:
    zone = _zone(stamp)
    local = _zone(headers.text(header, "TimezoneOffsetFromUTC"))
    return injected if zone is None or local is None else injected + (local - zone)
  time = headers.text(dose_item, "RadiopharmaceuticalStartTime").replace(":", "")
  injected = _parse_date_time(f"{start:%Y%m%d}{time}") if time else None
  if injected is None:
    raise _NoSuvError("no RadiopharmaceuticalStartDateTime or RadiopharmaceuticalStartTime")
  return injected if injected <= start else injected - datetime.timedelta(days=1)


def _date_time(header: pydicom.Dataset, event: str) -> datetime.datetime | None:
  date, time = headers.text(header, f"{event}Date"), headers.text(header, f"{event}Time")
  # The separators of the standard's ancestor, ACR-NEMA, may still be read.
  return _parse_date_time(date.replace(".", "") + time.replace(":", "")) if date and time else None


def _parse_date_time(stamp: str) -> datetime.datetime | None:
  """Parses DICOM's YYYYMMDDHHMMSS.FFFFFF; seconds may be missing."""
  match = re.match(r"(\d{8})(\d\d)(\d\d)(\d\d)?(\.\d{1,6})?", stamp)
  if match is None:
    return None
  date, hour, minute, second, fraction = match.groups()
  try:
    day = datetime.datetime.strptime(date, "%Y%m%d")
    seconds = int(second or 0) + float(fraction or 0)
    if int(hour) > 23 or int(minute) > 59 or seconds >= 61:
      return None
    return day + datetime.timedelta(hours=int(hour), minutes=int(minute), seconds=seconds)
  except ValueError:
    return None


def _zone(stamp: str) -> datetime.timedelta | None:
  match = re.search(r"([+-])(\d\d)(\d\d)$", stamp)
  if match is None:
    return None
  offset = datetime.timedelta(hours=int(match[2]), minutes=int(match[3]))
  return -offset if match[1] == "-" else offset


def _philips(header: pydicom.Dataset, element: int) -> float | None:
  value = _private(header, 0x7053, "Philips PET Private Group", element)
  try:
    factor = float(value)
  except ValueError:
    return None
  return factor if math.isfinite(factor) and factor > 0 else None


def _private(header: pydicom.Dataset, group: int, creator: str, element: int) -> str:
  """A private tag as text, "" where there is none."""
  try:
    value = header.private_block(group, creator)[element].value
  except Exception:  # no such block, no such tag, or a value that cannot be parsed
    return ""
  return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip(" \0")
