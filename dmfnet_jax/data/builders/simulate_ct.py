"""A simulated head CT around a brain whose skull was stripped.

Pure functions of NumPy arrays, as in `simulate.py`: pictures are `[H, W]`, a pixel is 1 mm.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from dmfnet_jax.data.builders.simulate import blur, smooth_noise, through_plane

# Hounsfield units, each a choice within the range that radiology textbooks give: grey matter 35 to
# 42, white matter 20 to 32 (5 to 10 below grey), CSF 0 to 15, fat -50 to -100, skin and muscle 40
# to 50, dura about 50, compact bone 1000 and more, diploe 300 to 700.
HU_AIR, HU_FAT, HU_SKIN, HU_SOFT = -1000.0, -80.0, 45.0, 40.0
HU_GREY, HU_WHITE, HU_CSF, HU_DURA = 38.0, 27.0, 7.0, 50.0
HU_TABLE, HU_DIPLOE, HU_BASE = 1300.0, 550.0, 800.0

# Thickness of the skull towards the side (x), the front and back (y) and the vertex (z): the means
# of temporal, frontal and occipital, and parietal bone in CT of 100 adults, 4.7, 8.0 (both) and
# 7.0 mm (Thulung et al., J Nepal Med Assoc 2019, 57(215):29-32).
SKULL_THICKNESS = (4.7, 8.0, 7.0)
SKULL_GAP = 1.5  # from the brain to the inner table: subarachnoid space and dura; a choice
SCALP_THICKNESS = 5.0  # the outer 2 mm are skin, the rest is fat; a choice

SLICE_FWHM = 4.0  # across the slice, for slices of about 5 mm as routine head scans have them
PLANE_FWHM = 1.2  # in the plane; a choice
NOISE_HU = 2.8  # standard deviation, of slightly blurred grain; a choice


def skull_layers(
  envelope: np.ndarray, coordinates: np.ndarray, centre: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Finds each pixel's place in the layers around the brain; arguments as `ct_image`.

  Returns:
    bone: `[H, W]`, 0 at the inner and 1 at the outer table, negative inside the skull.
    scalp: `[H, W]`, millimetres outward from the outer table.
  """
  squares = (coordinates - np.reshape(centre, (3, 1, 1))) ** 2
  squares += 1e-3  # keeps the direction defined at the centre itself
  thickness = np.tensordot(np.array(SKULL_THICKNESS), squares / squares.sum(axis=0), axes=1)
  return (envelope - SKULL_GAP) / thickness, envelope - SKULL_GAP - thickness


def scalp_fraction(
  envelope: np.ndarray, coordinates: np.ndarray, centre: Sequence[float]
) -> np.ndarray:
  """Where the scalp is, `[H, W]` in [0, 1] with edges a pixel wide; arguments as `ct_image`."""
  _, scalp = skull_layers(envelope, coordinates, centre)
  return (1 - _below(scalp)) * _below(scalp - SCALP_THICKNESS)


def ct_image(
  tissue: np.ndarray,
  coordinates: np.ndarray,
  envelope: np.ndarray,
  pial: np.ndarray,
  centre: Sequence[float],
  rng: np.random.Generator,
) -> np.ndarray:
  """One slice of a head CT.

  Around the brain's envelope grow bone, with diploe between two tables, and scalp. The falx lies
  in the midline of the upper head. Where the envelope bridges the hollows under the brain is a
  skull base: bone, soft tissue and air cells in a random pattern, not anatomy. There is no face
  and no neck.

  Args:
    tissue: `[3, D, H, W]`, fractions of grey matter, white matter and CSF.
    coordinates: `[3, H, W]`, MNI millimetres of the middle plane.
    envelope: `[H, W]`, signed distance outward from the envelope that bridges all hollows.
    pial: `[H, W]`, signed distance outward from a tighter one, bridging only fissures and sulci.
    centre: Middle of the head in MNI millimetres: the direction from it decides the thickness of
      the bone.
    rng: Draws the skull base and the noise.

  Returns:
    float64 `[H, W]`, Hounsfield units.
  """
  bone, scalp = skull_layers(envelope, coordinates, centre)
  hu = np.full(bone.shape, HU_AIR)
  hu = _put(hu, HU_SKIN, _below(scalp - SCALP_THICKNESS))
  hu = _put(hu, HU_FAT, _below(scalp - SCALP_THICKNESS + 2))
  hu = _put(hu, HU_TABLE, _below(scalp))
  # The middle half of the bone, with soft edges; how much of it is diploe is a choice.
  hu = _put(hu, HU_DIPLOE, np.clip(2.5 - 8 * np.abs(bone - 0.5), 0, 1))

  pattern = smooth_noise(bone.shape, 3.0, rng)
  base = np.select([pattern > 0.1, pattern > -0.8], [HU_BASE, HU_SOFT], default=HU_AIR)
  hu = _put(hu, base, _below(envelope - SKULL_GAP))

  grey, white, _ = (through_plane(slab, SLICE_FWHM) for slab in tissue)
  brain = HU_GREY * grey + HU_WHITE * white + HU_CSF * np.clip(1 - grey - white, 0, 1)
  x, _, z = coordinates
  falx = (np.abs(x) < 1) & (z > 0) & (envelope > -28) & (grey + white < 0.5)
  hu = _put(hu, np.where(falx, HU_DURA, brain), _below(pial - SKULL_GAP))

  sigma = 0.8
  grain = ndimage.gaussian_filter(rng.standard_normal(hu.shape), sigma, mode="wrap")
  grain *= 2 * np.sqrt(np.pi) * sigma  # what the blur took from the deviation of white noise
  return blur(hu, PLANE_FWHM) + NOISE_HU * grain


def window(hu: np.ndarray, level: float = 40.0, width: float = 80.0) -> np.ndarray:
  """Shows Hounsfield units `[...]` as uint8; the defaults are the usual brain window."""
  return np.rint(np.clip((hu - level) / width + 0.5, 0, 1) * 255).astype(np.uint8)


def _below(distance: np.ndarray) -> np.ndarray:
  """1 where the distance is negative and 0 where it is positive, with an edge a pixel wide."""
  return np.clip(0.5 - distance, 0, 1)


def _put(image: np.ndarray, value: np.ndarray | float, weight: np.ndarray) -> np.ndarray:
  return image + weight * (value - image)
