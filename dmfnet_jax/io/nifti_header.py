"""What NIfTI headers say of place, their usual faults mended: units, quaternions, two forms."""

import itertools
from typing import Any

import nibabel
import numpy as np

_UNITS = {1: ("metres", 1e3), 3: ("micrometres", 1e-3)}  # by the code of the unit: its mm
_MM = 2
_UNIT_BITS = 0b111  # of xyzt_units; the others are the unit of time
_FALSE = 0.25  # of the thinnest edge of a voxel: a qform that is off by more is false
_ROUNDING = 1e-3  # by so much a quaternion may be too long without a word


def mend(header: Any) -> list[str]:
  """Turns a header's lengths into mm and its quaternion into a rotation, in place.

  The unit of `xyzt_units` is that of voxel sizes and places (NIfTI-1's nifti1.h); where it is
  unknown they are in mm. Of the qform's quaternion three numbers are stored, the fourth follows
  from its length, 1: rounded ones may be longer, which is read as a turn of 180 degrees, as
  nifticlib does.

  Args:
    header: a `nibabel.Nifti1Header` or `Nifti2Header`, of any byte order.

  Returns:
    What to tell, a line each.
  """
  notes = []
  vector = np.array([header[f"quatern_{letter}"] for letter in "bcd"], np.float64)
  length = float(np.linalg.norm(vector))
  if 1 < length < np.inf:
    for letter, value in zip("bcd", vector / length, strict=True):
      header[f"quatern_{letter}"] = value
    if length > 1 + _ROUNDING:
      notes.append(
        f"its qform's quaternion is {length:.4g} long, where 1 is the most: taken as a turn of 180 "
        "degrees"
      )
  name, factor = _unit(header)
  if name:
    header["pixdim"][1:4] *= factor
    for axis in "xyz":
      header[f"qoffset_{axis}"] *= factor
      header[f"srow_{axis}"] *= factor
    header["xyzt_units"] = (int(header["xyzt_units"]) & ~_UNIT_BITS) | _MM
    notes.append(f"its unit is {name}: places are taken in mm")
  return notes


def mm_of_unit(header: Any) -> float:
  """How many mm a header's unit of length is."""
  return _unit(header)[1]


def forms_apart(header: Any, shape: tuple[int, ...]) -> float:
  """By how many mm a header's sform and qform differ at most within a volume [I, J, K].

  0 where one of them is not given or broken.
  """
  if not (header["sform_code"] and header["qform_code"]):
    return 0.0
  try:
    difference = header.get_sform() - header.get_qform()
  except (nibabel.spatialimages.HeaderDataError, ValueError):  # of the qform: not used
    return 0.0
  corners = list(itertools.product(*((0, max(length - 1, 0)) for length in (*shape, 1, 1)[:3])))
  return float(np.linalg.norm(nibabel.affines.apply_affine(difference, corners), axis=1).max())


def drop_false_qform(header: Any, shape: tuple[int, ...]) -> bool:
  """Sets the qform's code to 0 where it does not give the place that the sform gives.

  A code above 0 asserts the place, and some programs prefer the qform, which holds no shear, such
  as that of a tilted gantry. Two codes that differ are two places meant (scanner, template): they
  stay.

  Returns:
    Whether the code was set.
  """
  apart = forms_apart(header, shape)
  edge = float(np.min(np.abs(nibabel.affines.voxel_sizes(header.get_best_affine()))))
  if header["sform_code"] != header["qform_code"] or apart <= _FALSE * edge:
    return False
  header["qform_code"] = 0
  return True


def _unit(header: Any) -> tuple[str, float]:
  return _UNITS.get(int(header["xyzt_units"]) & _UNIT_BITS, ("", 1.0))
