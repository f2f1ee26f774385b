"""Volumes in memory: where their voxels lie, whether two lie alike, and their slices as pictures.

World coordinates are NIfTI's: RAS, that is x to the patient's right, y to the front, z to the head,
in mm. A volume's affine maps its array indices (i, j, k, 1) there.

Slices are shown to the network as radiology shows them and as it was trained: axial nose up,
coronal and sagittal vertex up, the patient's right on the left of axial and coronal pictures, the
nose on the left of sagittal ones. Slices count from left to right, back to front, foot to head. For
an oblique volume the array axis that is nearest to each of these stands for it; nothing is
interpolated. So a volume fuses alike however its file stores the axes, and the way back puts every
voxel where it came from.
"""

import dataclasses
import itertools
import math
from typing import Any

import nibabel
import numpy as np
from nibabel import processing

from dmfnet_jax.errors import UserError
from dmfnet_jax.io.windows import Window

TOLERANCE = 0.05
"""Two grids are the same where no corner lies farther apart than this part of A's thinnest edge."""

PLANES = ("sagittal", "coronal", "axial")
"""By the world axis (x, y, z) of their normal."""

UNPLACED = np.diag([-1.0, -1.0, 1.0, 1.0])
"""For [columns, rows, slices] of unknown place: axial slices, to be shown as stored."""


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
  """A scalar or coloured volume.

  Attributes:
    data: float32 [I, J, K], finite; or uint8 [I, J, K, 3], red first.
    affine: float64 [4, 4], from (i, j, k, 1) to RAS mm.
    placed: whether the file says where the volume lies; otherwise `affine` is a convention.
    window: (lo, hi) that the file asks to be shown with, or None.
    unit: such as "HU" or "SUV"; "" where unknown.
    source: what the reader keeps for writing a result like the file: NIfTI's header, DICOM's image
      of each slice. Left out of the `repr`, which ends up in logs: headers name the patient.
    notes: what the user should know about it, a line each.
    frame_uid: DICOM's name of the coordinate system, by which the scanner says that volumes lie in
      one place; "" where unknown.
    positions: float64 [K, 3], where the slices of an uneven series lie, which no affine can say:
      their first voxels in RAS mm; None where the affine says it, or nothing does.
    steps: float64 [2, 3], in such a series from a voxel to the next along i and j in RAS mm; None
      where its pixel spacing is unknown.
    unit_from: how the values came to be in `unit`, where that is worth telling.
    modality: such as "PET" or "T1w", see `modalities`; "" where unknown.
  """

  data: np.ndarray
  affine: np.ndarray
  placed: bool = True
  window: Window | None = None
  unit: str = ""
  source: Any = dataclasses.field(default=None, repr=False)
  notes: tuple[str, ...] = ()
  frame_uid: str = ""
  positions: np.ndarray | None = None
  steps: np.ndarray | None = None
  modality: str = ""
  unit_from: str = ""

  @property
  def is_rgb(self) -> bool:
    """Whether the last axis is colour."""
    return self.data.ndim == 4

  @property
  def shape(self) -> tuple[int, ...]:
    """Voxels along i, j, k."""
    return self.data.shape[:3]

  @property
  def axes(self) -> str:
    """Where the array's axes point, such as "RAS"."""
    return "".join(nibabel.aff2axcodes(self.affine))

  @property
  def voxel_size(self) -> np.ndarray:
    """float64 [3], the edges of a voxel in mm."""
    return nibabel.affines.voxel_sizes(self.affine)


def is_usable(affine: np.ndarray) -> bool:
  """Whether an affine gives every voxel a place of its own."""
  if affine.shape != (4, 4) or not np.isfinite(affine).all():
    return False
  edges = nibabel.affines.voxel_sizes(affine)
  if not edges.all():
    return False
  # Of the directions alone: voxels may be as small as they like.
  return bool(abs(np.linalg.det(affine[:3, :3] / edges)) > 1e-3)


