"""Windows: which measured values become black and white.

A window is (lo, hi). What a user asks for may also depend on the values (percentiles) or hold for
one unit only (Hounsfield units, SUV): a `Rule`.

Without anything asked for it is, in this order,

1. the one that the file names, as DICOM files do;
2. of PET, SPECT and other nuclear medicine 0 to the largest value. Percentiles would make a small
   lesion as white as what surrounds it;
3. the percentiles 0.5 and 99.5 of what is not zero.
"""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import modalities

Window = tuple[float, float]

AUTO = "auto"
"""Instead of two numbers: the percentiles."""

PERCENTILES = (0.5, 99.5)
"""Of the finite voxels that are not zero."""


class Rule(NamedTuple):
  """A window that a user asks for by more than two numbers.

  Attributes:
    ends: black and white: values, or percentiles of the finite values that are not zero.
    is_percentile: of each end.
    unit: that the values must have, or may have where it is not known; "" for any.
    name: in the user's words.
  """

  ends: Window
  is_percentile: tuple[bool, bool]
  unit: str
  name: str


Asked = Window | Rule | str | None  # the text is `AUTO`; None: nothing was asked for

# Width and level in HU, as the head, its bone and the chest are usually read.
_PRESETS = {"brain": (80, 40), "bone": (1800, 400), "lung": (1500, -600)}
PRESETS = tuple(_PRESETS)

