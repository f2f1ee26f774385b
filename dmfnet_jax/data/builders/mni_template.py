"""Pairs on the fly from the ICBM152 T1 template inside nilearn: no download, no TensorFlow.

The template (ICBM 2009a non-linear symmetric, 1 mm, skull stripped) and its maps of grey and white
matter are files of the nilearn package. `mni_pair` cuts a slice, simulates the other modality from
the tissue maps (`simulate.py`, `simulate_ct.py`) and gives both as 256 x 256 pictures with 1 mm
pixels, the template's box in the middle and black around it.

Orientation is radiology's: axial nose up, coronal and sagittal vertex up, the patient's right on
the left of axial and coronal pictures, the nose on the left of sagittal ones. The template is
exactly symmetric, so a sagittal slice is the same picture left and right of the middle: only right
ones are used, lest one picture stand in two splits.
"""

import functools
import importlib.util
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from dmfnet_jax.data.builders import simulate, simulate_ct
from dmfnet_jax.errors import UserError

SIZE = 256
MODALITIES = ("CT", "PET", "SPECT")
_NORMAL = {"axial": 2, "coronal": 1, "sagittal": 0}  # which of the template's axes
PLANES = tuple(_NORMAL)
SHAPE = (197, 233, 189)  # voxels to the right, to the front and upward
ORIGIN_MM = (-98, -134, -72)  # MNI coordinates of voxel (0, 0, 0)
HEAD_CENTRE_MM = (0.0, -17.0, 5.0)  # middle of the brain's box

# Every second slice, [first, last), where the section of the brain is at least 2,800 mm^2 (the
# largest are 20,500 axial, 16,500 coronal and 17,900 sagittal). The sagittal ones start beside the
# midline, where the average of 152 people is a blur of falx, CSF and cortex.
STEP = 2
RANGES = {"axial": (28, 142), "coronal": (40, 196), "sagittal": (104, 160)}

# Validation: whole blocks [first, last) of neighbouring slices, the same for every modality
# because the T1 slice is the same. The GAP slices on either side of a block are in no split:
# neighbours look alike, and a SPECT slice gathers activity over some 9 mm. (Planes do cross: this
# is one brain, and a split by patient is not to be had from it.)
VALIDATION_BLOCKS = {
  "axial": ((48, 58), (94, 104)),
  "coronal": ((80, 92), (142, 154)),
  "sagittal": ((120, 130),),
}
GAP = 8

_FILES = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_COARSE = 3  # mm, grid of the distance maps
_MARGIN = 30  # coarse voxels around the template: room for the skull and for closing
_ENVELOPE_RADIUS = 80.0  # mm: bridges the hollows between temporal lobes and cerebellum
_PIAL_RADIUS = 7.0  # mm: bridges the fissures and sulci
_CT_HALF_DEPTH = 5  # mm, of the slab that makes one CT slice


class _Template(NamedTuple):
  t1: np.ndarray  # uint8 [197, 233, 189], as the two maps
  grey: np.ndarray
  white: np.ndarray
  black_level: float  # the T1 value that is shown black
  white_level: float


def split_indices(plane: str) -> dict[str, list[int]]:
  """Slices of one of the `PLANES` by split: voxel indices along its normal, ascending.

  Every index of "train" is more than `GAP` - 1 away from every index of "validation".
  """
  blocks = VALIDATION_BLOCKS[plane]
  first, last = RANGES[plane]
  indices = range(first, last, STEP)
  return {
    "train": [i for i in indices if all(i < b - GAP or i >= e + GAP for b, e in blocks)],
    "validation": [i for i in indices if any(b <= i < e for b, e in blocks)],
  }


def slices_of(split: str) -> Iterator[tuple[str, int]]:
  """Plane and index of every slice of a split, plane by plane."""
  for plane in PLANES:
    for index in split_indices(plane)[split]:
      yield plane, index