def difference(a: Volume, b: Volume) -> str:
  """Says how the grids of two volumes differ, or "" where they are the same within `TOLERANCE`.

  Array shape, orientation (which way the axes are stored), voxel size and place are compared. An
  uneven series has no affine: of it and any other the places of their slices. Where a volume does
  not know its place at all, only the shape.
  """
  parts = []
  if a.shape != b.shape:
    parts.append(f"{_times(a.shape)} against {_times(b.shape)} voxels")
  if not (a.placed and b.placed):
    return "; ".join(parts or _apart_by_slices(a, b))
  if a.axes != b.axes:
    parts.append(f"axes stored as {a.axes} against {b.axes}")
  tolerance = TOLERANCE * a.voxel_size.min()
  if np.abs(a.voxel_size - b.voxel_size).max() > tolerance:
    parts.append(f"voxels of {_times(a.voxel_size)} against {_times(b.voxel_size)} mm")
  if a.shape == b.shape:
    apart = np.linalg.norm(_corners(a) - _corners(b), axis=1).max()
    same = f"the same voxel up to {apart:.3g} mm apart (tolerance {tolerance:.2g} mm)"
  else:
    apart = np.linalg.norm(a.affine[:3, 3] - b.affine[:3, 3])
    same = f"first voxels {apart:.3g} mm apart"
  if apart > tolerance:
    parts.append(same)
  return "; ".join(parts)


def other_frame(a: Volume, b: Volume, letter: str = "B") -> str:
  """Says that two series name different coordinate systems, or "" where they do not, or neither.

  `letter` is what the second one is called, here and below.
  """
  if not a.frame_uid or not b.frame_uid or a.frame_uid == b.frame_uid:
    return ""
  names = [f"...{volume.frame_uid[-12:]}" for volume in (a, b)]
  if names[0] == names[1]:
    names = [a.frame_uid, b.frame_uid]
  return (
    f"A and {letter} name different frames of reference (FrameOfReferenceUID {names[0]} and "
    f"{names[1]}): nothing says that they are registered"
  )


def resample(b: Volume, a: Volume, letter: str = "B") -> Volume:
  """Puts B, or another `letter`, on A's grid by the two affines.

  Where B lies on the same grid and is only stored with other axes, its voxels are reordered and
  keep their values; otherwise they are interpolated linearly (nibabel's `resample_from_to`), and
  what lies outside B gets its smallest value.

  Returns:
    B with A's shape and affine.

  Raises:
    UserError: either place is unknown, or the two do not overlap.
  """
  if is_uneven(a) or is_uneven(b):
    raise UserError(f"cannot resample: {uneven_advice(a, b, letter)}")
  if not (a.placed and b.placed):
    raise UserError("cannot resample: the file does not say where its voxels lie")
  ways = [nibabel.io_orientation(volume.affine) for volume in (b, a)]
  turn = nibabel.orientations.ornt_transform(*ways)
  turned = dataclasses.replace(
    b,
    data=nibabel.apply_orientation(b.data, turn),
    affine=b.affine @ nibabel.orientations.inv_ornt_aff(turn, b.shape),
  )
  if not difference(a, turned):
    return dataclasses.replace(turned, affine=a.affine)

  inside = nibabel.affines.apply_affine(np.linalg.inv(b.affine), _corners(a))
  if (inside.max(0) < -0.5).any() or (inside.min(0) > np.array(b.shape) - 0.5).any():
    raise UserError(
      f"A and {letter} do not overlap where their headers place them: register {letter} to A first"
    )
  moved = []
  for channel in np.moveaxis(b.data, -1, 0) if b.is_rgb else [b.data]:
    image = nibabel.Nifti1Image(channel.astype(np.float32), b.affine)
    grid, lowest = (a.shape, a.affine), float(channel.min())
    result = processing.resample_from_to(image, grid, order=1, cval=lowest)
    moved.append(np.asarray(result.dataobj, np.float32))
  data = np.rint(np.stack(moved, -1)).astype(np.uint8) if b.is_rgb else moved[0]
  return dataclasses.replace(b, data=data, affine=a.affine)


def with_data(volume: Volume, data: np.ndarray) -> Volume:
  """A volume's place with other data, whose voxels may be parts of its voxels.

  Args:
    volume: of [I, J, K] voxels.
    data: [I', J', K'] or [I', J', K', 3], over the same space.
  """
  if data.shape[:3] == volume.shape:
    return dataclasses.replace(volume, data=data)
  step = np.array(volume.shape) / data.shape[:3]
  # The edges stay, not the middles of the voxels there.
  to_old = nibabel.affines.from_matvec(np.diag(step), (step - 1) / 2)
  # Of an unplaced volume nothing is told rather than the old places.
  return dataclasses.replace(
    volume, data=data, affine=volume.affine @ to_old, positions=None, steps=None
  )


