"""The twelve measures of a fused picture, in JAX: batched, jitted, float32.

Every function takes grey pictures [B, H, W] of one size, 0..255, in any real type, and returns [B]
float32, one value a pair. F is the fused picture, A and B are its sources. The definitions are those
by which the programs of this field are compared; where two readings exist, the one that gives
DM-FNet's published values was taken. Higher is better, except for the MSE.

No picture gives NaN. What a constant one gives where the definition is 0/0: correlations with it
(CC, SCD) are 0, Qabf is 0 where neither source has an edge, VIF is 1 for a constant source. PSNR is
+inf where F equals both sources, else -inf where F is all black.

Float32 is enough because means are taken out before anything is squared: the relative error against
float64 stays below about 1e-5 on real pictures.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

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
_CPU_CHUNK = 4  # pairs


def _metric(function: Callable) -> Callable:
  """Jits `function` over float32 [B, H, W] images, having checked their shapes."""
  jitted = jax.jit(function)

  @functools.wraps(function)
  def call(*images: ArrayLike):
    # Converted here and not inside, so that uint8 and float32 share one compilation.
    arrays = [jnp.asarray(image, jnp.float32) for image in images]
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 3 or len(set(shapes)) > 1:
      raise ValueError(f"want pictures [B, H, W] of one shape, got {shapes}")
    return jitted(*arrays)

  return call


def _mean(image: Array) -> Array:
  """Mean of each picture: [B, H, W] to [B].

  The rows are averaged by a matrix product, because XLA's CPU compiler merges a plain sum with all
  that computes its terms into one scalar loop, here up to twenty times slower.
  """
  width = image.shape[2]
  rows = jnp.einsum("bhw,w->bh", image, jnp.full(width, 1 / width), precision="highest")
  return rows.mean(axis=1)


def _correlation(x: Array, y: Array) -> Array:
  """Pearson correlation of each pair of pictures, 0 where either is constant."""

  def centre(image):
    image = image - image[:, :1, :1]  # exactly zero if constant, whatever the mean's rounding
    return image - _mean(image)[:, None, None]

  x, y = centre(x), centre(y)
  spread = jnp.sqrt(_mean(x * x)) * jnp.sqrt(_mean(y * y))
  return jnp.where(spread > 0, _mean(x * y) / jnp.where(spread > 0, spread, 1), 0)


def _apart(function: Callable, first: Array, *rest):
  """Calls function(first, *rest) as a program of its own where the platform is the CPU.

  XLA's CPU compiler would otherwise compute each row of one filter again for every tap of the next.
  It does not look into the branches of a condition that it cannot decide beforehand: here, that
  the first picture does not begin with NaN. If it does, all results are NaN.
  """

  def spoilt(*args):
    return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), jax.eval_shape(function, *args))

  def on_cpu(first, *rest):
    return lax.cond(jnp.isnan(first[0, 0, 0]), spoilt, function, first, *rest)

  return lax.platform_dependent(first, *rest, cpu=on_cpu, default=function)


def _shifts(image: Array, width: int, axis: int, stride: int = 1) -> list[Array]:
  """The `width` views of the image of which the k-th holds the k-th value of each window."""
  stop = image.shape[axis] - width + 1
  return [lax.slice_in_dim(image, k, stop + k, stride, axis) for k in range(width)]


def _weighted_sum(image: Array, window: np.ndarray, axis: int, stride: int = 1) -> Array:
  """Correlation along one axis without padding, every `stride`-th value.

  Shifted sums: on two CPU cores a hundred times faster than XLA's one-channel convolution.
  """
  shifts = _shifts(image, len(window), axis, stride)
  return sum(float(weight) * shift for weight, shift in zip(window, shifts, strict=True))


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
  return counts / np.prod(x.shape[1:])


def _nats(p: Array) -> Array:
  """Entropy in nats: probabilities [B, ...] to [B]."""
  p = p.reshape(len(p), -1)
  return -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), axis=1)


@_metric
def entropy(fused: Array) -> Array:
  """EN: entropy of the 256 grey values in bits, 0..8."""
  levels = _grey_levels(fused)
  return _nats(_joint_probability(levels, jnp.zeros_like(levels))) / np.log(2)


@_metric
def mutual_information(a: Array, b: Array, fused: Array) -> Array:
  """MI: I(F; A) + I(F; B) over whole grey values, in nats, from 0."""

  def information(x):
    joint = _joint_probability(x, fused)
    return jnp.maximum(_nats(joint.sum(2)) + _nats(joint.sum(1)) - _nats(joint), 0)

  return information(a) + information(b)


# VIFF, Qabf, SSIM: structure.


def _gaussian(width: int) -> np.ndarray:
  """Weights [width] of a Gaussian with sigma = width / 5; their sum is 1."""
  offset = np.arange(width) - width // 2
  weights = np.exp(-0.5 * (offset * 5 / width) ** 2)
  return weights / weights.sum()


def _local_moments(a: Array, b: Array, fused: Array, window: np.ndarray):
  """Weighted means, variances and covariances in every whole window of three pictures.

  By the law of total covariance, one axis after the other: the mean of the rows' covariances plus
  the covariance of the rows' means. So nothing large is subtracted, as in E[x y] - E[x] E[y].

  Args:
    a: [B, H, W], as `b` and `fused`.
    b: Second sources.
    fused: Fused pictures.
    window: weights [N] along either axis; their sum is 1.

  Returns:
    The means of a, b and fused; the variances of a, b and fused and the covariances of a and fused,
    of b and fused: [B, H - N + 1, W - N + 1] each.
  """

  def one_axis(_, images, covs, axis):
    means = [_weighted_sum(image, window, axis) for image in images]
    deviations = [
      [shift - mean for shift in _shifts(image, len(window), axis)]
      for image, mean in zip(images, means, strict=True)
    ]
    between = [
      sum(float(w) * (x * y) for w, x, y in zip(window, deviations[i], deviations[j], strict=True))
      for i, j in ((0, 0), (1, 1), (2, 2), (0, 2), (1, 2))
    ]
    if covs:
      between = [x + _weighted_sum(y, window, axis) for x, y in zip(between, covs, strict=True)]
    return means, between

  means, covs = _apart(functools.partial(one_axis, axis=2), a, [a, b, fused], [])
  return _apart(functools.partial(one_axis, axis=1), means[0], means, covs)


def _information(variance: Array, noise: Array | float) -> Array:
  """Mean information that passes a channel of such noise, up to a factor: [B, H, W] to [B]."""
  return _mean(jnp.log(1 + variance / noise))


@_metric
def viff(a: Array, b: Array, fused: Array) -> Array:
  """VIFF: VIFp(A, F) + VIFp(B, F), four scales (Sheikh and Bovik, 2006), from 0.

  Raises:
    ValueError: a side is shorter than `MIN_SIDE`, which leaves the coarsest scale empty.
  """
  if min(fused.shape[1:]) < MIN_SIDE:
    raise ValueError(f"VIFF needs pictures of at least {MIN_SIDE} x {MIN_SIDE}: {fused.shape}")
  preserved, present = [jnp.zeros(len(fused))] * 2, [jnp.zeros(len(fused))] * 2
  images = [a, b, fused]
  for width in _VIF_WINDOWS:
    window = _gaussian(width)
    if width != _VIF_WINDOWS[0]:
      for axis in (1, 2):
        halve = functools.partial(_weighted_sum, window=window, axis=axis, stride=2)
        images = [_apart(halve, image) for image in images]
    _, (var_a, var_b, var_f, cov_a, cov_b) = _local_moments(*images, window)
    num_windows = np.prod(var_f.shape[1:])
    for n, (var_x, cov) in enumerate(((var_a, cov_a), (var_b, cov_b))):
      # F = gain * X + residual. Gain is least squares and not negative; the variance it explains
      # is gain^2 var_x = cov^2 / var_x, at most var_f but for rounding.
      flat = var_x < 1e-10
      explained = jnp.maximum(cov, 0) ** 2 / jnp.where(flat, 1, var_x)
      explained = jnp.where(flat, 0, jnp.minimum(explained, var_f))
      preserved[n] += num_windows * _information(explained, var_f - explained + _VIF_NOISE)
      present[n] += num_windows * _information(var_x, _VIF_NOISE)
  return sum(
    jnp.where(total > 0, part / jnp.where(total > 0, total, 1), 1)
    for part, total in zip(preserved, present, strict=True)
  )


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

  return _apart(within, jnp.pad(image, ((0, 0), (1, 1), (1, 1))))


@_metric
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
    edges_kept += _mean(kept(square, angle) * strength)
    edges += _mean(strength)
  return edges_kept / jnp.where(edges > 0, edges, 1)


@_metric
def ssim(a: Array, b: Array, fused: Array) -> Array:
  """SSIM(F, A) + SSIM(F, B), -2..2, as scikit-image has it by default for a range of 255.

  That is a uniform 7 x 7 window, sample (co)variances, and only whole windows.
  """
  window = np.full(_SSIM_WINDOW, 1 / _SSIM_WINDOW)
  sample = _SSIM_WINDOW**2 / (_SSIM_WINDOW**2 - 1)
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  means, covs = _local_moments(a, b, fused, window)
  mean_f, var_f = means[2], sample * covs[2]
  total = jnp.zeros(len(fused))
  for mean_x, var_x, cov in ((means[0], covs[0], covs[3]), (means[1], covs[1], covs[4])):
    luminance = (2 * mean_x * mean_f + c1) / (mean_x**2 + mean_f**2 + c1)
    structure = (2 * sample * cov + c2) / (sample * var_x + var_f + c2)
    total += _mean(luminance * structure)
  return total


# PSNR, CC, SCD, SD, SF, AG, MSE: pixels.


@_metric
def mse(a: Array, b: Array, fused: Array) -> Array:
  """MSE: the mean of F's mean squared differences from A and from B. Lower is better."""
  return (_mean((a - fused) ** 2) + _mean((b - fused) ** 2)) / 2


