"""Layers that the UNet and the fusion head share. Images are NHWC; parameters are float32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Dtype = Any


def matmul_precision(dtype: Dtype) -> lax.Precision:
  """Returns the precision of matrix units for a compute dtype.

  TPUs (and GPUs through TF32) round float32 operands unless told otherwise; a model that is
  configured for float32 is meant to compute in float32.
  """
  return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


def conv(features: int, kernel_size: int, *, dtype: Dtype, **kwargs) -> nn.Conv:
  """A square convolution padded by half its kernel on *every* side.

  This is torch's `padding=k // 2`. It differs from SAME at stride 2, where SAME would pad the
  bottom and the right only.
  """
  kwargs.setdefault("kernel_init", nn.initializers.orthogonal())
  return nn.Conv(
    features,
    (kernel_size, kernel_size),
    padding=kernel_size // 2,
    dtype=dtype,
    precision=matmul_precision(dtype),
    **kwargs,
  )


def dense(features: int, *, dtype: Dtype, **kwargs) -> nn.Dense:
  """A dense layer with the reference's orthogonal initialisation."""
  return nn.Dense(
    features,
    kernel_init=nn.initializers.orthogonal(),
    dtype=dtype,
    precision=matmul_precision(dtype),
    **kwargs,
  )


def group_norm(num_groups: int, *, dtype: Dtype, **kwargs) -> nn.GroupNorm:
  """Group normalisation with torch's epsilon (flax's own is 1e-6); statistics in float32."""
  return nn.GroupNorm(num_groups=num_groups, epsilon=1e-5, dtype=dtype, **kwargs)


def dropout(x: Array, rate: float, keys: Array) -> Array:
  """Dropout whose mask belongs to the example and not to the batch.

  Args:
    x: [B, ...] activations.
    rate: the probability that a value is dropped, in [0, 1).
    keys: [B] PRNG keys, one an example, so that an example's mask does not depend on the batch,
      the device or the process in which it is computed.

  Returns:
    `x` with values dropped and the others scaled by 1 / (1 - rate).
  """
  if rate == 0.0:
    return x
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
  return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def upsample_nearest(x: Array) -> Array:
  """Doubles [B, H, W, C] to [B, 2H, 2W, C] by repetition (a broadcast: no gather)."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def upsample_bilinear(x: Array) -> Array:
  """Doubles [B, H, W, C] to [B, 2H, 2W, C], bilinear with aligned corners.

  With aligned corners output j samples input j (n - 1) / (2n - 1): even outputs 2i lie i / (2n - 1)
  before input i and odd outputs 2i + 1 lie (n - 1 - i) / (2n - 1) behind it. So each output is a
  blend of an input with one neighbour, and neither gathers nor (in the gradient) scatters are
  needed. `jax.image.resize` samples half-pixel centres, which is another operation.
  """
  for axis in (1, 2):
    n = x.shape[axis]
    shape = [1] * x.ndim
    shape[axis] = n
    i = jnp.arange(n, dtype=jnp.float32).reshape(shape)
    before = (i / (2 * n - 1)).astype(x.dtype)
    behind = ((n - 1 - i) / (2 * n - 1)).astype(x.dtype)
    # At the border the neighbour's weight is zero, so its value does not matter.
    previous = jnp.roll(x, 1, axis)
    following = jnp.roll(x, -1, axis)
    even = x + before * (previous - x)
    odd = x + behind * (following - x)
    doubled = [*x.shape]
    doubled[axis] = 2 * n
    x = jnp.stack([even, odd], axis + 1).reshape(doubled)
  return x