def covered_share(a: Volume, b: Volume) -> float:
  """The share of A's voxels that lie between voxels of B, in 0..1: `resample` interpolates them."""
  to_b = np.linalg.inv(b.affine) @ a.affine
  slack = 1e-6  # of a voxel, for the rounding of the affines
  j, k = np.ogrid[: a.shape[1], : a.shape[2]]
  inside = 0
  for i in range(a.shape[0]):  # a plane at a time: the coordinates take many times the volume
    within = np.ones(a.shape[1:], bool)
    for row, length in zip(to_b[:3], b.shape, strict=True):
      at = row[0] * i + row[1] * j + row[2] * k + row[3]
      within &= (at >= -slack) & (at <= length - 1 + slack)
    inside += int(np.count_nonzero(within))
  return inside / math.prod(a.shape)


def find_plane(axis: str | int | None, volume: Volume) -> str:
  """Returns the plane whose slices are fused.

  Args:
    axis: one of `PLANES`, or an array axis 0, 1, 2 of A, which stands for the plane that it is
      nearest to being the normal of. None: axial, or that of a single slice.
    volume: A.

  Raises:
    UserError: there is no such axis.
  """
  if axis is None:
    single = [i for i, length in enumerate(volume.shape) if length == 1]
    axis = single[0] if len(single) == 1 else "axial"
  if str(axis) in PLANES:
    return str(axis)
  if str(axis) not in ("0", "1", "2"):
    raise UserError(f"axis {axis}: choose one of {', '.join(PLANES)}, 0, 1 or 2")
  return PLANES[int(nibabel.io_orientation(volume.affine)[int(axis), 0])]


