"""The networks of EMMA (arXiv 2305.11443, as its published program computes them).

Pictures are NHWC, float32 in [0, 1], one channel. The fuser's sides are multiples of 8 and at least
16, the sensing network's multiples of 16 (of five levels).
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.nn import layers
from dmfnet_jax.nn.batch_norm import BatchNorm
from dmfnet_jax.nn.initializers import torch_kernel
from dmfnet_jax.nn.restormer import BaseBlock, conv

Array = jax.Array

# Of what is narrow, and 3x3: borders are reflected.
_reflected = functools.partial(conv, kernel_size=3, padding="REFLECT")


def _double(features: int, **kwargs: Any) -> nn.ConvTranspose:
  return layers.conv_transpose(features, use_bias=False, kernel_init=torch_kernel, **kwargs)


class Residuals(nn.Module):
  """The local branch: two residual blocks of two convolutions; nothing follows the sums."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, C]."""
    width = x.shape[-1]
    same = functools.partial(
      layers.torch_conv, width, width, 3, padding="REFLECT", dtype=self.dtype
    )
    for i in range(2):
      h = nn.relu(same(name=f"conv{i}_1")(x))
      x = x + same(name=f"conv{i}_2")(h)
    return x


class Block(nn.Module):
  """A global branch (attention over channels) beside a local one, and a convolution of both.

  Attributes:
    width: channels of the result.
    heads: of the attention; must divide the width.
    dtype: compute dtype.
  """

  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, width]."""
    x = _reflected(self.width, dtype=self.dtype, name="embed")(x)
    of_whole = BaseBlock(self.heads, "reflect", self.dtype, name="global")(x)
    of_place = Residuals(self.dtype, name="local")(x)
    merge = _reflected(self.width, dtype=self.dtype, name="merge")
    return merge(jnp.concatenate([of_whole, of_place], axis=-1))


class Fuser(nn.Module):
  """Two encoders that share nothing, a fusion at each level, and a decoder over all of them.

  Attributes:
    widths: channels of the levels, fine to coarse.
    heads: of all attentions; must divide the widths.
    dtype: compute dtype.
    remat: recompute each block's activations in the backward pass.
  """

  widths: tuple[int, ...] = (8, 16, 32, 32)
  heads: int = 8
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, infrared: Array, visible: Array) -> Array:
    """Fuses [B, H, W, 1] twice to [B, H, W, 1], float32 in (0, 1); the order matters."""
    block = nn.remat(Block) if self.remat else Block
    levels = range(1, len(self.widths) + 1)

    def encode(name: str, x: Array) -> list[Array]:
      found = []
      for k, width in zip(levels, self.widths, strict=True):
        if k > 1:
          down = _reflected(x.shape[-1], strides=2, dtype=self.dtype, name=f"{name}_down_{k - 1}")
          x = down(x)
        x = block(width, self.heads, self.dtype, name=f"{name}_{k}")(x)
        found.append(x)
      return found

    encoded = [
      encode(name, x.astype(self.dtype))
      for name, x in (("infrared", infrared), ("visible", visible))
    ]
    fused = [
      block(width, self.heads, self.dtype, name=f"fuse_{k}")(jnp.concatenate(both, axis=-1))
      for k, width, *both in zip(levels, self.widths, *encoded, strict=True)
    ]
    x = fused.pop()
    for k in reversed(levels):
      if k < len(self.widths):
        up = _double(self.widths[k - 1], dtype=self.dtype, name=f"up_{k + 1}")
        x = jnp.concatenate([nn.relu(up(x)), fused.pop()], axis=-1)
      x = block(self.widths[k - 1], self.heads, self.dtype, name=f"decode_{k}")(x)
    out = layers.torch_conv(self.widths[0], 1, 3, padding="REFLECT", dtype=self.dtype, name="out")
    return nn.sigmoid(out(x).astype(jnp.float32))


class ConvPair(nn.Module):
  """Twice a 3x3 convolution, a batch norm and a ReLU.

  Attributes:
    width: channels of the result.
    dtype: compute dtype.
  """

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool, axis: str | None) -> Array:
    """Maps [B, H, W, C] to [B, H, W, width]; see `BatchNorm` for the rest."""
    for i in (1, 2):
      x = layers.torch_conv(x.shape[-1], self.width, 3, dtype=self.dtype, name=f"conv{i}")(x)
      x = nn.relu(BatchNorm(dtype=self.dtype, name=f"norm{i}")(x, train, axis))
    return x


class SensingNet(nn.Module):
  """A UNet that guesses what a sensor would have seen of a fused picture.

  Attributes:
    width: channels of the finest level; each coarser one has twice as many.
    levels: how many there are.
    dtype: compute dtype.
    remat: recompute each pair's activations in the backward pass.
  """

  width: int = 64
  levels: int = 5
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, fused: Array, train: bool = False, axis: str | None = None) -> Array:
    """Maps [B, H, W, 1] to [B, H, W, 1], float32 in (0, 1); see `BatchNorm` for the rest."""
    pair = nn.remat(ConvPair, static_argnums=(2, 3)) if self.remat else ConvPair
    x = fused.astype(self.dtype)
    skips = []
    for k in range(1, self.levels + 1):
      if k > 1:
        skips.append(x)
        x = nn.max_pool(x, (2, 2), (2, 2))
      x = pair(self.width << (k - 1), self.dtype, name=f"down_{k}")(x, train, axis)
    for k in range(self.levels - 1, 0, -1):
      width = self.width << (k - 1)
      x = nn.relu(_double(width, dtype=self.dtype, name=f"double_{k + 1}")(x))
      x = jnp.concatenate([x, skips.pop()], axis=-1)
      x = pair(width, self.dtype, name=f"up_{k}")(x, train, axis)
    out = layers.torch_conv(self.width, 1, 3, dtype=self.dtype, name="out")
    return nn.sigmoid(out(x).astype(jnp.float32))


def build_fuser(fuser: Mapping[str, Any], dtype: Any = "float32", remat: bool = False) -> Fuser:
  """The fuser that a config's `fuser` section describes."""
  return Fuser(tuple(fuser["widths"]), fuser["heads"], dtype, remat)


def build_sensing(
  sensing: Mapping[str, Any], dtype: Any = "float32", remat: bool = False
) -> SensingNet:
  """The sensing network that a config's `sensing` section describes; both sources' are alike."""
  return SensingNet(sensing["width"], sensing["levels"], dtype, remat)
