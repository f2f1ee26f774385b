"""Losses that methods share. Images are [B, H, W, 1] float32, in [-1, 1] unless said.

Every loss returns one value an image, [B]: the mean over a batch, a mask for padded examples and
the average over devices are the caller's.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dmfnet_jax.filters import outside_envelope

Array = jax.Array

_PER_IMAGE = (1, 2, 3)


def check_same_shape(*images: Array) -> None:
  """Refuses images of different shapes: a stray axis would broadcast without a word.

  Raises:
    ValueError: the shapes differ, or are not [B, H, W, C].
  """
  shapes = [jnp.shape(image) for image in images]
  if len(set(shapes)) > 1 or len(shapes[0]) != 4:
    raise ValueError(f"images must all be of one shape [B, H, W, C], got {shapes}")


def denoising_loss(x_start: Array, predicted: Array) -> Array:
  """Mean squared error between the clean image and the prediction, [B]."""
  check_same_shape(x_start, predicted)
  return jnp.mean((predicted - x_start) ** 2, axis=_PER_IMAGE)


def absolute(x: Array) -> Array:
  """|x| with derivative 0 at 0, as torch has it.

  `jnp.abs` has 1 there, which would pull where nothing is wrong: on a black background the fused
  image ties with its sources exactly.
  """
  return x * jnp.sign(x)


def correlate(x: Array, weights: Sequence[float] | np.ndarray, axis: int) -> Array:
  """Correlates [B, H, W, C] along one axis with an odd number of weights; zero-padded, same size.

  A product with a banded matrix: XLA's convolutions of one channel, and their gradients, take many
  times as long on CPUs and use a small part of a TPU.
  """
  size, reach = x.shape[axis], len(weights) // 2
  band = sum(w * np.eye(size, k=offset - reach) for offset, w in enumerate(weights))
  product = {1: "ij,bjwc->biwc", 2: "ij,bhjc->bhic"}[axis]
  return jnp.einsum(product, jnp.asarray(band, jnp.float32), x, precision=lax.Precision.HIGHEST)


_SMOOTH, _DIFFERENCE = (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0)


def sobel_derivatives(x: Array) -> tuple[Array, Array]:
  """Sobel's derivatives along W and H, zero-padded; [B, H, W, C] each."""
  horizontal = correlate(correlate(x, _DIFFERENCE, 2), _SMOOTH, 1)
  vertical = correlate(correlate(x, _SMOOTH, 2), _DIFFERENCE, 1)
  return horizontal, vertical


def sobel_gradient(x: Array) -> Array:
  """|Sobel_x| + |Sobel_y|, zero-padded; [B, H, W, 1]."""
  horizontal, vertical = sobel_derivatives(x)
  return absolute(horizontal) + absolute(vertical)


def spatial_gradient(x: Array) -> Array:
  """Sobel's derivatives along x and y over 8, over repeated borders; [B, H, W, 2]."""
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
  return jnp.concatenate(sobel_derivatives(x), axis=-1)[:, 1:-1, 1:-1] / 8


def gaussian_blur(x: Array, window: int = 11, sigma: float = 1.5) -> Array:
  offsets = np.arange(window) - window // 2
  weights = np.exp(-(offsets**2) / (2 * sigma**2))
  weights /= weights.sum()
  return correlate(correlate(x, weights, 2), weights, 1)


def ssim_map(a: Array, b: Array, *, value_range: float = 1.0, border: str = "zero") -> Array:
  """SSIM at each pixel (Wang et al. 2004), [B, H, W, 1] in about [-1, 1].

  The window is Gaussian, 11 pixels wide (sigma 1.5); moments are biased, constants 0.01 and 0.03.

  Args:
    a: [B, H, W, 1].
    b: [B, H, W, 1].
    value_range: of the pictures: 1 or 2.
    border: what lies around them: "zero", or "reflect", which needs sides of 6 pixels.
  """
  check_same_shape(a, b)
  c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
  # Moments of [0, 1] about the middle: a difference of smaller squares keeps more digits. Not where
  # zeros lie around the picture: they would move, too.
  middle = 0.5 if border == "reflect" and value_range == 1 else 0.0
  a, b = a - middle, b - middle
  stacked = jnp.concatenate([a, b, a * a, b * b, a * b], axis=0)
  if border == "reflect":
    padded = jnp.pad(stacked, ((0, 0), (5, 5), (5, 5), (0, 0)), mode="reflect")
    blurred = gaussian_blur(padded)[:, 5:-5, 5:-5]
  else:
    blurred = gaussian_blur(stacked)
  mean_a, mean_b, aa, bb, ab = jnp.split(blurred, 5, axis=0)
  variances = (aa - mean_a**2) + (bb - mean_b**2)
  covariance = ab - mean_a * mean_b
  mean_a, mean_b = mean_a + middle, mean_b + middle
  numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
  return numerator / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))