@_metric
def psnr(a: Array, b: Array, fused: Array) -> Array:
  """PSNR: 10 log10(max(F)^2 / MSE) in dB, infinite where MSE or max(F) is 0 (see above)."""
  error = mse(a, b, fused)
  peak = fused.max(axis=(1, 2))
  decibel = 20 * jnp.log10(peak) - 10 * jnp.log10(error)
  return jnp.where(error > 0, decibel, jnp.inf)


@_metric
def correlation(a: Array, b: Array, fused: Array) -> Array:
  """CC: the mean of F's Pearson correlations with A and with B, -1..1."""
  return (_correlation(a, fused) + _correlation(b, fused)) / 2


@_metric
def difference_correlation(a: Array, b: Array, fused: Array) -> Array:
  """SCD: corr(A, F - B) + corr(B, F - A) (Aslantas and Bendes, 2015), -2..2."""
  return _correlation(a, fused - b) + _correlation(b, fused - a)


@_metric
def standard_deviation(fused: Array) -> Array:
  """SD: standard deviation of the grey values, 0..127.5."""
  return jnp.sqrt(_mean((fused - _mean(fused)[:, None, None]) ** 2))


@_metric
def spatial_frequency(fused: Array) -> Array:
  """SF: sqrt(mean dx^2 + mean dy^2), d the difference of neighbours."""
  dx, dy = jnp.diff(fused, axis=2), jnp.diff(fused, axis=1)
  return jnp.sqrt(_mean(dx**2) + _mean(dy**2))


