"""The twelve that papers of this field give, and all of them in one compiled program."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from dmfnet_jax.filters import apart, gaussian, halve, local_moments, mean
from dmfnet_jax.metrics.pictures import of_pictures

METRIC_NAMES = (
  "EN", "MI", "VIFF", "Qabf", "SSIM", "PSNR", "CC", "SCD", "SD", "SF", "AG", "MSE",
)  # fmt: skip

MIN_SIDE = 41  # Smaller pictures leave no whole window in the coarsest of VIFF's scales.
_NUM_GREYS = 256
_VIF_WINDOWS = (17, 9, 5, 3)  # finest scale first; sigma is a fifth of the width
_VIF_NOISE = 2.0  # variance of the visual noise
_SSIM_WINDOW = 7
_ARCTAN = (
  0.0028662257, -0.0161657367, 0.0429096138, -0.0752896400, 0.1065626393, -0.1420889944,
  0.1999355085, -0.3333314528, 1.0,
)  # fmt: skip
_CPU_CHUNK_PIXELS = 4 * 256 * 256


# EN and MI: information.


def _grey_levels(image: Array) -> Array:
  """The whole grey value of each pixel, int32 0..255; halves go to the even neighbour."""
  return jnp.clip(jnp.round(image), 0, _NUM_GREYS - 1).astype(jnp.int32)


def _count_by_scatter(x: Array, y: Array) -> Array:
  """Joint histogram: grey levels [B, H, W] twice to counts [B, 256, 256], float32."""
  index = (jnp.arange(len(x))[:, None, None] * _NUM_GREYS + x) * _NUM_GREYS + y
  counts = jnp.zeros(len(x) * _NUM_GREYS**2, jnp.int32).at[index.ravel()].add(1)
  return counts.reshape(-1, _NUM_GREYS, _NUM_GREYS).astype(jnp.float32)


def _count_by_matmul(x: Array, y: Array) -> Array:
  """The same as products of one-hot rows: TPUs scatter one by one but multiply fast."""

  def add_row(counts, row):
    one_hot = [jax.nn.one_hot(levels, _NUM_GREYS, dtype=jnp.bfloat16) for levels in row]
    pairs = jnp.einsum("bwi,bwj->bij", *one_hot, preferred_element_type=jnp.float32)
    return counts + pairs, None

  counts = jnp.zeros((len(x), _NUM_GREYS, _NUM_GREYS), jnp.float32)
  return lax.scan(add_row, counts, (x.swapaxes(0, 1), y.swapaxes(0, 1)))[0]


def _joint_probability(x: Array, y: Array) -> Array:
  """Probability [B, 256, 256] of each pair of grey levels in x and y."""
  counts = lax.platform_dependent(
    _grey_levels(x), _grey_levels(y), tpu=_count_by_matmul, default=_count_by_scatter
  )
  return counts / math.prod(x.shape[1:])


def _nats(p: Array) -> Array:
  """Entropy in nats: probabilities [B, ...] to [B]."""
  p = p.reshape(len(p), -1)
  return -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), axis=1)


def _information(a: Array, b: Array, fused: Array) -> tuple[Array, Array]:
  """EN and MI: the joint histograms hold that of F as well."""
  mutual = jnp.zeros(len(fused))
  for source in (a, b):
    joint = _joint_probability(source, fused)
    of_fused = _nats(joint.sum(axis=1))
    mutual += jnp.maximum(_nats(joint.sum(axis=2)) + of_fused - _nats(joint), 0)
  return of_fused / np.log(2), mutual


@of_pictures
def entropy(fused: Array) -> Array:
  """EN: entropy of the 256 grey values in bits, 0..8."""
  return _information(fused, fused, fused)[0]


@of_pictures
def mutual_information(a: Array, b: Array, fused: Array) -> Array:
  """MI: I(F; A) + I(F; B) over whole grey values, in nats, from 0."""
  return _information(a, b, fused)[1]


# VIFF, Qabf, SSIM: structure.


@of_pictures
def viff(a: Array, b: Array, fused: Array) -> Array:
  """VIFF: VIFp(A, F) + VIFp(B, F), four scales (Sheikh and Bovik, 2006), from 0.

  Raises:
    ValueError: a side is shorter than `MIN_SIDE`, which leaves the coarsest scale empty.
  """
  if min(fused.shape[1:]) < MIN_SIDE:
    raise ValueError(f"VIFF needs pictures of at least {MIN_SIDE} x {MIN_SIDE}: {fused.shape}")
  images = jnp.stack([a, b, fused])
  preserved = present = jnp.zeros((2, len(fused)))
  for width in _VIF_WINDOWS:
    window = gaussian(width)
    if width != _VIF_WINDOWS[0]:
      images = halve(images, window)
    _, var, cov = local_moments(images, window)
    var_x, var_f = var[:2], var[2:]
    # F = gain * X + residual by least squares, but with no gain below 0. The 1e-10 is part of the
    # definition: it decides what the faint rims of blurred edges count for.
    gain = jnp.where(var_x < 1e-10, 0, jnp.maximum(cov, 0) / (var_x + 1e-10))
    residual = jnp.maximum(var_f - gain * cov, 0)
    explained = jnp.where(var_f < 1e-10, 0, gain**2 * var_x)
    # The information that passes a channel with such noise, up to a factor.
    num_windows = math.prod(var.shape[-2:])
    preserved += num_windows * mean(jnp.log(1 + explained / (residual + _VIF_NOISE)))
    present += num_windows * mean(jnp.log(1 + var_x / _VIF_NOISE))
  vif_a, vif_b = jnp.where(present > 0, preserved / jnp.where(present > 0, present, 1), 1)
  return vif_a + vif_b


def _slope(gx: Array, gy: Array) -> Array:
  """arctan(gy / gx), in (-pi/2, pi/2]; pi/2 where gx is 0.

  By polynomial 4.4.49 of Abramowitz and Stegun (error 2e-8), on CPUs five times as fast as XLA's.
  """
  x, y = jnp.abs(gx), jnp.abs(gy)
  t = jnp.minimum(x, y) / jnp.where(gx == 0, 1, jnp.maximum(x, y))
  angle = t * jnp.polyval(jnp.array(_ARCTAN), t * t)
  angle = jnp.where(y > x, np.pi / 2 - angle, angle)
  return jnp.where(gx == 0, np.pi / 2, jnp.where((gx < 0) == (gy < 0), angle, -angle))


def _edges(image: Array) -> tuple[Array, Array]:
  """Squared Sobel strength, zeros beyond the border, and orientation with y upwards.

  Orientation is in (-pi/2, pi/2]. A horizontal edge, and a place without any, has pi/2; so the
  direction of y decides which near-horizontal edges count as far from a horizontal one.
  """

  def within(padded):
    dx = padded[:, :, 2:] - padded[:, :, :-2]
    gx = dx[:, :-2] + 2 * dx[:, 1:-1] + dx[:, 2:]
    dy = padded[:, :-2] - padded[:, 2:]
    gy = dy[:, :, :-2] + 2 * dy[:, :, 1:-1] + dy[:, :, 2:]
    return gx * gx + gy * gy, _slope(gx, gy)

  return apart(within, jnp.pad(image, ((0, 0), (1, 1), (1, 1))))


@of_pictures
def qabf(a: Array, b: Array, fused: Array) -> Array:
  """Qabf: how well the sources' edges are kept (Xydeas and Petrovic, 2000), 0..0.98."""
  square_f, angle_f = _edges(fused)

  def kept(square_x, angle_x):
    # Equal strengths count as the strength itself, an oddity of the program that everybody uses.
    upper = jnp.maximum(square_x, square_f)
    ratio = jnp.minimum(square_x, square_f) / jnp.where(upper > 0, upper, 1)
    ratio = jnp.sqrt(jnp.where(square_x == square_f, square_f, ratio))
    turn = 1 - jnp.abs(angle_x - angle_f) / (np.pi / 2)
    strength = 0.9994 / (1 + jnp.exp(-15 * (ratio - 0.5)))
    return strength * 0.9879 / (1 + jnp.exp(-22 * (turn - 0.8)))

  edges_kept = edges = jnp.zeros(len(fused))
  for source in (a, b):
    square, angle = _edges(source)
    strength = jnp.sqrt(square)
    edges_kept += mean(kept(square, angle) * strength)
    edges += mean(strength)
  return edges_kept / jnp.where(edges > 0, edges, 1)


