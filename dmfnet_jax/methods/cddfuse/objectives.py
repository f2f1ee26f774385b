"""CDDFuse's losses, as its published program computes them (with kornia 0.2.0).

Pictures are [B, H, W, 1] float32 in [0, 1], features [B, H, W, C]. Every loss gives one value per
example, [B].
"""

import jax
import jax.numpy as jnp

from dmfnet_jax import losses

Array = jax.Array

_SPACE = (1, 2)
_ALL = (1, 2, 3)


def correlation(a: Array, b: Array) -> Array:
  """Pearson correlation over the pixels, its mean over the channels; [B] in [-1, 1]."""
  losses.check_same_shape(a, b)
  a, b = (x - jnp.mean(x, axis=_SPACE, keepdims=True) for x in (a, b))
  lengths = [_sqrt(jnp.sum(x * x, axis=_SPACE)) for x in (a, b)]
  # torch's machine epsilon, where the published program adds it.
  value = jnp.sum(a * b, axis=_SPACE) / (2.0**-23 + lengths[0] * lengths[1])
  return jnp.mean(jnp.clip(value, -1.0, 1.0), axis=-1)


def _sqrt(x: Array) -> Array:
  """The square root, with a gradient of zero at zero: a constant channel pulls nowhere."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def decomposition(base: Array, detail: Array) -> Array:
  """Details should not correlate between the sources, bases should.

  Args:
    base: the bases' correlation, of an example or its mean over a batch.
    detail: the details'.
  """
  return detail**2 / (1.01 + base)


def ssim_map(a: Array, b: Array) -> Array:
  """(1 - SSIM) / 2, SSIM cut to [0, 1], at each pixel: [B, H, W, 1]; borders are reflected."""
  return jnp.clip(1 - losses.ssim_map(a, b, border="reflect"), 0, 1) / 2


def ssim_loss(a: Array, b: Array) -> Array:
  """Mean of `ssim_map`, [B]."""
  return jnp.mean(ssim_map(a, b), axis=_ALL)


def mse(a: Array, b: Array) -> Array:
  """Mean squared error, [B]."""
  losses.check_same_shape(a, b)
  return jnp.mean((a - b) ** 2, axis=_ALL)


def reconstruction(image: Array, rebuilt: Array) -> tuple[Array, Array]:
  """The SSIM loss and the squared error of a rebuilt picture."""
  return ssim_loss(image, rebuilt), mse(image, rebuilt)


def gradient_loss(image: Array, rebuilt: Array) -> Array:
  """Mean absolute difference of the spatial gradients, over both directions, [B]."""
  return jnp.mean(
    losses.absolute(losses.spatial_gradient(image) - losses.spatial_gradient(rebuilt)), axis=_ALL
  )


def fusion(fused: Array, visible: Array, infrared: Array) -> tuple[Array, Array]:
  """How far the fused picture is from the brighter source, and its edges from the stronger ones.

  Returns:
    Both [B], unweighted.
  """
  losses.check_same_shape(fused, visible, infrared)
  intensity = jnp.mean(losses.absolute(jnp.maximum(visible, infrared) - fused), axis=_ALL)
  edges = jnp.maximum(losses.sobel_gradient(visible), losses.sobel_gradient(infrared))
  gradient = jnp.mean(losses.absolute(edges - losses.sobel_gradient(fused)), axis=_ALL)
  return intensity, gradient
