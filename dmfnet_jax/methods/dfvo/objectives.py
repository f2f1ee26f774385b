"""DFVO's losses, as its published program computes them.

Pictures are [B, H, W, 1] float32 in [0, 1]. Every loss gives one value per example, [B].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dmfnet_jax import losses

Array = jax.Array
Mean = Callable[[Array], Array]

_PER_IMAGE = (1, 2, 3)
_DARKER = 7.0  # times the prior's mean: there the infrared picture stands in for the enhanced one
_LEAST_NORM = 1e-8
# Of red, green and blue, what they get of Cr - 1/2 and Cb - 1/2.
_FROM_CR, _FROM_CB = (1.403, -0.714, 0.0), (0.0, -0.344, 1.773)


def to_rgb(luma: Array, chroma: Array) -> Array:
  """Colours [B, H, W, 3] of a luma and of Cr and Cb [B, H, W, 2], all in [0, 1]; not clipped."""
  cr, cb = chroma[..., :1] - 0.5, chroma[..., 1:] - 0.5
  channels = [
    luma + of_cr * cr + of_cb * cb for of_cr, of_cb in zip(_FROM_CR, _FROM_CB, strict=True)
  ]
  return jnp.concatenate(channels, axis=-1)


def l1(a: Array, b: Array) -> Array:
  """Mean absolute difference."""
  losses.check_same_shape(a, b)
  return jnp.mean(losses.absolute(a - b), axis=_PER_IMAGE)


def differences(x: Array) -> tuple[Array, Array]:
  """|Differences| of neighbours along x and y, with zeros around: [B, H + 1, W + 1, 1] each."""
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  along_x = x[:, 1:, 1:] - x[:, 1:, :-1]
  along_y = x[:, 1:, 1:] - x[:, :-1, 1:]
  return losses.absolute(along_x), losses.absolute(along_y)


def mutual_gradient(illumination: Array) -> Array:
  """Few middling edges: strong ones and none at all cost nothing."""
  terms = [d * jnp.exp(-10 * d) for d in differences(illumination)]
  return jnp.mean(terms[0] + terms[1], axis=_PER_IMAGE)


def smoothness(illumination: Array, visible: Array) -> Array:
  """The illumination's edges over the visible picture's."""
  terms = [
    ours / jnp.maximum(theirs, 0.01)
    for ours, theirs in zip(differences(illumination), differences(visible), strict=True)
  ]
  return jnp.mean(terms[0] + terms[1], axis=_PER_IMAGE)


def brightened(enhanced: Array, infrared: Array, prior: Array) -> Array:
  """The enhanced picture, and where the dark prior is high the infrared one."""
  mean = jnp.mean(prior, axis=_PER_IMAGE, keepdims=True)
  return jnp.where(prior > _DARKER * mean, infrared, enhanced)


def edge_loss(fused: Array, bright: Array, infrared: Array) -> Array:
  """Squared distance of the edges to the stronger ones of both pictures."""
  wanted = jnp.maximum(losses.sobel_gradient(bright), losses.sobel_gradient(infrared))
  return jnp.mean((losses.sobel_gradient(fused) - wanted) ** 2, axis=_PER_IMAGE)


def intensity_loss(
  fused: Array, enhanced: Array, bright: Array, infrared: Array, mean: Mean | None = None
) -> Array:
  """Squared distances to both pictures, weighed by the softmax of their mean edges.

  Args:
    fused: the result.
    enhanced: its edges give the weight.
    bright: what the distance is taken to, see `brightened`.
    infrared: the other picture.
    mean: from [B] to the mean of all the batch, which has one weight in the published program; None
      for each example's own.
  """
  edges = [jnp.mean(losses.sobel_gradient(x), axis=_PER_IMAGE) for x in (enhanced, infrared)]
  if mean is not None:
    edges = [mean(value) for value in edges]
  weights = jax.lax.stop_gradient(jax.nn.softmax(jnp.stack(edges), axis=0))
  errors = [jnp.mean((fused - x) ** 2, axis=_PER_IMAGE) for x in (bright, infrared)]
  return weights[0] * errors[0] + weights[1] * errors[1]


def colour_loss(fused: Array, enhanced: Array, chroma: Array) -> Array:
  """1 - the cosine between the colours that both lumas have with the visible picture's chroma."""
  ours, theirs = (_unit(to_rgb(luma, chroma)) for luma in (fused, enhanced))
  return jnp.mean(1 - jnp.sum(ours * theirs, axis=-1), axis=(1, 2))


def _unit(x: Array) -> Array:
  squares = jnp.sum(x * x, axis=-1, keepdims=True)
  some = squares > _LEAST_NORM**2
  return x / jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1)), _LEAST_NORM)