@of_pictures
def ssim(a: Array, b: Array, fused: Array) -> Array:
  """SSIM: SSIM(F, A) + SSIM(F, B), -2..2, as scikit-image computes it for a range of 255.

  That is a uniform 7 x 7 window, sample (co)variances, and only whole windows.
  """
  return _ssim(a, b, fused, 255)


@functools.cache
def _ssim_for(value_range: float) -> Callable:
  return of_pictures(functools.partial(_ssim, value_range=value_range))


def _ssim(a: Array, b: Array, fused: Array, value_range: float) -> Array:
  window = np.full(_SSIM_WINDOW, 1 / _SSIM_WINDOW)
  sample = _SSIM_WINDOW**2 / (_SSIM_WINDOW**2 - 1)
  c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
  means, var, cov = local_moments(jnp.stack([a, b, fused]), window)
  mean_x, mean_f, var, cov = means[:2], means[2:], sample * var, sample * cov
  luminance = (2 * mean_x * mean_f + c1) / (mean_x**2 + mean_f**2 + c1)
  structure = (2 * cov + c2) / (var[:2] + var[2:] + c2)
  return mean(luminance * structure).sum(axis=0)


# PSNR, CC, SCD, SD, SF, AG, MSE: pixels.


@of_pictures
def mse(a: Array, b: Array, fused: Array) -> Array:
  """MSE: the mean of F's mean squared differences from A and from B. Lower is better."""
  return (mean((a - fused) ** 2) + mean((b - fused) ** 2)) / 2