def mni_pair(modality: str, plane: str, index: int) -> tuple[np.ndarray, np.ndarray, str]:
  """Makes one pair; the same arguments give the same bytes.

  The first call reads the template and finds its envelope (about 2 s); every further one takes
  about 0.1 s.

  Args:
    modality: One of `MODALITIES`, in capitals or not.
    plane: One of `PLANES`.
    index: Voxel index along the plane's normal, within `RANGES[plane]`.

  Returns:
    a: uint8 [256, 256], the T1 slice.
    b: uint8 [256, 256, 3], the simulated picture; that of CT has three equal channels.
    name: Such as "pet_axial_096".

  Raises:
    UserError: An argument is out of range, or nilearn with its template is not installed.
  """
  modality = modality.upper()
  if modality not in MODALITIES or plane not in PLANES:
    raise UserError(
      f"no simulation of {modality} in the {plane} plane; there are {', '.join(MODALITIES)} and "
      f"{', '.join(PLANES)}"
    )
  first, last = RANGES[plane]
  if not first <= index < last:
    raise UserError(f"{plane} slice {index} has too little brain; choose {first} to {last - 1}")

  name = f"{modality.lower()}_{plane}_{index:03d}"
  mri_rng, other_rng = np.random.default_rng(zlib.crc32(name.encode())).spawn(2)
  template = _template()
  t1 = _slice(template.t1, plane, index)
  scaled = (t1 - template.black_level) / (template.white_level - template.black_level)
  a = simulate.magnitude_image(np.clip(scaled, 0, 1), t1 > 0, mri_rng)

  coordinates = slice_coordinates(plane, index)
  envelope_map, pial_map = _distances()
  envelope = _sample(envelope_map, coordinates)
  if modality == "CT":
    tissue = tissue_slab(plane, index, _CT_HALF_DEPTH)
    pial = _sample(pial_map, coordinates)
    hu = simulate_ct.ct_image(tissue, coordinates, envelope, pial, HEAD_CENTRE_MM, other_rng)
    b = np.repeat(simulate_ct.window(hu)[..., None], 3, axis=-1)
  else:
    tracer = {"PET": simulate.PET, "SPECT": simulate.SPECT}[modality]
    tissue = tissue_slab(plane, index, int(np.ceil(1.2 * tracer.fwhm)))
    scalp = simulate_ct.scalp_fraction(envelope, coordinates, HEAD_CENTRE_MM)
    image = simulate.tracer_image(tracer, tissue, coordinates, scalp, other_rng)
    b = simulate.apply_colours(image, tracer.display_top, simulate.colour_table(tracer.colours))
  return a, b, name


def demo_pairs() -> list[tuple[np.ndarray, np.ndarray, str]]:
  """Six of `mni_pair`: each modality in the axial plane and in one other, of validation slices."""
  axial = [("PET", "axial", 96), ("SPECT", "axial", 98), ("CT", "axial", 94)]
  others = [("PET", "coronal", 148), ("SPECT", "sagittal", 122), ("CT", "coronal", 86)]
  return [mni_pair(*arguments) for arguments in axial + others]


def tissue_slab(plane: str, index: int, half_depth: int) -> np.ndarray:
  """Tissue fractions around a slice.

  The maps are averages over 152 people, so cortex is a blur of fractions. They are sharpened
  towards one person's by taking their third powers and normalising again (a choice); pure voxels
  keep their value. CSF is what grey and white matter leave of the brain.

  Returns:
    float32 [3, 2 * half_depth + 1, 256, 256], planes 1 mm apart with `index` in the middle: grey
    matter, white matter and CSF; their sum is 1 in the brain and 0 outside.
  """
  slab = np.zeros((3, 2 * half_depth + 1, SIZE, SIZE), np.float32)
  for depth, i in enumerate(range(index - half_depth, index + half_depth + 1)):
    if 0 <= i < SHAPE[_NORMAL[plane]]:
      for kind, volume in enumerate(_tissues()):
        slab[kind, depth] = _slice(volume, plane, i)
  return slab


def t1_volume() -> tuple[np.ndarray, float, float]:
  """The T1 template, uint8 `SHAPE`, and its values that are shown black and white."""
  template = _template()
  return template.t1, template.black_level, template.white_level


