"""CoCoNet's network and its VGG-19 (arXiv 2211.10960, as the published program computes them).

A U-Net over both pictures, whose skips are its own features and VGG's of each source, all of them
weighed by channel attention. Pictures are NHWC, one channel. `first` is the visible picture,
`second` the infrared one.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.nn import layers
from dmfnet_jax.nn.batch_norm import BatchNorm

Array = jax.Array

STRIDE = 16
WIDTH = 32  # as published
STATISTICS = ("batch", "picture", "running")
# The convolutions of VGG-19's levels, by their number, as far as they are needed.
_VGG_LEVELS = (2, 2, 4, 4, 1)
_VGG_MULTIPLES = (1, 2, 4, 8, 8)  # of the width
BOTTOM, TOP = (0, 1, 2), (3, 4)


def pad(image: Array) -> tuple[Array, tuple[slice, ...]]:
  """Reflects [B, H, W, C] to multiples of 16, half of it on either side; and where it lay."""
  missing = [-side % STRIDE for side in image.shape[1:3]]
  widths = [(m // 2, m - m // 2) for m in missing]
  inside = tuple(slice(b, b + n) for (b, _), n in zip(widths, image.shape[1:3], strict=True))
  return jnp.pad(image, ((0, 0), *widths, (0, 0)), mode="reflect"), inside


def halve(x: Array) -> Array:
  """The maxima of 2x2 pixels; an odd row or column at the end is dropped."""
  return nn.max_pool(x, (2, 2), (2, 2))


def double(x: Array) -> Array:
  """Bilinear, twice the size: half-pixel centres, edges repeated."""
  b, h, w, c = x.shape
  return jax.image.resize(x, (b, 2 * h, 2 * w, c), "bilinear")


class Vgg(nn.Module):
  """VGG-19's convolutions (arXiv 1409.1556) of some levels.

  Attributes:
    levels: which, counted from 0.
    width: channels of the first level.
    early_pool: the first level's halving comes before its second convolution, as in CoCoNet's
      network, and not behind it.
    dtype: compute dtype.
  """

  levels: tuple[int, ...] = BOTTOM
  width: int = 64
  early_pool: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    """Maps [B, H, W, 1], or the last features of the level before, to features behind each ReLU."""
    features = {}
    for level in self.levels:
      if level > 0:
        x = halve(x)
      for i in range(_VGG_LEVELS[level]):
        if self.early_pool and (level, i) == (0, 1):
          x = halve(x)
        name = f"conv{level + 1}_{i + 1}"
        width = self.width * _VGG_MULTIPLES[level]
        x = nn.relu(layers.conv(width, 3, dtype=self.dtype, name=name)(x.astype(self.dtype)))
        features[name] = x
    return features


class ChannelAttention(nn.Module):
  """A channel's own value and, by a learnt share, those of the channels least correlated with it.

  Attributes:
    dtype: of the convolutions; correlations and softmax are float32.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, *sources: Array) -> list[Array]:
    """Maps each [B, H, W, C] to the same shape; all are weighed by the same parameters."""
    x = jnp.concatenate(sources)
    channels = x.shape[-1]
    query, key, value = (
      layers.torch_conv(channels, channels, 3, dtype=self.dtype, name=f"conv_{i}")(x)
      for i in (1, 2, 3)
    )
    gamma = self.param("gamma", nn.initializers.zeros_init(), (1,))
    query, key = (y.astype(jnp.float32) for y in (query, key))
    energy = jnp.einsum("bhwc,bhwd->bcd", query, key, precision="highest")
    # The published softmax is over what is missing to the row's largest: the least weighs most.
    weights = nn.softmax(jnp.max(energy, axis=-1, keepdims=True) - energy, axis=-1)
    precision = layers.matmul_precision(self.dtype)
    attended = jnp.einsum("bcd,bhwd->bhwc", weights.astype(self.dtype), value, precision=precision)
    result = jnp.asarray(gamma, self.dtype)[None, None, None] * attended + value
    return jnp.split(result, len(sources))


