"""The published prior: the unconditional UNet of guided-diffusion (arXiv 2105.05233).

Pictures are [B, H, W, 3] float32, H and W multiples of 32 (of six levels).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.nn import layers

Array = jax.Array

CHANNELS = 3  # of a picture; the network gives as many of noise, and of a variance


def embed_timestep(timestep: Array, width: int) -> Array:
  """Cosines and sines of the base schedule's step [B], [B, width]."""
  frequencies = jnp.exp(-math.log(1e4) / (width // 2) * jnp.arange(width // 2, dtype=jnp.float32))
  angles = timestep[:, None] * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _halve(x: Array) -> Array:
  """[B, H, W, C] to means of 2x2, [B, H/2, W/2, C]."""
  b, h, w, c = x.shape
  return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


class ResBlock(nn.Module):
  """Two convolutions behind norms; the embedding scales and shifts what the second norm gives.

  Attributes:
    width: channels of the result.
    resample: "down" or "up" halves or doubles the sides, of the input and of its first norm.
    dtype: compute dtype.
  """

  width: int
  resample: str = ""
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, embedding: Array) -> Array:
    """Maps [B, H, W, C] and the embedding [B, E] to [B, H, W, width]."""
    h = nn.silu(layers.GroupNorm(dtype=self.dtype, name="in_norm")(x))
    if self.resample:
      change = _halve if self.resample == "down" else layers.upsample_nearest
      h, x = change(h), change(x)
    h = layers.conv(self.width, 3, dtype=self.dtype, name="in_conv")(h)
    of_time = layers.dense(2 * self.width, dtype=self.dtype, name="embedding")(nn.silu(embedding))
    scale, shift = jnp.split(of_time[:, None, None], 2, axis=-1)
    h = nn.silu(layers.GroupNorm(dtype=self.dtype, name="out_norm")(h) * (1 + scale) + shift)
    h = layers.conv(self.width, 3, dtype=self.dtype, name="out_conv")(h)
    if x.shape[-1] != self.width:
      x = layers.conv(self.width, 1, dtype=self.dtype, name="skip")(x)
    return x + h


class Attention(nn.Module):
  """Attention of all positions to each other, in heads.

  Attributes:
    head_width: channels of a head.
    dtype: compute dtype; the softmax is float32.
  """

  head_width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, C]."""
    b, height, width, channels = x.shape
    h = layers.GroupNorm(dtype=self.dtype, name="norm")(x).reshape(b, height * width, channels)
    qkv = layers.dense(3 * channels, dtype=self.dtype, name="qkv")(h)
    # Each head has its queries, keys and values side by side.
    query, key, value = jnp.split(
      qkv.reshape(b, height * width, channels // self.head_width, 3 * self.head_width), 3, axis=-1
    )
    precision = layers.matmul_precision(self.dtype)
    scale = self.head_width**-0.25
    scores = jnp.einsum("bqhc,bkhc->bhqk", query * scale, key * scale, precision=precision)
    weights = nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
    attended = jnp.einsum("bhqk,bkhc->bqhc", weights, value, precision=precision)
    h = layers.dense(channels, dtype=self.dtype, name="proj")(attended.reshape(h.shape))
    return x + h.reshape(x.shape)


class GuidedUNet(nn.Module):
  """Predicts the noise in a picture. Its parts are named by their place in the published lists.

  Attributes:
    width: channels of the finest level; the embedding has four times as many.
    multipliers: each level's width over `width`, fine to coarse.
    num_res_blocks: per level on the way down; one more on the way up.
    attention_downsampling: levels, by how much smaller they are, that attend besides the middle.
    head_width: channels of the attentions' heads.
    dtype: compute dtype.
  """

  width: int = 256
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
  num_res_blocks: int = 2
  attention_downsampling: tuple[int, ...] = (8, 16, 32)
  head_width: int = 64
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, timestep: Array) -> Array:
    """Maps [B, H, W, 3] and base steps [B] float32 to [B, H, W, 6]: noise, and a variance."""
    wide = 4 * self.width
    embedding = layers.dense(wide, dtype=self.dtype, name="time_embed_0")(
      embed_timestep(timestep, self.width)
    )
    embedding = layers.dense(wide, dtype=self.dtype, name="time_embed_2")(nn.silu(embedding))

    def block(x: Array, level: int, name: str) -> Array:
      width = self.width * self.multipliers[level]
      x = ResBlock(width, dtype=self.dtype, name=f"{name}_0")(x, embedding)
      if 2**level in self.attention_downsampling:
        x = Attention(self.head_width, self.dtype, name=f"{name}_1")(x)
      return x

    def resample(x: Array, kind: str, name: str) -> Array:
      return ResBlock(x.shape[-1], kind, self.dtype, name=name)(x, embedding)

    x = layers.conv(self.width, 3, dtype=self.dtype, name="input_0_0")(x.astype(self.dtype))
    skips = [x]
    levels = range(len(self.multipliers))
    for level in levels:
      for _ in range(self.num_res_blocks):
        x = block(x, level, f"input_{len(skips)}")
        skips.append(x)
      if level != levels[-1]:
        x = resample(x, "down", f"input_{len(skips)}_0")
        skips.append(x)
    x = ResBlock(x.shape[-1], dtype=self.dtype, name="middle_0")(x, embedding)
    x = Attention(self.head_width, self.dtype, name="middle_1")(x)
    x = ResBlock(x.shape[-1], dtype=self.dtype, name="middle_2")(x, embedding)
    count = len(skips)
    for level in reversed(levels):
      attends = 2**level in self.attention_downsampling
      for i in range(self.num_res_blocks + 1):
        name = f"output_{count - len(skips)}"
        x = block(jnp.concatenate([x, skips.pop()], axis=-1), level, name)
        if level and i == self.num_res_blocks:
          x = resample(x, "up", f"{name}_{1 + attends}")
    x = nn.silu(layers.GroupNorm(dtype=self.dtype, name="out_0")(x))
    return layers.conv(2 * CHANNELS, 3, dtype=self.dtype, name="out_2")(x).astype(jnp.float32)
