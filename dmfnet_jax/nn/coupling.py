"""The coupling node: an affine coupling of two halves of the channels.

As the layers of invertible networks (Dinh et al., arXiv 1605.08803), but the published node has no
residual in its bottlenecks and no bound on the exponent. Images are NHWC.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.nn import layers
from dmfnet_jax.nn.depthwise import GroupedConv
from dmfnet_jax.nn.initializers import torch_bias, torch_kernel
from dmfnet_jax.nn.restormer import conv

Array = jax.Array


class Bottleneck(nn.Module):
  """1x1 to twice the width, ReLU6, a depthwise 3x3 (reflected), ReLU6, 1x1 back; no bias."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, C]."""
    channels = x.shape[-1]
    h = nn.relu6(conv(2 * channels, 1, dtype=self.dtype, name="conv1")(x))
    h = nn.relu6(GroupedConv(padding="reflect", dtype=self.dtype, name="depthwise")(h))
    return conv(channels, 1, dtype=self.dtype, name="conv2")(h)


class CouplingNode(nn.Module):
  """Mixes the channels, then shifts one half by the other and scales and shifts it in turn."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C], C even, to [B, H, W, C]."""
    channels = x.shape[-1]
    mix = layers.conv(
      channels,
      1,
      dtype=self.dtype,
      kernel_init=torch_kernel,
      bias_init=torch_bias(channels),
      name="mix",
    )
    z1, z2 = jnp.split(mix(x), 2, axis=-1)
    z2 = z2 + Bottleneck(self.dtype, name="phi")(z1)
    scale = jnp.exp(Bottleneck(self.dtype, name="rho")(z2))
    z1 = z1 * scale + Bottleneck(self.dtype, name="eta")(z2)
    return jnp.concatenate([z1, z2], axis=-1)
