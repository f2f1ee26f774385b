"""Reads a volume of any kind."""

from typing import Any

from dmfnet_jax.io import nifti, other_volumes, paths
from dmfnet_jax.io.grids import Volume

DICOM = "DICOM series"


def read_volume(path: Any, kind: str) -> Volume:
  """Reads a DICOM file or the series of a folder if `kind` is `DICOM`, else a NIfTI file.

  With NIfTI files go the other formats of `other_volumes`.

  Raises:
    UserError: it cannot be read, or is not one volume.
  """
  if kind != DICOM:
    is_other = other_volumes.is_other(paths.as_path(path))
    return other_volumes.read_other(path) if is_other else nifti.read_nifti(path)
  from dmfnet_jax.io.dicom import read_dicom  # it loads pydicom

  return read_dicom(path)
