"""Simulated PET and SPECT, and the look of one MRI scan, from maps of the brain's tissues.

Pure functions of NumPy arrays: no files, no TensorFlow. Images are `[H, W]` with 1 mm pixels, a
slab is `[D, H, W]` with the wanted slice in the middle; tissue maps are fractions in [0, 1]. All
randomness comes from the `numpy.random.Generator` that is handed in. CT is in `simulate_ct.py`.

These are pictures to learn and demonstrate image fusion with, not a simulation of a scanner: no
attenuation, scatter, projection or reconstruction is modelled. Numbers without a source are
choices, and said to be.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

FWHM_PER_SIGMA = float(np.sqrt(8 * np.log(2)))


class Region(NamedTuple):
  """A smooth departure from the mean uptake of grey matter, mirrored left and right."""

  centre: tuple[float, float, float]  # MNI coordinates (|x|, y, z) in mm
  radius: float  # standard deviation of the Gaussian in mm
  gain: float  # relative change at the centre: 0.2 is 20 % more


@dataclasses.dataclass(frozen=True)
class Tracer:
  """What a tracer does in the head and what its scanner makes of it."""

  grey: float  # activity, the unit of the others
  white: float
  csf: float
  scalp: float
  regions: tuple[Region, ...]
  variation: float  # standard deviation of the random smooth variation between subjects
  system_fwhm: float  # the scanner's resolution in mm
  filter_fwhm: float  # the smoothing filter applied to the reconstructed picture, in mm
  counts: float  # effective, in a pixel of grey matter before the filter: sets the noise
  display_top: float  # activity shown with the last colour
  colours: tuple[tuple[float, int, int, int], ...]  # knots as of `colour_table`

  @property
  def fwhm(self) -> float:
    """The resolution of the finished picture in mm: both Gaussians, convolved."""
    return float(np.hypot(self.system_fwhm, self.filter_fwhm))


# FDG-PET.
# Contrast: 4:1 of grey to white and almost empty CSF, as Hoffman's brain phantom is commonly used;
# its paper gives 5:1:0 (Hoffman et al., J Cereb Blood Flow Metab 1991, 11:A17-A25).
# Measured values are nearer 2:1 (7.30 and 3.41 mg/min/100 g: Huang et al., Am J Physiol 1980,
# 238:E69-E82, and alike Phelps et al., Ann Neurol 1979, 6:371-388), from scanners that blurred one
# tissue into the other: here the point spread does that.
# Regions: visual cortex highest, cerebellum lowest, 10.27 and 5.79 where the mean of grey matter is
# 8.05 mg/min/100 g (Reivich et al., Circ Res 1979, 44:127-137); that the precuneus, the striatum
# and the dorsolateral frontal cortex are above and the medial temporal lobe below is common
# knowledge of the resting brain, but how much, and the radii, are choices. So are the scalp and
# the variation.
# Resolution: an ECAT EXACT HR+ has 4.3 to 4.5 mm at its centre and 5.2 to 8.9 mm at 20 cm
# ("Performance evaluation of the whole-body PET scanner ECAT EXACT HR+ following the IEC
# standard", 1997): 4.6 mm, with a 3 mm filter 5.5 mm. The counts (about 4 % noise in grey matter
# after the filter) are a choice.
# Colours: black, blue, yellow, red, magenta, the kind of rainbow the Harvard atlas uses for PET.
PET = Tracer(
  grey=1.0,
  white=0.25,
  csf=0.02,
  scalp=0.05,
  regions=(
    Region((8, -84, 4), 16, 0.27),  # visual cortex
    Region((24, -66, -38), 20, -0.25),  # cerebellum
    Region((0, -58, 30), 16, 0.20),  # precuneus and posterior cingulate
    Region((23, 6, 4), 10, 0.45),  # striatum, which the tissue maps take partly for white matter
    Region((9, -18, 8), 8, 0.20),  # thalamus
    Region((38, 30, 32), 18, 0.10),  # dorsolateral frontal cortex
    Region((26, -18, -20), 14, -0.25),  # medial temporal lobe
  ),
  variation=0.08,
  system_fwhm=4.6,
  filter_fwhm=3.0,
  counts=25.0,
  display_top=1.35,
  colours=(
    (0.0, 0, 0, 0),
    (0.125, 0, 0, 132),
    (0.25, 0, 84, 252),
    (0.5, 255, 255, 0),
    (0.75, 255, 0, 0),
    (1.0, 255, 0, 255),
  ),
)

# Perfusion SPECT with Tc-99m-HMPAO.
# Contrast: 3:1, a choice below PET's, because the tracer's retention lags behind high flow (Lassen
# et al., J Cereb Blood Flow Metab 1988, 8:S13-S22).
# Regions: cerebellum, visual cortex and deep grey matter high, as normal studies show; sizes are
# choices, and so are the scalp (the faint ring of the real pictures) and the variation.
# Resolution: the Harvard atlas' scanner has 8.2 mm at the centre and 7.3 mm at 9 cm (the atlas'
# SPECT page, after Genna and Smith, IEEE Trans Nucl Sci 1988, 35:654-658): 7.8 mm, with a 5.5 mm
# filter 9.5 mm. The counts (about 5 % noise after the filter) are a choice.
# Colours: black, slate, violet, rose, orange, pinkish white, the kind of table the atlas uses.
SPECT = Tracer(
  grey=1.0,
  white=1 / 3,
  csf=0.03,
  scalp=0.14,
  regions=(
    Region((8, -84, 4), 16, 0.20),  # visual cortex
    Region((24, -66, -36), 20, 0.20),  # cerebellum
    Region((23, 6, 4), 10, 0.40),  # striatum, as above
    Region((9, -18, 8), 8, 0.25),  # thalamus
    Region((26, -18, -20), 14, -0.12),  # medial temporal lobe
  ),
  variation=0.10,
  system_fwhm=7.8,
  filter_fwhm=5.5,
  counts=6.0,
  display_top=1.2,
  colours=(
    (0.0, 0, 0, 0),
    (0.15, 44, 68, 72),
    (0.35, 84, 0, 144),
    (0.57, 192, 92, 112),
    (0.75, 255, 112, 0),
    (1.0, 255, 220, 255),
  ),
)


def through_plane(slab: np.ndarray, fwhm: float) -> np.ndarray:
  """Weighs the planes of a slab with a normalised Gaussian: the resolution across the slice.

  `[D, ...]`, D odd and planes 1 mm apart, to `[...]`, the middle plane as the scanner sees it. To
  reach 1.2 times `fwhm` (mm) to either side is enough: the weights left out are under 1 %.
  """
  offsets = np.arange(slab.shape[0]) - slab.shape[0] // 2
  weights = np.exp(-0.5 * (offsets * FWHM_PER_SIGMA / fwhm) ** 2)
  # One plane after the other, not as a matrix product: that rounds differently from CPU to CPU, and
  # a Poisson draw magnifies it.
  weights = (weights / weights.sum()).astype(slab.dtype)
  return sum(weight * plane for weight, plane in zip(weights, slab, strict=True))


def blur(image: np.ndarray, fwhm: float) -> np.ndarray:
  """Blurs `[H, W]` in its plane, or a volume along all axes, with a Gaussian of `fwhm` mm.

  The border is continued outward.
  """
  return ndimage.gaussian_filter(image, fwhm / FWHM_PER_SIGMA, mode="nearest")


def smooth_noise(
  shape: tuple[int, ...], correlation: float, rng: np.random.Generator
) -> np.ndarray:
  """White noise blurred with a sigma of `correlation` mm, scaled to mean 0 and deviation 1."""
  field = ndimage.gaussian_filter(rng.standard_normal(shape), correlation, mode="wrap")
  return (field - field.mean()) / field.std()


def regional_gain(regions: Sequence[Region], coordinates: np.ndarray) -> np.ndarray:
  """Relative uptake `[...]` at MNI coordinates `[3, ...]` in mm; 1 far from every region."""
  mirrored = np.stack([np.abs(coordinates[0]), coordinates[1], coordinates[2]])
  gain = np.ones(coordinates.shape[1:])
  for region in regions:
    offset = mirrored - np.reshape(region.centre, (3, *[1] * gain.ndim))
    gain += region.gain * np.exp(-0.5 * (offset**2).sum(axis=0) / region.radius**2)
  return gain


def activity(tracer: Tracer, tissue: np.ndarray, gain: np.ndarray | float = 1.0) -> np.ndarray:
  """True activity `[...]` before the scanner, in units of `tracer.grey`.

  `tissue` is `[3, ...]`, fractions of grey matter, white matter and CSF; `gain` the relative uptake
  of the first two.
  """
  grey, white, csf = tissue
  return gain * (tracer.grey * grey + tracer.white * white) + tracer.csf * csf


def tracer_image(
  tracer: Tracer,
  tissue: np.ndarray,
  coordinates: np.ndarray,
  scalp: np.ndarray,
  rng: np.random.Generator,
) -> np.ndarray:
  """One slice of a PET or SPECT study.

  The slab is weighed across the slice by the full resolution, then blurred in the plane by the
  system's, drawn from a Poisson distribution and smoothed by the filter, so that the noise has the
  filter's grain. Gains vary over centimetres and are therefore taken from the middle plane alone.

  Args:
    tracer: The tracer and its scanner.
    tissue: `[3, D, H, W]`, fractions of grey matter, white matter and CSF.
    coordinates: `[3, H, W]`, MNI millimetres of the middle plane.
    scalp: `[H, W]`, fraction of scalp in the middle plane.
    rng: Draws the subject's variation and the noise.

  Returns:
    float64 `[H, W]`, activity in units of `tracer.grey`, not negative.
  """
  gain = regional_gain(tracer.regions, coordinates)
  gain *= 1 + tracer.variation * smooth_noise(gain.shape, 14.0, rng)
  true = activity(tracer, np.stack([through_plane(slab, tracer.fwhm) for slab in tissue]), gain)
  true += tracer.scalp * scalp * (1 + 0.5 * smooth_noise(gain.shape, 6.0, rng))
  # Rounded for the same reason.
  expected = np.round(np.maximum(blur(true, tracer.system_fwhm), 0) * tracer.counts, 3)
  return blur(rng.poisson(expected).astype(np.float64), tracer.filter_fwhm) / tracer.counts


def tracer_volume(
  tracer: Tracer, tissue: np.ndarray, coordinates: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """A PET or SPECT study of a volume, voxels of 1 mm; see `tracer_image`, but without the scalp.

  The point spread is the same along all axes. The filter averages over one axis more than in a
  slice, so that the noise is smaller.

  Args:
    tracer: The tracer and its scanner.
    tissue: `[3, X, Y, Z]`, fractions of grey matter, white matter and CSF.
    coordinates: `[3, X, Y, Z]`, MNI millimetres.
    rng: Draws the subject's variation and the noise.

  Returns:
    float64 `[X, Y, Z]`, activity in units of `tracer.grey`, not negative.
  """
  gain = regional_gain(tracer.regions, coordinates)
  gain *= 1 + tracer.variation * smooth_noise(gain.shape, 14.0, rng)
  true = activity(tracer, tissue, gain)
  # Rounded as in a slice.
  expected = np.round(np.maximum(blur(true, tracer.system_fwhm), 0) * tracer.counts, 3)
  return blur(rng.poisson(expected).astype(np.float64), tracer.filter_fwhm) / tracer.counts


def colour_table(knots: Sequence[tuple[float, int, int, int]]) -> np.ndarray:
  """A colour map, uint8 `[256, 3]`, linear between knots (position in [0, 1], red, green, blue)."""
  table = np.array(knots, dtype=np.float64)
  positions = np.linspace(0, 1, 256)
  channels = [np.interp(positions, table[:, 0], table[:, channel]) for channel in (1, 2, 3)]
  return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def apply_colours(image: np.ndarray, top: float, table: np.ndarray) -> np.ndarray:
  """Shows activity `[H, W]` as uint8 `[H, W, 3]`: 0 in the first colour, `top` in the last."""
  return table[np.clip(np.rint(image / top * 255), 0, 255).astype(np.uint8)]


def magnitude_image(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Gives an averaged T1 slice the look of one scan: a contrast and a noise of its own.

  The gamma, between 0.9 and 1.4, and the noise, 2 % of full scale, are choices; the noise is
  Rician, as that of magnitude pictures is (Gudbjartsson and Patz, Magn Reson Med 1995,
  34:910-914).

  Args:
    image: `[H, W]` in [0, 1].
    mask: bool `[H, W]`; outside it the picture is black.
    rng: Draws the gamma and the noise.

  Returns:
    uint8 `[H, W]`.
  """
  contrast = image ** np.exp(rng.uniform(np.log(0.9), np.log(1.4)))
  real, imaginary = 0.02 * rng.standard_normal((2, *image.shape))
  noisy = np.hypot(contrast + real, imaginary)
  return np.where(mask, np.rint(np.clip(noisy, 0, 1) * 255), 0).astype(np.uint8)