class Block(nn.Module):
  """A 3x3 convolution, leaky ReLU and, in this order, batch norm.

  Attributes:
    features: channels of the result.
    statistics: of the norm, see `Fuser`; None for no norm.
    axis: over which devices share a batch.
    dtype: compute dtype.
  """

  features: int
  statistics: str | None
  axis: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, features]."""
    x = layers.torch_conv(x.shape[-1], self.features, 3, dtype=self.dtype, name="conv")(x)
    x = nn.leaky_relu(x, 0.2)
    if self.statistics is None:
      return x
    norm = BatchNorm(per_picture=self.statistics == "picture", dtype=self.dtype, name="norm")
    return norm(x, self.statistics == "batch", self.axis)


class Fuser(nn.Module):
  """The U-Net; layers are numbered as the published program numbers them.

  Attributes:
    width: channels at full size; VGG's features must be twice as wide.
    statistics: which ones the batch norms take, of `STATISTICS`: the batch's, which the running
      ones follow; each picture's own; or the running ones.
    axis: over which devices share a batch.
    dtype: compute dtype; norms are float32.
    remat: recompute each block's activations in the backward pass.
  """

  width: int = 32
  statistics: str = "picture"
  axis: str | None = None
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self, first: Array, second: Array, of_first: Sequence[Array], of_second: Sequence[Array]
  ) -> dict[str, Array]:
    """Fuses.

    Args:
      first: [B, H, W, 1], sides of multiples of 16.
      second: [B, H, W, 1].
      of_first: VGG's features of it, at 1/2, 1/4 and 1/8 of the size.
      of_second: those of the other.

    Returns:
      Features by their names, "latent" and "fused" [B, H, W, 1], the latter float32 in (-1, 1).
    """
    block, cam = Block, ChannelAttention
    if self.remat:
      block, cam = nn.remat(Block), nn.remat(ChannelAttention)
    found: dict[str, Array] = {}

    def conv(x: Array, number: str, multiple: int, normed: bool = True) -> Array:
      statistics = self.statistics if normed else None
      made = block(multiple * self.width, statistics, self.axis, self.dtype, name=f"block{number}")
      found[f"conv{number}"] = made(x)
      return found[f"conv{number}"]

    def plain(x: Array, name: str, multiple: int) -> Array:
      features = multiple * self.width
      found[name] = layers.torch_conv(x.shape[-1], features, 3, dtype=self.dtype, name=name)(x)
      return found[name]

    def skip(own: Array, level: int) -> Array:
      sources = [x.astype(self.dtype) for x in (own, of_second[level - 1], of_first[level - 1])]
      attended = cam(self.dtype, name=f"cam{level}")(*sources)
      for name, x in zip(("own", "second", "first"), attended, strict=True):
        found[f"cam{level}_{name}"] = x
      return jnp.concatenate(attended, axis=-1)

    x = jnp.concatenate([first, second], axis=-1).astype(self.dtype)
    e1 = conv(conv(x, "1_1", 1), "1_2", 1)
    e2 = conv(conv(halve(e1), "2_1", 2), "2_2", 2)
    e3 = conv(conv(halve(e2), "3_1", 4), "3_2", 4)
    e4 = conv(halve(e3), "4_1", 8)

    x = conv(plain(skip(e4, 3), "deconv4", 8), "4_2", 8)
    x = plain(double(x), "deconv6", 4)
    x = jnp.concatenate([x, plain(skip(e3, 2), "att_deconv7", 4)], axis=-1)
    x = conv(conv(x, "7_1", 4), "7_2", 4)
    x = plain(double(x), "deconv7", 2)
    x = jnp.concatenate([x, plain(skip(e2, 1), "att_deconv8", 2)], axis=-1)
    x = conv(conv(x, "8_1", 2), "8_2", 2)
    x = jnp.concatenate([plain(double(x), "deconv8", 1), e1], axis=-1)
    x = conv(conv(x, "9_1", 1), "9_2", 1, normed=False)
    last = layers.torch_conv(self.width, 1, 1, dtype=self.dtype, name="conv10")
    latent = last(x).astype(jnp.float32)
    return {**found, "latent": latent, "fused": jnp.tanh(latent)}