def tissue_volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Sharpened fractions of grey and white matter and CSF, float32 `SHAPE`; see `tissue_slab`."""
  return _tissues()


def slice_coordinates(plane: str, index: int) -> np.ndarray:
  """MNI coordinates (x, y, z) in mm of a picture's pixels, float64 [3, 256, 256]."""
  normal = _NORMAL[plane]
  column_axis, row_axis = (axis for axis in range(3) if axis != normal)
  coordinates = np.empty((3, SIZE, SIZE))
  coordinates[normal] = index + ORIGIN_MM[normal]
  for axis, shape in ((row_axis, (SIZE, 1)), (column_axis, (1, SIZE))):
    before = (SIZE - SHAPE[axis]) // 2
    voxels = SHAPE[axis] - 1 + before - np.arange(SIZE)  # both axes run backwards in the picture
    coordinates[axis] = (voxels + ORIGIN_MM[axis]).reshape(shape)
  return coordinates


def _slice(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
  """Cuts [256, 256] as radiology shows it, padded with zeros around the middle."""
  # Not `take`: it copies the whole volume where that is in Fortran order, as NIfTI files are.
  image = np.moveaxis(volume, _NORMAL[plane], 0)[index].T[::-1, ::-1]
  before = [(SIZE - length) // 2 for length in image.shape]
  padding = [(b, SIZE - length - b) for b, length in zip(before, image.shape, strict=True)]
  return np.pad(image, padding)


@functools.lru_cache(maxsize=1)
def _template() -> _Template:
  """Reads the template from nilearn's folder, without importing nilearn (which takes seconds)."""
  spec = importlib.util.find_spec("nilearn")
  if spec is None or spec.origin is None:
    raise UserError("the MNI pairs need nilearn, which holds the template: pip install nilearn")
  import nibabel

  volumes = []
  for kind in ("t1", "gm", "wm"):
    path = Path(spec.origin).parent / "datasets" / "data" / _FILES.format(kind)
    try:
      image: Any = nibabel.load(path)
      volume = np.asarray(image.dataobj)
    except (OSError, nibabel.filebasedimages.ImageFileError) as error:
      raise UserError(
        f"cannot read the template {path}: {error}; install another nilearn"
      ) from error
    origin = tuple(np.rint(image.affine[:3, 3]).astype(int))
    if volume.shape != SHAPE or volume.dtype != np.uint8 or origin != ORIGIN_MM:
      raise UserError(
        f"{path} is not the 1 mm template that nilearn 0.8.1 to 0.14 hold; install one of these"
      )
    volumes.append(volume)
  t1, grey, white = volumes
  # Robust percentiles of the brain: the lower lies at CSF, the upper at the brightest white matter.
  return _Template(t1, grey, white, *np.percentile(t1[t1 > 0], [0.5, 99.8]).tolist())


@functools.lru_cache(maxsize=1)
def _tissues() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Sharpened fractions of grey matter, white matter and CSF, float32 [197, 233, 189] each."""
  template = _template()
  grey, white = template.grey / np.float32(255), template.white / np.float32(255)
  csf = np.maximum(1 - grey - white, 0)
  grey, white, csf = grey * grey * grey, white * white * white, csf * csf * csf
  scale = (template.t1 > 0) / (grey + white + csf)
  return grey * scale, white * scale, csf * scale


@functools.lru_cache(maxsize=1)
def _distances() -> list[np.ndarray]:
  """Signed distances in mm, on the coarse grid, outward from the envelope and the pial surface.

  Both are closings of the brain with a ball of radius R: dilation by R, erosion by R. With d the
  depth inside the dilated set, R - d is zero on the closed surface and grows outward up to R, so
  one distance transform gives the closing and the distance from it.
  """
  mask = np.pad(_template().t1[::_COARSE, ::_COARSE, ::_COARSE] > 0, _MARGIN)
  outside = ndimage.distance_transform_edt(~mask, sampling=_COARSE)
  maps = []
  for radius in (_ENVELOPE_RADIUS, _PIAL_RADIUS):
    depth = ndimage.distance_transform_edt(outside <= radius, sampling=_COARSE)
    maps.append(ndimage.gaussian_filter((radius - depth).astype(np.float32), 0.8))
  return maps


def _sample(distance: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
  """Reads a coarse map at MNI coordinates [3, H, W], linearly."""
  voxels = (coordinates - np.reshape(ORIGIN_MM, (3, 1, 1))) / _COARSE + _MARGIN
  return ndimage.map_coordinates(distance, voxels, order=1, mode="nearest")