@_metric
def average_gradient(fused: Array) -> Array:
  """AG: mean of sqrt((gx^2 + gy^2) / 2), central differences, one-sided at the border."""
  gy, gx = jnp.gradient(fused, axis=(1, 2))
  return _mean(jnp.sqrt((gx**2 + gy**2) / 2))


def compute_metrics(a: ArrayLike, b: ArrayLike, fused: ArrayLike) -> dict[str, Array]:
  """All twelve in one compiled program, which shares what several of them need.

  Args:
    a: First sources (MRI), grey [B, H, W] in 0..255, uint8 or float.
    b: Second sources, the same shape.
    fused: Fused pictures, the same shape.

  Returns:
    A dict from each of `METRIC_NAMES`, in that order, to [B] float32.

  Raises:
    ValueError: the shapes differ, are not [B, H, W], or have a side under `MIN_SIDE`.
  """
  values = _all_metrics(a, b, fused)
  return {name: values[name] for name in METRIC_NAMES}  # jit sorts the names


@_metric
def _all_metrics(a: Array, b: Array, fused: Array) -> dict[str, Array]:
  return lax.platform_dependent(a, b, fused, cpu=_all_in_chunks, default=_all_at_once)


def _all_in_chunks(*images: Array) -> dict[str, Array]:
  """A few pairs at a time, so that what lies between two steps stays in the CPU's caches."""
  batch = len(images[0])
  num_chunks = -(-batch // _CPU_CHUNK)
  size = -(-batch // num_chunks)
  padded = [
    jnp.pad(image, ((0, num_chunks * size - batch), (0, 0), (0, 0)), mode="edge").reshape(
      num_chunks, size, *image.shape[1:]
    )
    for image in images
  ]
  values = lax.map(lambda chunk: _all_at_once(*chunk), padded)
  return {name: value.reshape(-1)[:batch] for name, value in values.items()}


def _all_at_once(a: Array, b: Array, fused: Array) -> dict[str, Array]:
  return {
    "EN": entropy(fused),
    "MI": mutual_information(a, b, fused),
    "VIFF": viff(a, b, fused),
    "Qabf": qabf(a, b, fused),
    "SSIM": ssim(a, b, fused),
    "PSNR": psnr(a, b, fused),
    "CC": correlation(a, b, fused),
    "SCD": difference_correlation(a, b, fused),
    "SD": standard_deviation(fused),
    "SF": spatial_frequency(fused),
    "AG": average_gradient(fused),
    "MSE": mse(a, b, fused),
  }