@of_pictures
def psnr(a: Array, b: Array, fused: Array) -> Array:
  """PSNR: 10 log10(max(F)^2 / MSE) in dB, infinite where MSE or max(F) is 0 (see above)."""
  error = mse(a, b, fused)
  peak = fused.max(axis=(1, 2))
  decibel = 20 * jnp.log10(peak) - 10 * jnp.log10(error)
  return jnp.where(error > 0, decibel, jnp.inf)


def _correlations(a: Array, b: Array, fused: Array) -> tuple[Array, Array]:
  """CC and SCD, whose Pearson correlations share most of their terms."""

  def centre(image):
    image = image - image[:, :1, :1]  # exactly zero if constant, whatever the mean's rounding
    return image - image.mean(axis=(1, 2), keepdims=True)

  def correlation(x, y):
    spread = jnp.sqrt((x * x).mean(axis=(1, 2))) * jnp.sqrt((y * y).mean(axis=(1, 2)))
    return (x * y).mean(axis=(1, 2)) / jnp.where(spread > 0, spread, jnp.inf)

  def both(a, b, fused):
    less_a, less_b = centre(fused - a), centre(fused - b)
    a, b, fused = centre(a), centre(b), centre(fused)
    cc = (correlation(a, fused) + correlation(b, fused)) / 2
    return cc, correlation(a, less_b) + correlation(b, less_a)

  return apart(both, a, b, fused)


@of_pictures
def correlation(a: Array, b: Array, fused: Array) -> Array:
  """CC: the mean of F's Pearson correlations with A and with B, -1..1."""
  return _correlations(a, b, fused)[0]


@of_pictures
def difference_correlation(a: Array, b: Array, fused: Array) -> Array:
  """SCD: corr(A, F - B) + corr(B, F - A) (Aslantas and Bendes, 2015), -2..2."""
  return _correlations(a, b, fused)[1]


@of_pictures
def standard_deviation(fused: Array) -> Array:
  """SD: standard deviation of the grey values, 0..127.5."""
  return jnp.sqrt(mean((fused - mean(fused)[:, None, None]) ** 2))


@of_pictures
def spatial_frequency(fused: Array) -> Array:
  """SF: sqrt(mean dx^2 + mean dy^2), d the difference of neighbours."""
  dx, dy = jnp.diff(fused, axis=2), jnp.diff(fused, axis=1)
  return jnp.sqrt(mean(dx**2) + mean(dy**2))


@of_pictures
def average_gradient(fused: Array) -> Array:
  """AG: mean of sqrt((gx^2 + gy^2) / 2), central differences, one-sided at the border."""
  gy, gx = jnp.gradient(fused, axis=(1, 2))
  return mean(jnp.sqrt((gx**2 + gy**2) / 2))


def compute_metrics(
  a: ArrayLike, b: ArrayLike, fused: ArrayLike, *, ssim_range: float = 255
) -> dict[str, Array]:
  """All twelve of pictures [B, H, W] in one compiled program, which shares what several need.

  Args:
    a: [B, H, W] the first sources.
    b: [B, H, W] the second sources.
    fused: [B, H, W] the fused pictures.
    ssim_range: what SSIM takes for the range of the values. 2 for the programs that leave it to an
      old default of scikit-image for floats, by which some published tables were made.

  Returns:
    A dict from each of `METRIC_NAMES`, in that order, to [B] float32.

  Raises:
    ValueError: the shapes differ, are not [B, H, W], or have a side under `MIN_SIDE`.
  """
  values = _all_metrics(a, b, fused)
  if ssim_range != 255:
    values["SSIM"] = _ssim_for(float(ssim_range))(a, b, fused)
  return {name: values[name] for name in METRIC_NAMES}  # jit sorts the names


@of_pictures
def _all_metrics(a: Array, b: Array, fused: Array) -> dict[str, Array]:
  return lax.platform_dependent(a, b, fused, cpu=_all_in_chunks, default=_all_at_once)


def _all_in_chunks(*images: Array) -> dict[str, Array]:
  """A few pairs at a time, so that what passes from step to step stays in the CPU's caches."""
  batch, height, width = images[0].shape
  num_chunks = -(-batch // max(1, _CPU_CHUNK_PIXELS // (height * width)))
  size = -(-batch // num_chunks)
  padding = ((0, num_chunks * size - batch), (0, 0), (0, 0))
  chunks = [
    jnp.pad(image, padding, mode="edge").reshape(num_chunks, size, height, width)
    for image in images
  ]
  values = lax.map(lambda chunk: _all_at_once(*chunk), chunks)
  return {name: value.reshape(-1)[:batch] for name, value in values.items()}


def _all_at_once(a: Array, b: Array, fused: Array) -> dict[str, Array]:
  of_three = {"VIFF": viff, "Qabf": qabf, "SSIM": ssim, "PSNR": psnr, "MSE": mse}
  of_fused = {"SD": standard_deviation, "SF": spatial_frequency, "AG": average_gradient}
  values = {name: apart(function, a, b, fused) for name, function in of_three.items()}
  values |= {name: apart(function, fused) for name, function in of_fused.items()}
  values["EN"], values["MI"] = apart(_information, a, b, fused)
  values["CC"], values["SCD"] = _correlations(a, b, fused)
  return values
