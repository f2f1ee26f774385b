"""Attention: self-attention of the UNet, and how the fusion head weighs two sources.

Images are NHWC. The sources a and b of a level are [B, H, W, C] features of the MRI and of the
other modality.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.nn import layers
from dmfnet_jax.nn import rows as divided

Array = jax.Array


class SelfAttention(nn.Module):
  """Single-head self-attention over all positions, with a residual (SPEC, Stage I).

  Attributes:
    norm_groups: groups of the normalisation before the projections.
    dtype: compute dtype; the softmax is computed in float32.
  """

  norm_groups: int = 32
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, C]."""
    b, h, w, c = x.shape
    normed = layers.GroupNorm(self.norm_groups, dtype=self.dtype, name="norm")(x)
    qkv = layers.conv(3 * c, 1, use_bias=False, dtype=self.dtype, name="qkv")(normed)
    query, key, value = jnp.split(qkv.reshape(b, h * w, 1, 3 * c), 3, axis=-1)
    with (
      jax.default_matmul_precision(layers.matmul_precision(self.dtype).name.lower()),
      jax.numpy_dtype_promotion("standard"),  # JAX's own function relies on it
    ):
      attended = jax.nn.dot_product_attention(query, key, value)  # scale 1 / sqrt(C)
    out = layers.conv(c, 1, dtype=self.dtype, name="out")(attended.reshape(b, h, w, c))
    return x + out


class TripleAttention(nn.Module):
  """Spatial, channel and pixel attention over two sources (SPEC, Stage II, step 2).

  w = s * sigmoid(pixel attention) with s = a + b is not confined to [0, 1]; this is the published
  behaviour.

  Attributes:
    reduction: the channel attention's bottleneck is C / reduction wide.
    dtype: compute dtype.
    rows: see `nn.rows`.
  """

  reduction: int = 8
  dtype: Any = jnp.float32
  rows: str | None = None

  @nn.compact
  def __call__(self, a: Array, b: Array) -> Array:
    """Fuses [B, H, W, C] features of two sources into [B, H, W, C]."""
    channels = a.shape[-1]
    s = a + b

    statistics = jnp.concatenate(
      [jnp.mean(s, -1, keepdims=True), jnp.max(s, -1, keepdims=True)], axis=-1
    )
    spatial = nn.Conv(
      1,
      (7, 7),
      padding="VALID",
      dtype=self.dtype,
      precision=layers.matmul_precision(self.dtype),
      name="spatial",
    )(divided.pad_reflect(statistics, 3, self.rows))

    pooled = divided.mean(s, self.rows, dtype=jnp.float32).astype(self.dtype)
    squeezed = layers.conv(channels // self.reduction, 1, dtype=self.dtype, name="squeeze")(pooled)
    channel = layers.conv(channels, 1, dtype=self.dtype, name="excite")(nn.relu(squeezed))

    q = PixelAttention(self.dtype, self.rows, name="pixel")(s, spatial, channel)
    w = s * q
    return w * a + (1 - w) * b + a + b


class PixelAttention(nn.Module):
  """Sigmoid of a 3x3 grouped convolution over s and p = spatial + channel, interleaved.

  With two inputs and one output a group, it is two depthwise convolutions added. That of s is
  written as shifted multiply-adds, which XLA fuses into one pass; as a grouped convolution the same
  values take tens of times longer on CPU, and more in the gradient. Of p the channel attention is
  constant over positions, and the spatial attention has one channel.
  """

  dtype: Any = jnp.float32
  rows: str | None = None

  @nn.compact
  def __call__(self, s: Array, spatial: Array, channel: Array) -> Array:
    """Maps s [B, H, W, C], spatial [B, H, W, 1] and channel [B, 1, 1, C] to [B, H, W, C]."""
    _, h, w, c = s.shape
    # HWIO with I = (s, p), the layout of the grouped convolution.
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 2, c)).astype(self.dtype)
    bias = self.param("bias", nn.initializers.zeros_init(), (c,)).astype(self.dtype)
    s_padded, spatial_padded = (divided.pad_reflect(x, 1, self.rows) for x in (s, spatial))
    total = bias[None, None, None] + channel * kernel[:, :, 1].sum((0, 1))[None, None, None]
    total += jax.lax.conv_general_dilated(
      spatial_padded,
      kernel[:, :, 1:],
      (1, 1),
      "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=layers.matmul_precision(self.dtype),
    )
    for i in range(3):
      for j in range(3):
        window = (slice(None), slice(i, i + h), slice(j, j + w))
        total += kernel[i, j, 0][None, None, None] * s_padded[window]
    return nn.sigmoid(total)


class MeanAttention(nn.Module):
  """The ablation without triple attention: equal weights, w = 1/2."""

  dtype: Any = jnp.float32
  rows: str | None = None

  @nn.compact
  def __call__(self, a: Array, b: Array) -> Array:
    """Fuses [B, H, W, C] features of two sources into [B, H, W, C]."""
    return 0.5 * (a + b) + a + b