def straighten(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
  """Turns a volume [I, J, K, ...] so that its axes lead right, to the front and up: a view."""
  return nibabel.apply_orientation(data, nibabel.io_orientation(affine))


def unstraighten(straight: np.ndarray, affine: np.ndarray) -> np.ndarray:
  """Undoes `straighten`; contiguous."""
  ras = nibabel.io_orientation(np.eye(4))
  back = nibabel.orientations.ornt_transform(ras, nibabel.io_orientation(affine))
  return np.ascontiguousarray(nibabel.apply_orientation(straight, back))


def to_pictures(data: np.ndarray, affine: np.ndarray, plane: str) -> np.ndarray:
  """Cuts a volume [I, J, K, ...] into pictures [N, H, W, ...] across one of `PLANES`, a view.

  They lie as the module's docstring describes.
  """
  # [N, leftmost world axis, other]
  stack = np.moveaxis(straighten(data, affine), PLANES.index(plane), 0)
  return stack.swapaxes(1, 2)[:, ::-1, ::-1]


def from_pictures(pictures: np.ndarray, affine: np.ndarray, plane: str) -> np.ndarray:
  """Undoes `to_pictures`: [N, H, W, ...] to [I, J, K, ...], contiguous."""
  straight = np.moveaxis(pictures[:, ::-1, ::-1].swapaxes(1, 2), 0, PLANES.index(plane))
  return unstraighten(straight, affine)


def pixel_size(volume: Volume, plane: str) -> tuple[float, float]:
  """(height, width) in mm of the pixels of `to_pictures`."""
  world = nibabel.io_orientation(volume.affine)[:, 0].astype(int)
  edges = dict(zip(world, volume.voxel_size, strict=True))
  width, height = (edges[axis] for axis in range(3) if axis != PLANES.index(plane))
  return float(height), float(width)


def square_size(pixel: tuple[float, float], height: int, width: int) -> tuple[float, float]:
  """(width, height) of a picture with square pixels, in which the finer direction keeps its own.

  Args:
    pixel: (height, width), of which only the ratio matters.
    height: of the picture, in its own pixels.
    width: of the picture.
  """
  finer = min(pixel)
  return width * pixel[1] / finer, height * pixel[0] / finer


def edge_letters(volume: Volume, plane: str) -> tuple[str, str, str, str]:
  """Where the left, right, upper and lower edges of `to_pictures` lie in the patient.

  R and L, A and P (anterior, posterior), H and F (head, feet). An oblique direction has several
  letters, the largest part first, as DICOM's Patient Orientation has (PS3.3, C.7.6.1.1.1).
  """
  way = nibabel.io_orientation(volume.affine)
  edges = []
  for world in (axis for axis in range(3) if axis != PLANES.index(plane)):
    array = int(np.flatnonzero(way[:, 0] == world)[0])
    direction = way[array, 1] * volume.affine[:3, array] / volume.voxel_size[array]
    edges += [_letters(direction), _letters(-direction)]
  left, right, upper, lower = edges
  return left, right, upper, lower


def slice_position(volume: Volume, plane: str, index: int) -> np.ndarray:
  """World coordinates [3] of the middle of a slice, numbered as in `to_pictures`."""
  way = nibabel.io_orientation(volume.affine)
  normal = int(np.flatnonzero(way[:, 0] == PLANES.index(plane))[0])
  middle = (np.array(volume.shape) - 1) / 2
  middle[normal] = index if way[normal, 1] > 0 else volume.shape[normal] - 1 - index
  return nibabel.affines.apply_affine(volume.affine, middle)


def is_uneven(volume: Volume) -> bool:
  """Whether it is a series of slices at uneven distances, whose places no affine says."""
  has_places = volume.positions is not None and volume.steps is not None
  return has_places and not volume.placed and volume.shape[2] > 1


def uneven_advice(a: Volume, b: Volume, letter: str = "B") -> str:
  """What to do about volumes of which one at least is uneven."""
  which = " and ".join(name for name, volume in (("A", a), (letter, b)) if is_uneven(volume))
  return (
    f"the slices of {which} are not evenly spaced: add the missing slices, or keep only those that "
    f"A and {letter} share"
  )


def _apart_by_slices(a: Volume, b: Volume) -> list[str]:
  """How two volumes of one shape differ in the places of their slices, as far as both have them."""
  (first_a, steps_a), (first_b, steps_b) = _slices(a), _slices(b)
  if first_a is None or first_b is None:
    return []
  edges = np.linalg.norm(np.diff(first_a, axis=0), axis=1)
  apart = first_a - first_b
  if steps_a is not None and steps_b is not None:
    # The far corners tell other directions and pixel sizes.
    corners = np.array(list(itertools.product(*((0, length - 1) for length in a.shape[:2]))))
    apart = apart[:, None] + corners @ (steps_a - steps_b)
    edges = np.append(edges, np.linalg.norm(steps_a, axis=1))
  most = np.linalg.norm(apart, axis=-1).max()
  tolerance = TOLERANCE * (edges.min() if edges.size else 1)
  if most <= tolerance:
    return []
  return [f"the same slice up to {most:.3g} mm apart (tolerance {tolerance:.2g} mm)"]


def _slices(volume: Volume) -> tuple[np.ndarray | None, np.ndarray | None]:
  """The first voxels [K, 3] of the slices, and the steps [2, 3] along i and j; None if unknown."""
  if not volume.placed:
    return volume.positions, volume.steps
  along_slices = np.arange(volume.shape[2])[:, None] * volume.affine[:3, 2]
  return volume.affine[:3, 3] + along_slices, volume.affine[:3, :2].T


def _corners(volume: Volume) -> np.ndarray:
  """World coordinates [8, 3] of the first and last voxels."""
  indices = list(itertools.product(*((0, length - 1) for length in volume.shape)))
  return nibabel.affines.apply_affine(volume.affine, indices)


def _letters(direction: np.ndarray) -> str:
  """The letters of a unit vector in RAS: of parts that are more than a fifth of it."""
  order = [axis for axis in np.argsort(-np.abs(direction)) if abs(direction[axis]) > 0.2]
  return "".join(("LR", "PA", "FH")[axis][int(direction[axis] > 0)] for axis in order)


def _times(values: Any) -> str:
  return " x ".join(f"{value:.4g}" if value < 1000 else f"{value:.0f}" for value in values)
