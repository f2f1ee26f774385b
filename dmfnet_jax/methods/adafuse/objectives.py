"""The loss of AdaFuse's successor, in place of AdaFuse's own, which is not published.

ASFE-Fusion (the same authors, the same data and idea), as its published program computes it.
Pictures are [B, H, W, 1] float32 in [0, 1].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dmfnet_jax import losses

Array = jax.Array
# Adds up over the batch what is [B]; the result is [B] again, so that it may be one's own.
Total = Callable[[Array], Array]

_ALL = (1, 2, 3)


def frobenius(x: Array, total: Total) -> Array:
  """Root of the sum of squares of [B, H, W, C], over the batch as `total` adds it up; [B]."""
  squares = total(jnp.sum(x * x, axis=_ALL))
  # The gradient at 0 is 0.
  return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def content(fused: Array, a: Array, b: Array, total: Total) -> Array:
  """How far the fused pictures are from the mean of their sources, [B]."""
  losses.check_same_shape(fused, a, b)
  return frobenius(fused - (a + b) / 2, total)


def structure_tensor(x: Array) -> Array:
  """Products of the forward differences, summed over the channels: [B, H, W, 4].

  In the order xx, xy, xy, yy; the last column has no difference along x, the last row none along y.
  """
  dx = jnp.pad(x[:, :, 1:] - x[:, :, :-1], ((0, 0), (0, 0), (0, 1), (0, 0)))
  dy = jnp.pad(x[:, 1:] - x[:, :-1], ((0, 0), (0, 1), (0, 0), (0, 0)))
  xx, xy, yy = (jnp.sum(p, axis=-1) for p in (dx * dx, dx * dy, dy * dy))
  return jnp.stack([xx, xy, xy, yy], axis=-1)


def structure(fused: Array, a: Array, b: Array, total: Total) -> Array:
  """How far the fused pictures' structure tensors are from the sum of the sources', [B]."""
  losses.check_same_shape(fused, a, b)
  sources = structure_tensor(jnp.concatenate([a, b], axis=-1))
  return frobenius(structure_tensor(fused) - sources, total)
