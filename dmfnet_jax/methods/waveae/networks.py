"""A dense autoencoder with wavelet pooling, in the manner of arXiv 2310.11910.

The paper's abstract gives the idea: dense connections, and feature maps halved by a wavelet
transform with attention over the channels in place of pooling. Everything else here is ours.
Pictures are NHWC, float32 in [-1, 1], one channel.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.nn import layers, wavelet

Array = jax.Array

POOLS = ("wavelet", "LL", "mean", "max")
FUSIONS = ("conv", "mean", "max")

_REDUCTION = 8  # of the channels inside the attention


def _conv(inputs: int, features: int, size: int, dtype: Any, name: str | None = None) -> nn.Conv:
  """A convolution over reflected borders."""
  padding = "REFLECT" if size > 1 else 0
  return layers.torch_conv(inputs, features, size, dtype=dtype, padding=padding, name=name)


def _leaky(x: Array) -> Array:
  return nn.leaky_relu(x, 0.2)


class DenseBlock(nn.Module):
  """Convolutions each of which sees all before it (Huang et al., arXiv 1608.06993).

  Attributes:
    growth: channels that each adds.
    convs: how many there are.
    dtype: compute dtype.
  """

  growth: int
  convs: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, C + convs growth]."""
    for i in range(self.convs):
      conv = _conv(x.shape[-1], self.growth, 3, self.dtype, f"conv{i}")
      x = jnp.concatenate([x, _leaky(conv(x))], axis=-1)
    return x


class ChannelAttention(nn.Module):
  """Weighs channels by what their means say (squeeze and excitation, arXiv 1709.01507)."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to the same shape, each channel times a number in (0, 1)."""
    channels = x.shape[-1]
    squeezed = max(channels // _REDUCTION, 1)
    means = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True).astype(self.dtype)
    h = nn.relu(_conv(channels, squeezed, 1, self.dtype, "squeeze")(means))
    h = _conv(squeezed, channels, 1, self.dtype, "excite")(h)
    return x * nn.sigmoid(h.astype(jnp.float32)).astype(self.dtype)


class AttentionPool(nn.Module):
  """Halves the sides: wavelet bands, weighed by attention, mixed back to as many channels.

  Nothing is thrown away before the mixing, which is learned. With other pools it is what one
  compares with.

  Attributes:
    pool: "wavelet" with all four bands, "LL" with the smooth one only, "mean" or "max" of 2x2.
    attention: whether channels are weighed.
    wavelet: one of `nn.wavelet.WAVELETS`.
    dtype: compute dtype.
  """

  pool: str = "wavelet"
  attention: bool = True
  wavelet: str = "haar"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C], even sides, to [B, H / 2, W / 2, C]."""
    channels = x.shape[-1]
    if self.pool == "wavelet":
      h = wavelet.decompose(x, self.wavelet)
    elif self.pool == "LL":
      h = wavelet.decompose(x, self.wavelet)[..., :channels]
    else:
      b, height, width, _ = x.shape
      blocks = x.reshape(b, height // 2, 2, width // 2, 2, channels)
      h = blocks.mean((2, 4)) if self.pool == "mean" else blocks.max((2, 4))
    if self.attention:
      h = ChannelAttention(self.dtype, name="attention")(h)
    return _conv(h.shape[-1], channels, 1, self.dtype, "mix")(h)


class WaveletAutoencoder(nn.Module):
  """Encodes both pictures with the same weights, fuses each level, decodes by inverse transforms.

  Attributes:
    growth: channels that a dense convolution adds; all features are growth (convs + 1) wide.
    convs: convolutions of a dense block.
    levels: how often the sides are halved.
    pool: see `AttentionPool`.
    attention: see `AttentionPool`.
    wavelet: see `AttentionPool`; also of the decoder's inverse transforms.
    fusion: how a level's features become one: "conv", a learned mixture, or the "mean" or "max".
    dtype: compute dtype.
    remat: recompute each level's activations in the backward pass.
  """

  growth: int = 16
  convs: int = 3
  levels: int = 2
  pool: str = "wavelet"
  attention: bool = True
  wavelet: str = "haar"
  fusion: str = "conv"
  dtype: Any = jnp.float32
  remat: bool = False

  @property
  def width(self) -> int:
    return self.growth * (self.convs + 1)

  def setup(self) -> None:
    block = nn.remat(DenseBlock) if self.remat else DenseBlock
    pool = nn.remat(AttentionPool) if self.remat else AttentionPool
    growth, width, dtype = self.growth, self.width, self.dtype
    self.stem = _conv(1, growth, 3, dtype)
    self.blocks = [block(growth, self.convs, dtype) for _ in range(self.levels + 1)]
    self.pools = [pool(self.pool, self.attention, self.wavelet, dtype) for _ in range(self.levels)]
    dense = width + growth * self.convs
    self.narrow = [_conv(dense, width, 1, dtype) for _ in range(self.levels)]
    if self.fusion == "conv":
      self.fuse = [_conv(2 * width, width, 1, dtype) for _ in range(self.levels + 1)]
    self.spread = [_conv(width, 4 * width, 1, dtype) for _ in range(self.levels)]
    self.merge = [_conv(2 * width, width, 3, dtype) for _ in range(self.levels)]
    self.head = [_conv(width, growth, 3, dtype), _conv(growth, 1, 3, dtype)]

  def __call__(self, a: Array, b: Array) -> Array:
    """Fuses A and B, [B, H, W, 1] in [-1, 1], sides multiples of 2^levels; the same shape."""
    pairs = zip(self.encode(a), self.encode(b), strict=True)
    return self.decode([self._fuse(k, *pair) for k, pair in enumerate(pairs)])

  def encode(self, image: Array) -> list[Array]:
    """The levels' features of a picture, finest first: [B, H / 2^k, W / 2^k, width]."""
    x = _leaky(self.stem(image.astype(self.dtype)))
    found = [self.blocks[0](x)]
    for k in range(self.levels):
      pooled = self.pools[k](found[-1])
      found.append(self.narrow[k](self.blocks[k + 1](pooled)))
    return found

  def _fuse(self, level: int, a: Array, b: Array) -> Array:
    if self.fusion == "conv":
      return _leaky(self.fuse[level](jnp.concatenate([a, b], axis=-1)))
    return (a + b) / 2 if self.fusion == "mean" else jnp.maximum(a, b)

  def decode(self, fused: list[Array]) -> Array:
    """The picture of fused features, float32 in (-1, 1)."""
    x = fused[-1]
    for k in reversed(range(self.levels)):
      up = wavelet.compose(self.spread[k](x), self.wavelet)
      x = _leaky(self.merge[k](jnp.concatenate([up, fused[k]], axis=-1)))
    x = self.head[1](_leaky(self.head[0](x)))
    return jnp.tanh(x.astype(jnp.float32))


def build(network: Mapping[str, Any], dtype: Any, remat: bool = False) -> WaveletAutoencoder:
  """The network that a config's `network` section describes."""
  return WaveletAutoencoder(**network, dtype=dtype, remat=remat)
