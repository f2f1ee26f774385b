"""A DICOM series in memory, and where in the patient its voxels lie.

Coordinates are DICOM's patient coordinates in mm unless said otherwise: LPS, that is x to the
patient's left, y to the back, z to the head (PS3.3 C.7.6.2.1.1). NIfTI's are RAS: x and y negated.
"""

import dataclasses
from typing import Any

import numpy as np
import pydicom

from dmfnet_jax.data import dicom_headers as headers

# Slices are even where none lies farther from its place than this part of the distance between two.
_EVENNESS = 0.01


@dataclasses.dataclass(eq=False, repr=False)
class DicomVolume:
  """The images of one series, sorted along the normal of the slices.

  Its `repr` shows shape, unit and modality only: headers hold the patient's name, and a
  representation ends up in logs and tracebacks.

  Attributes:
    data: float32 [slices, rows, columns] in `unit`; [slices, rows, columns, 3] with values 0..255,
      red first, where the series is coloured (`unit` is then "RGB").
    unit: "HU", "SUV" (g/ml, by body weight), "GY", "RGB", for PET that could not be made SUV its
      own unit ("BQML", "CNTS", ...), "a.u." where the file names none.
    window: the file's display window (low, high) in `unit`, or None.
    datasets: one header a slice, without pixels; slices of one multi-frame file share theirs. They
      hold patient data.
    frames: number of each slice in its file, from 0; None for a file of one image.
    files: the file of each slice.
    positions: float64 [slices, 3], the centre of each slice's first voxel, or None where unknown.
    orientation: float64 [6], the direction of a row (increasing column) and of a column (increasing
      row), unit vectors, or None.
    pixel_spacing: (distance between rows, between columns) in mm, or None.
    slice_thickness: in mm, or None.
    slice_spacing: signed distance of neighbouring slices in mm as the header says it, or None; used
      where there is one slice.
    modality: as in the header, "CT", "PT", "MR", ...
    inverted: MONOCHROME1 (low is white) was turned, so that high values are bright as elsewhere.
    skipped: (file, reason) of the files that were left out.
    notes: one line each on what the reader had to decide or could not do; no patient data.
  """

  data: np.ndarray
  unit: str
  window: tuple[float, float] | None
  datasets: list[pydicom.Dataset]
  frames: list[int | None]
  files: list[Any]
  positions: np.ndarray | None = None
  orientation: np.ndarray | None = None
  pixel_spacing: tuple[float, float] | None = None
  slice_thickness: float | None = None
  slice_spacing: float | None = None
  modality: str = ""
  inverted: bool = False
  skipped: list[tuple[Any, str]] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)

  def __repr__(self) -> str:
    return f"DicomVolume({self.modality or '?'}, shape={self.data.shape}, unit={self.unit!r})"

  @property
  def is_rgb(self) -> bool:
    """Whether the last axis of `data` is colour."""
    return self.data.ndim == 4

  @property
  def frame_of_reference(self) -> str:
    """UID of the coordinate system; volumes that share it lie in one place. "" where unknown."""
    with headers.quiet():
      return str(headers.uid(self.datasets[0], "FrameOfReferenceUID"))

  @property
  def slice_step(self) -> np.ndarray | None:
    """float64 [3], from one slice to the next, in mm; None where unknown or not even.

    The mean over the series. For one slice: along the normal, as far as the header's spacing, or
    else thickness says.
    """
    if self.positions is None or self.orientation is None:
      return None
    if len(self.positions) == 1:
      distance = self.slice_spacing or self.slice_thickness
      return None if distance is None else normal_of(self.orientation) * abs(distance)
    step = (self.positions[-1] - self.positions[0]) / (len(self.positions) - 1)
    even = self.positions[0] + np.arange(len(self.positions))[:, None] * step
    off = np.linalg.norm(self.positions - even, axis=1).max()
    return step if off <= _EVENNESS * np.linalg.norm(step) else None

  @property
  def affine_lps(self) -> np.ndarray | None:
    """float64 [4, 4] from (slice, row, column, 1), the indices of `data`, to LPS mm.

    None where the geometry is unknown or the slices are not even (1 % of their distance).
    """
    step = self.slice_step
    if step is None or self.pixel_spacing is None:
      return None
    assert self.positions is not None
    assert self.orientation is not None
    row_spacing, column_spacing = self.pixel_spacing
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = self.orientation[3:] * row_spacing  # the next row lies along a column
    affine[:3, 2] = self.orientation[:3] * column_spacing
    affine[:3, 3] = self.positions[0]
    return affine

  @property
  def affine(self) -> np.ndarray | None:
    """float64 [4, 4] from the indices of `data` to RAS mm: NIfTI's affine for this array as it is.

    None where `affine_lps` is.
    """
    affine = self.affine_lps
    return None if affine is None else np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

  def world(self, indices: np.ndarray) -> np.ndarray:
    """Maps voxels to patient coordinates, by each slice's own position (slices need not be even).

    Args:
      indices: [..., 3] (slice, row, column); the slice is an integer.

    Returns:
      float64 [..., 3], LPS in mm.

    Raises:
      ValueError: the geometry is unknown.
    """
    if self.positions is None or self.orientation is None or self.pixel_spacing is None:
      raise ValueError("the series has no geometry: ImagePositionPatient or the like is missing")
    indices = np.asarray(indices)
    row_spacing, column_spacing = self.pixel_spacing
    return (
      self.positions[indices[..., 0].astype(int)]
      + indices[..., 1:2] * self.orientation[3:] * row_spacing
      + indices[..., 2:3] * self.orientation[:3] * column_spacing
    )


def normal_of(orientation: np.ndarray) -> np.ndarray:
  """The unit normal of slices: row direction x column direction of float64 [6]."""
  normal = np.cross(orientation[:3], orientation[3:])
  return normal / np.linalg.norm(normal)
