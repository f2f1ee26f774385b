"""Means, windows and local statistics of pictures, in float32, shaped for XLA.

Pictures are [..., H, W]. What is written in an unusual way here is so for XLA's CPU compiler, which
merges whatever it can into one loop, also where that repeats work; the times are processor time for
64 pairs of 256 x 256.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def mean(image: Array) -> Array:
  """Mean of each picture: [..., H, W] to [...].

  The rows are averaged by a matrix product: a plain sum would be merged with all that computes its
  terms into one scalar loop, more than ten times slower.
  """
  width = image.shape[-1]
  rows = jnp.einsum("...hw,w->...h", image, jnp.full(width, 1 / width), precision="highest")
  return rows.mean(axis=-1)


def apart(function: Callable, image: Array, *args):
  """Returns function(image, *args), on the CPU compiled as a loop of its own.

  Otherwise a filter's every tap would compute again what the filter before it computed: 180 ms
  instead of 73 ms for `local_moments` with a 7 x 7 window. The compiler does not look into the
  branches of a condition that it cannot decide; here, that the image [..., H, W] does not begin
  with NaN. Where it does, the result is all NaN. The function's results are arrays of float32.
  """

  def not_a_number(*args):
    return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), jax.eval_shape(function, *args))

  def on_cpu(image, *args):
    return lax.cond(jnp.isnan(image.ravel()[0]), not_a_number, function, image, *args)

  return lax.platform_dependent(image, *args, cpu=on_cpu, default=function)


def gaussian(width: int) -> np.ndarray:
  """Weights [width] of a Gaussian with sigma = width / 5; their sum is 1."""
  offset = np.arange(width) - width // 2
  weights = np.exp(-0.5 * (offset * 5 / width) ** 2)
  return weights / weights.sum()


def halve(image: Array, window: np.ndarray) -> Array:
  """Smooths with a window, weights [N] along either axis, and keeps every second row and column.

  [..., H, W] to [..., (H - N) // 2 + 1, (W - N) // 2 + 1]: only whole windows count.
  """
  for axis in (-2, -1):
    image = apart(functools.partial(_weighted_sum, window=window, axis=axis, stride=2), image)
  return image


def weighted_mean(image: Array, window: np.ndarray) -> Array:
  """Smooths with a window, weights [N] along either axis: [..., H, W] to [..., H - N + 1, ...]."""
  for axis in (-2, -1):
    image = apart(functools.partial(_weighted_sum, window=window, axis=axis), image)
  return image


def of_neighbours(
  function: Callable[[Array, Array], Array], x: Array, *, axes: Sequence[int] = (-2, -1)
) -> Array:
  """The minimum or maximum (`function` of two) of each value's neighbours, 3 along each axis."""
  for axis in axes:
    inner = lax.slice_in_dim(x, 0, -1, axis=axis), lax.slice_in_dim(x, 1, None, axis=axis)
    first, last = lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, -1, None, axis=axis)
    before = jnp.concatenate([first, inner[0]], axis)
    after = jnp.concatenate([inner[1], last], axis)
    x = function(x, function(before, after))
  return x


def outside_envelope(image: Array, a: Array, b: Array, *, axes: Sequence[int] = (-2, -1)) -> Array:
  """How far each value lies outside of the local envelope of `a` and `b`, from 0.

  The envelope of a pixel is the minimum and the maximum of both in its 3 x 3 neighbours.
  """
  upper = of_neighbours(jnp.maximum, jnp.maximum(a, b), axes=axes)
  lower = of_neighbours(jnp.minimum, jnp.minimum(a, b), axes=axes)
  return jnp.maximum(image - upper, 0) + jnp.maximum(lower - image, 0)


def local_moments(images: Array, window: np.ndarray) -> tuple[Array, Array, Array]:
  """Weighted means, variances and covariances with the last picture in every whole window.

  By the law of total covariance, one axis after the other: the mean of the rows' covariances plus
  the covariance of the rows' means. So nothing large is subtracted, as in E[x y] - E[x] E[y], which
  in float32 costs VIFF up to half a percent.

  Args:
    images: [K, ..., H, W].
    window: weights [N] along either axis; their sum is 1.

  Returns:
    Means [K, ..., H - N + 1, W - N + 1], variances, and the covariances [K - 1, ...] of all but the
    last picture with the last one.
  """

  def along(images, *within, axis):
    means = _weighted_sum(images, window, axis)
    deviations = [shift - means for shift in _shifts(images, len(window), axis)]
    variances = _dot(window, [d * d for d in deviations])
    covariances = _dot(window, [d[:-1] * d[-1:] for d in deviations])
    if within:
      variances += _weighted_sum(within[0], window, axis)
      covariances += _weighted_sum(within[1], window, axis)
    return means, variances, covariances

  rows = apart(functools.partial(along, axis=-1), images)
  return apart(functools.partial(along, axis=-2), *rows)


def _shifts(image: Array, width: int, axis: int, stride: int = 1) -> list[Array]:
  """The `width` views of the image of which the k-th holds the k-th value of each window."""
  stop = image.shape[axis] - width + 1
  return [lax.slice_in_dim(image, k, stop + k, stride, axis) for k in range(width)]


def _dot(window: np.ndarray, terms: Sequence[Array]) -> Array:
  total = float(window[0]) * terms[0]
  for weight, term in zip(window[1:], terms[1:], strict=True):
    total += float(weight) * term
  return total


def _weighted_sum(image: Array, window: np.ndarray, axis: int, stride: int = 1) -> Array:
  """Correlation along one axis, whole windows only, every `stride`-th value.

  As shifted sums: 17 taps take 3 ms, XLA's one-channel convolution some hundred times that.
  """
  return _dot(window, _shifts(image, len(window), axis, stride))
