"""Transformer blocks that attend over channels (Restormer, arXiv 2111.09881, and its kin).

Images are NHWC. Attention is a matrix of channels by channels for each head, so its cost is linear
in the pixels; the whole picture takes part in it.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.nn import layers
from dmfnet_jax.nn.depthwise import GroupedConv
from dmfnet_jax.nn.initializers import torch_kernel

Array = jax.Array

conv = functools.partial(layers.conv, use_bias=False, kernel_init=torch_kernel)


class LayerNorm(nn.Module):
  """Normalises each pixel over its channels: biased variance, epsilon 1e-5; in float32."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, C] of `dtype`."""
    norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, name="body")
    return norm(x.astype(jnp.float32)).astype(self.dtype)


class ChannelAttention(nn.Module):
  """Attention of a head's channels to one another, over normalised channels.

  Attributes:
    heads: each owns as many neighbouring channels.
    dtype: of the result; norms and the softmax are float32.
  """

  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, qkv: Array) -> Array:
    """Maps queries, keys and values [B, H, W, 3 C], in this order, to [B, H, W, C]."""
    b, h, w, channels = qkv.shape
    temperature = self.param("temperature", nn.initializers.ones_init(), (self.heads, 1, 1))
    shape = (b, h * w, self.heads, channels // 3 // self.heads)
    query, key, value = (x.reshape(shape) for x in jnp.split(qkv, 3, axis=-1))
    precision = layers.matmul_precision(self.dtype)
    scores = jnp.einsum("bnhc,bnhd->bhcd", _unit(query), _unit(key), precision=precision)
    weights = nn.softmax(scores * jnp.asarray(temperature)[None], axis=-1)
    attended = jnp.einsum("bhcd,bnhd->bnhc", weights.astype(self.dtype), value, precision=precision)
    return attended.reshape(b, h, w, channels // 3)


def _unit(x: Array) -> Array:
  """Divides [B, N, heads, C] by its length along N, at least 1e-12; float32."""
  x = x.astype(jnp.float32)
  length = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=1, keepdims=True), 1e-24))
  return x / length


class GatedMlp(nn.Module):
  """1x1 to twice the hidden width, a 3x3 convolution in groups, one half gating the other, 1x1.

  Attributes:
    hidden: width of each half.
    group: channels in a group of the 3x3 convolution.
    padding: of it, "zero" or "reflect".
    dtype: compute dtype.
  """

  hidden: int
  group: int = 1
  padding: str = "zero"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, C]."""
    h = conv(2 * self.hidden, 1, dtype=self.dtype, name="project_in")(x)
    h = GroupedConv(self.group, self.padding, self.dtype, name="dwconv")(h)
    gate, value = jnp.split(h, 2, axis=-1)
    h = nn.gelu(gate, approximate=False) * value
    return conv(x.shape[-1], 1, dtype=self.dtype, name="project_out")(h)


class RestormerBlock(nn.Module):
  """Channel attention on depthwise queries, keys and values; a gated MLP of twice the width.

  Attributes:
    heads: of the attention.
    dtype: compute dtype.
  """

  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, C]."""
    channels = x.shape[-1]
    h = conv(3 * channels, 1, dtype=self.dtype, name="qkv")(LayerNorm(self.dtype, name="norm1")(x))
    h = GroupedConv(dtype=self.dtype, name="qkv_dwconv")(h)
    h = ChannelAttention(self.heads, self.dtype, name="attention")(h)
    h = conv(channels, 1, dtype=self.dtype, name="attention_out")(h)
    self.sow("intermediates", "attended", h)  # kept only where somebody asks for it
    x = x + h
    mlp = GatedMlp(2 * channels, dtype=self.dtype, name="mlp")
    return x + mlp(LayerNorm(self.dtype, name="norm2")(x))


class BaseBlock(nn.Module):
  """Channel attention behind a full 3x3 convolution; a gated MLP in groups of two channels.

  Its papers call it a "lite transformer".

  Attributes:
    heads: of the attention.
    padding: of the MLP's 3x3 convolution: "zero" or "reflect"; papers differ.
    dtype: compute dtype.
  """

  heads: int
  padding: str = "zero"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, C]."""
    channels = x.shape[-1]
    h = conv(3 * channels, 1, dtype=self.dtype, name="qkv1")(LayerNorm(self.dtype, name="norm1")(x))
    h = conv(3 * channels, 3, dtype=self.dtype, name="qkv2")(h)
    h = ChannelAttention(self.heads, self.dtype, name="attention")(h)
    x = x + conv(channels, 1, dtype=self.dtype, name="attention_out")(h)
    mlp = GatedMlp(channels, 2, self.padding, self.dtype, name="mlp")
    return x + mlp(LayerNorm(self.dtype, name="norm2")(x))
