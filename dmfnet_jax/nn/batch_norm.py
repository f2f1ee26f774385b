"""Batch normalisation as PyTorch has it. Images are NHWC, volumes NDHWC."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


class BatchNorm(nn.Module):
  """Normalises each channel over the batch and its pixels.

  As flax's, but for the running variance: the batch's biased variance normalises, and the unbiased
  one enters the running average, which matters where a level has few pixels.

  Attributes:
    momentum: share of the running statistics that stays; torch's is one minus this.
    per_picture: each picture is normalised by its own statistics, as a batch of one is in training;
      the running ones stay as they are.
    epsilon: added to the variance.
    scale_init: initialiser of the scale.
    dtype: of the result; statistics are float32.
  """

  momentum: float = 0.9
  per_picture: bool = False
  epsilon: float = 1e-5
  scale_init: Any = nn.initializers.ones_init()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool, axis: str | None = None) -> Array:
    """Normalises.

    Args:
      x: [B, *space, C].
      train: by the batch's statistics, which enter the running ones; else by those.
      axis: over which devices share a batch in training.
    """
    channels, space = x.shape[-1], tuple(range(1, x.ndim - 1))
    mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
    scale = self.param("scale", self.scale_init, (channels,))
    bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
    x = x.astype(jnp.float32)
    used_mean, used_variance = jnp.asarray(mean.value), jnp.asarray(variance.value)
    if self.per_picture:
      used_mean = jnp.mean(x, axis=space, keepdims=True)
      used_variance = jnp.mean(jnp.square(x - used_mean), axis=space, keepdims=True)
    elif train:

      def over_batch(x: Array) -> Array:
        here = jnp.mean(x, axis=(0, *space))
        return here if axis is None else lax.pmean(here, axis)

      used_mean = over_batch(x)
      used_variance = over_batch(
        jnp.square(x - used_mean.reshape([1] * len(space) + [1, channels]))
      )
      count = x.size // channels * (1 if axis is None else lax.axis_size(axis))
      if not self.is_initializing():
        unbiased = used_variance * (count / max(count - 1, 1))
        mean.value = self.momentum * mean.value + (1 - self.momentum) * used_mean
        variance.value = self.momentum * variance.value + (1 - self.momentum) * unbiased
    used_mean, used_variance, scale, bias = (
      jnp.asarray(y).reshape(-1, *[1] * len(space), channels)
      for y in (used_mean, used_variance, scale, bias)
    )
    factor = lax.rsqrt(used_variance + self.epsilon) * scale
    return ((x - used_mean) * factor + bias).astype(self.dtype)