def structure_similarity(fused: Array, a: Array, b: Array) -> Array:
  """The structure term of SSIM against the locally stronger source, [B], in about [-1, 1].

  At each pixel (2 cov(F, X) + C2) / (var F + var X + C2) under a Gaussian window of 11 pixels
  (sigma 1.5, zero-padded), X being A where A's standard deviation is at least B's, else B.
  """
  check_same_shape(fused, a, b)
  c2 = 0.03**2
  stacked = jnp.concatenate(
    [fused, a, b, fused**2, a**2, b**2, fused * a, fused * b], axis=0
  )  # one pass of the filter over all eight
  mean_f, mean_a, mean_b, ff, aa, bb, fa, fb = jnp.split(gaussian_blur(stacked), 8, axis=0)
  var_f = ff - mean_f**2
  var_a, var_b = aa - mean_a**2, bb - mean_b**2
  cov_a, cov_b = fa - mean_f * mean_a, fb - mean_f * mean_b
  structure_a = (2 * cov_a + c2) / (var_f + var_a + c2)
  structure_b = (2 * cov_b + c2) / (var_f + var_b + c2)
  return jnp.mean(jnp.where(var_a >= var_b, structure_a, structure_b), axis=_PER_IMAGE)


def fusion_loss(
  fused: Array,
  a: Array,
  b: Array,
  *,
  intensity_weight: float = 1.5,
  overlap: float = 0.0,
  overlap_power: float = 0.0,
  shade: float = 0.0,
  mean_share: float = 0.0,
  gradient_weight: float = 1.0,
  gradient_gain: float = 1.0,
  gain_half: float = 0.0,
  gain_power: float = 1.0,
  gradient_floor: float = 0.0,
  ssim_weight: float = 0.5,
  lost_weight: float = 0.0,
  lost_margin: float = 0.12,
  invention_weight: float = 0.0,
) -> tuple[Array, dict[str, Array]]:
  """Intensity, gradient and structure of a fused image (arXiv 2506.15218, its second stage).

  Args:
    fused: [B, H, W, 1] the head's output F.
    a: [B, H, W, 1] the MRI.
    b: [B, H, W, 1] the other modality's luma.
    intensity_weight: weight of mean |F - target|; the paper's target is max(A, B).
    overlap: how much of the darker source the target has besides, from black (-1) up and cut at
      white (1): where both sources are bright the fused image is brighter than either, so that
      neither hides the other.
    overlap_power: p, where the overlap is weighed by the brighter source's brightness, 0 to 1, to
      the power of p: with 1 it is felt where both are bright, and hardly in a dark brain of a CT.
    shade: s, by which the target's dark greys are darker than the brighter source: of a brightness
      x of 0 to 1 the target has x - s x (1 - x)^2, so that black and white stay. It makes room for
      the overlap.
    mean_share: how much of (A + B) / 2 is mixed into the target. Of an infrared and a visible
      picture each has a value of its own at every pixel, and the maximum keeps only one of them.
    gradient_weight: weight of mean |grad F - max(grad A, grad B)|.
    gradient_gain: what the target max(grad A, grad B) is multiplied by: g in the end.
    gain_half: a gradient h whose factor is half way, (1 + g) / 2; the factor of a gradient G is
      1 + (g - 1) G^p / (G^p + h^p), so that edges gain and texture stays. A step of the whole
      range is 8. 0: the factor is g everywhere.
    gain_power: p; the larger, the less gains below h: from 2 on hardly more than bone and air.
    gradient_floor: what is taken off max(grad A, grad B) before, down to 0: a camera's noise.
    ssim_weight: weight of 1 - S, `structure_similarity`.
    lost_weight: weight of mean max(0, max(A, B) - F - margin)^2, brightness that is lost: without
      it the gradient term buys edges by dark lines through bone and rings around bright spots.
    lost_margin: the margin, in units of the images.
    invention_weight: weight of the mean distance of F outside of the sources' envelope, see
      `filters.outside_envelope`.

  Returns:
    The loss [B], and its unweighted terms [B]: "intensity", "gradient", "ssim" (S itself), and
    "lost" and "invention" where they have a weight.
  """
  check_same_shape(fused, a, b)
  brightest = jnp.maximum(a, b)
  wanted = brightest
  if overlap:
    lift = overlap * (jnp.minimum(a, b) + 1)
    if overlap_power:
      lift *= ((brightest + 1) / 2) ** overlap_power
    wanted += lift
  if shade:
    wanted -= shade * (1 - brightest**2) * (1 - brightest) / 4
  wanted = jnp.minimum(wanted, 1)
  if mean_share:
    wanted = (1 - mean_share) * wanted + mean_share * (a + b) / 2
  intensity = jnp.mean(absolute(fused - wanted), axis=_PER_IMAGE)
  target = jnp.maximum(sobel_gradient(a), sobel_gradient(b))
  if gradient_floor:
    target = jnp.maximum(target - gradient_floor, 0)
  if gain_half:
    power = target**gain_power
    target *= 1 + (gradient_gain - 1) * power / (power + gain_half**gain_power)
  else:
    target = gradient_gain * target
  gradient = jnp.mean(absolute(sobel_gradient(fused) - target), axis=_PER_IMAGE)
  ssim = structure_similarity(fused, a, b)
  loss = intensity_weight * intensity + gradient_weight * gradient + ssim_weight * (1 - ssim)
  terms = {"intensity": intensity, "gradient": gradient, "ssim": ssim}
  if lost_weight:
    lost = jnp.maximum(brightest - fused - lost_margin, 0)
    terms["lost"] = jnp.mean(lost**2, axis=_PER_IMAGE)
    loss += lost_weight * terms["lost"]
  if invention_weight:
    terms["invention"] = jnp.mean(outside_envelope(fused, a, b, axes=(1, 2)), axis=_PER_IMAGE)
    loss += invention_weight * terms["invention"]
  return loss, terms


FUSION_WEIGHTS: dict[str, float] = dict(fusion_loss.__kwdefaults__ or {})
"""Of `fusion_loss`: what a config has where nobody says another."""