_SUV = "suv:"
_WIDTH_LEVEL = re.compile(r"w([\d.]+)\s*l(-?[\d.]+)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class UsedWindow:
  """A window, where it came from, and how many values lie above it."""

  window: Window
  origin: str  # such as "given", "file" or "percentiles 0.5 and 99.5"
  unit: str = ""
  above: int = 0

  @property
  def ends(self) -> str:
    """The two ends and the unit."""
    return describe(self.window) + (f" {self.unit}" if self.unit else "")

  def __str__(self) -> str:
    return f"{self.ends} ({self.origin})"


def parse_window(text: str) -> Window | Rule | str:
  """Reads a window from a command line.

  Returns:
    (lo, hi) of "lo,hi", or of "WwLl" (width and level, so l - w / 2 and l + w / 2); `AUTO` of
    "auto"; a `Rule` of one of `PRESETS`, of "suv:lo,hi", and where an end is a percentile, as in
    "0%,99%" and "0,99.9%".

  Raises:
    UserError: it is none of these, a number is not finite, or lo is not below hi.
  """
  asked = text.strip().lower()
  if asked == AUTO:
    return AUTO
  if asked in _PRESETS:
    width, level = _PRESETS[asked]
    return Rule(_around(level, width), (False, False), "HU", asked)
  is_suv = asked.startswith(_SUV)
  try:
    if match := _WIDTH_LEVEL.fullmatch(asked):
      ends, is_percentile = _around(float(match[2]), float(match[1])), (False, False)
    else:
      parts = [part.strip() for part in asked.removeprefix(_SUV).split(",")]
      low, high = (float(part.removesuffix("%")) for part in parts)
      ends, is_percentile = (low, high), (parts[0].endswith("%"), parts[1].endswith("%"))
  except ValueError:
    raise UserError(
      f"window {text!r}: give two numbers LO,HI (percentiles with %), suv:LO,HI, W80L40 for width "
      f"and level, {', '.join(PRESETS)}, or {AUTO}"
    ) from None
  if not all(map(math.isfinite, ends)):
    raise UserError(f"window {text!r}: LO must lie below HI, and both must be finite")
  if is_percentile[0] == is_percentile[1] and not ends[0] < ends[1]:
    raise UserError(f"window {text!r}: LO must lie below HI, and both must be finite")
  if any(x and not 0 <= end <= 100 for x, end in zip(is_percentile, ends, strict=True)):
    raise UserError(f"window {text!r}: percentiles lie between 0% and 100%")
  if any(is_percentile) or is_suv:
    return Rule(ends, is_percentile, "SUV" if is_suv else "", text.strip())
  return ends


def choose_window(
  data: np.ndarray,
  name: Any,
  asked: Asked = None,
  *,
  of_file: Window | None = None,
  unit: str = "",
  modality: str = "",
) -> UsedWindow:
  """The window that the user asks for, or else the default that the module describes.

  Args:
    data: the values, of any shape and real dtype.
    name: what an error begins with, such as their path.
    asked: see `parse_window`.
    of_file: the window that the file names.
    unit: of the values, "" where unknown.
    modality: see `modalities`.

  Raises:
    UserError: there is nothing to see in the data, or they have another unit than the user's words.
  """
  try:
    if isinstance(asked, Rule):
      found, origin = _apply(asked, data, unit), asked.name
      unit = unit or asked.unit  # the user says so
    elif isinstance(asked, tuple):
      found, origin = asked, "given"
    elif asked is None and of_file is not None:
      found, origin = of_file, "file"
    elif asked is None and modality in modalities.FUNCTIONAL:
      found, origin = _activity_window(data), f"0 to the maximum, as {modality}"
    else:
      found, origin = percentile_window(data), "percentiles {:g} and {:g}".format(*PERCENTILES)
  except UserError as error:
    raise UserError(f"{name}: {error}") from error
  return UsedWindow(found, origin, unit, int(np.count_nonzero(data > found[1])))


def percentile_window(data: np.ndarray) -> Window:
  """The window from `PERCENTILES` of the values that are finite and not zero.

  Zero is left out because it is what surrounds a head, in any amount. The result is rounded to six
  digits, so that what is printed is what was used. Where the percentiles fall together (a mask, a
  few hot voxels) it is the whole range. Any shape, any real dtype.

  Returns:
    (lo, hi) with lo < hi.

  Raises:
    UserError: all values are the same, or none is finite.
  """
  whole = _range(data)
  low, high = _percentiles(data, PERCENTILES)
  return (low, high) if low < high else whole


def describe(window: Window) -> str:
  """A window in words that lose nothing: "-20 to 80"."""
  return f"{number(window[0])} to {number(window[1])}"


def number(value: float) -> str:
  """The shortest text that reads back as the same number."""
  return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _around(level: float, width: float) -> Window:
  return level - width / 2, level + width / 2


def _range(data: np.ndarray) -> Window:
  finite = data[np.isfinite(data)]
  if not finite.size:
    raise UserError("holds no finite value")
  whole = float(finite.min()), float(finite.max())
  if whole[0] == whole[1]:
    raise UserError(f"every value is {whole[0]:g}: there is nothing to fuse")
  return whole


def _percentiles(data: np.ndarray, percentiles: Window) -> Window:
  signal = data[np.isfinite(data) & (data != 0)].astype(np.float64)
  low, high = (float(f"{value:.6g}") for value in np.percentile(signal, percentiles))
  return low, high


def _activity_window(data: np.ndarray) -> Window:
  highest = _range(data)[1]
  if highest <= 0:
    raise UserError("holds no value above 0, where activity begins: give a window")
  # To six digits, upward: no value lies above what is printed.
  digit = 10.0 ** (math.floor(math.log10(highest)) - 5)
  return 0.0, float(f"{math.ceil(highest / digit) * digit:.6g}")


def _apply(rule: Rule, data: np.ndarray, unit: str) -> Window:
  """The values of a rule's ends."""
  if rule.unit and unit not in ("", rule.unit):
    raise UserError(f"window {rule.name} is for values in {rule.unit}, and these are in {unit}")
  if not any(rule.is_percentile):
    return rule.ends
  whole = _range(data)
  asked = zip(rule.ends, rule.is_percentile, strict=True)
  low, high = (_percentiles(data, (end, end))[0] if x else end for end, x in asked)
  if low < high:
    return low, high
  if all(rule.is_percentile):
    return whole
  raise UserError(f"window {rule.name}: of these values that is {describe((low, high))}, LO first")
