"""Siemens mosaics: one image that holds the slices of a volume side by side, as tiles.

Such an image has one position, that of no slice, so it cannot be fused as it is stored. Called
inside `headers.quiet()`.
"""

import math
from typing import Any

import numpy as np
import pydicom

from dmfnet_jax.errors import UserError
from dmfnet_jax.io.dicom.headers import private_text

_WAY_OUT = "convert it (dcm2niix) first"


def check_mosaic(frames: list[Any]) -> str:
  """Refuses images that are mosaics; returns a note where only ImageType calls them so, else "".

  ImageType alone may lie: converted series keep it with one file a slice. Then their places differ,
  which those of the mosaics of a time series do not.

  Args:
    frames: `read.Frame`s of one series.

  Raises:
    UserError: they are mosaics.
  """
  places = {tuple(frame.position) for frame in frames if frame.position is not None}
  first = frames[0]
  if len(places) > 1 or not first.single:
    return ""
  rows, columns = first.shape[:2]
  count = _slice_count(first.header)
  tiles = math.ceil(math.sqrt(count))
  if tiles > 1 and rows % tiles == 0 and columns % tiles == 0:
    raise UserError(f"a Siemens mosaic of {count} slices in one image: {_WAY_OUT}")
  if count or "MOSAIC" not in first.tags.text("ImageType").upper().split("\\"):
    return ""
  matrix = first.tags.numbers("AcquisitionMatrix", 4)
  if matrix is not None and 0 < 2 * np.max(matrix) > max(rows, columns):
    return ""  # no room for tiles
  return (
    "ImageType calls it a mosaic: if it shows several slices side by side, they are fused as one "
    f"slice, at a wrong place: {_WAY_OUT}"
  )


def _slice_count(header: pydicom.Dataset) -> int:
  """Slices of a mosaic, 0 where the scanner does not say."""
  try:
    if said := private_text(header, 0x0019, "SIEMENS MR HEADER", 0x0A):
      return int(said)
    from nibabel.nicom import csareader  # it warns of being experimental: here that is silenced

    csa = csareader.get_csa_header(header, "image")
    return int((csa and csareader.get_n_mosaic(csa)) or 0)
  except Exception:  # a broken private header says nothing
    return 0
