"""The networks of Hi-Net (arXiv 2002.05000, as its published program computes them).

Slices are NHWC, one channel, float32 in [-1, 1]; the generator's sides are multiples of 8. Of each
input contrast an encoder keeps features at a half, a quarter and an eighth of the size. A fusion
network and the decoder of the missing contrast take both inputs' features at every level.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.nn import layers
from dmfnet_jax.nn.batch_norm import BatchNorm
from dmfnet_jax.nn.initializers import torch_bias

Array = jax.Array
Features = list[Array]

STRIDE = 8
INPUTS = ("a", "b")
_SLOPE = 0.2  # of the leaky ReLUs
# The program gives torch's BatchNorm 0.8 where its epsilon stands.
_DISCRIMINATOR_EPSILON = 0.8


def _scale(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def conv(x: Array, features: int, *, dtype: Any, **kwargs: Any) -> Array:
  """A 3x3 convolution that begins as the published ones, with weights of deviation 0.02."""
  init = {
    "kernel_init": nn.initializers.normal(0.02),
    "bias_init": torch_bias(9 * x.shape[-1]),
  }
  return layers.conv(features, 3, dtype=dtype, **init, **kwargs)(x.astype(dtype))


def larger(a: Array, b: Array) -> Array:
  """The maximum of two; where they are equal the gradient is the first one's, as in PyTorch."""
  return jnp.where(a >= b, a, b)


def halve(x: Array) -> Array:
  """The maxima of 2x2 pixels; of equal ones the first has the gradient.

  Pairs of pairs: XLA's gradient of a pooling window is slow on CPUs.
  """
  b, h, w, c = x.shape
  x = x.reshape(b, h // 2, 2, w // 2, 2, c)
  rows = [larger(x[:, :, i, :, 0], x[:, :, i, :, 1]) for i in (0, 1)]
  return larger(*rows)


class Block(nn.Module):
  """3x3 convolutions, each with a batch norm and a leaky ReLU behind it.

  Attributes:
    widths: channels of each.
    slope: of the leaky ReLU; 0 for a ReLU.
    train: batch norms take the batch's statistics, which the running ones follow.
    axis: over which devices share a batch.
    dtype: compute dtype; norms are float32.
  """

  widths: Sequence[int]
  slope: float = _SLOPE
  train: bool = False
  axis: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, widths[-1]]."""
    for i, width in enumerate(self.widths, 1):
      x = conv(x, width, dtype=self.dtype, name=f"conv{i}")
      norm = BatchNorm(scale_init=_scale, dtype=self.dtype, name=f"norm{i}")
      x = nn.leaky_relu(norm(x, self.train, self.axis), self.slope)
    return x


class MixedFusion(nn.Module):
  """Mixed fusion block: sum, product and maximum of two features, and what came before.

  Attributes:
    features: channels of the result; the others as `Block`'s.
  """

  features: int
  slope: float = _SLOPE
  train: bool = False
  axis: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, a: Array, b: Array, before: Array | None = None) -> Array:
    """Maps [B, H, W, C] each to [B, H, W, features]."""
    mode = (self.slope, self.train, self.axis, self.dtype)
    mixed = jnp.concatenate([a + b, a * b, larger(a, b)], axis=-1)
    x = Block((a.shape[-1],), *mode, name="mix")(mixed)
    if before is not None:
      x = jnp.concatenate([x, before], axis=-1)
    return Block((self.features,), *mode, name="merge")(x)


class Generator(nn.Module):
  """Encoders of both inputs, the fusion network, and the decoder of the missing contrast.

  Attributes:
    width: channels at full size; the others as `Block`'s.
    remat: recompute each block's activations in the backward pass.
  """

  width: int = 32
  train: bool = False
  axis: str | None = None
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, a: Array, b: Array) -> dict[str, Array]:
    """Makes the missing contrast.

    Args:
      a: [B, H, W, 1].
      b: the same.

    Returns:
      "made", [B, H, W, 1] float32 in (-1, 1), and each input's coarsest features by its name, from
      which `Decoders` makes it again.
    """
    n, leaky, relu = self.width, _SLOPE, 0.0
    block = nn.remat(Block) if self.remat else Block
    mixed = nn.remat(MixedFusion) if self.remat else MixedFusion

    def plain(x: Array, name: str, width: int, slope: float) -> Array:
      return block((width,), slope, self.train, self.axis, self.dtype, name=name)(x)

    def mix(level: int, name: str, width: int, slope: float, before: Array | None = None) -> Array:
      made = mixed(width, slope, self.train, self.axis, self.dtype, name=name)
      return made(*(encoded[source][level] for source in INPUTS), before)

    encoded: dict[str, Features] = {}
    for source, x in zip(INPUTS, (a, b), strict=True):
      encoded[source] = []
      for level, width in enumerate((n, 2 * n, 4 * n), 1):
        mode = (leaky, self.train, self.axis, self.dtype)
        x = halve(block((width, width), *mode, name=f"encode{level}_{source}")(x))
        encoded[source].append(x)

    x = halve(mix(0, "fuse1", 2 * n, leaky))
    x = halve(mix(1, "fuse2", 4 * n, leaky, x))
    x = mix(2, "fuse3", 4 * n, leaky, x)
    x = plain(x, "fuse4", 8 * n, leaky)

    x = plain(x, "decode1", 4 * n, relu)
    x = mix(2, "decode2", 2 * n, relu, x)
    x = mix(1, "decode3", n, relu, layers.upsample_nearest(x))
    x = mix(0, "decode4", n, relu, layers.upsample_nearest(x))
    x = plain(layers.upsample_nearest(x), "decode5", n, relu)
    made = jnp.tanh(conv(x, 1, dtype=self.dtype, name="out").astype(jnp.float32))
    return {"made": made, **{source: features[-1] for source, features in encoded.items()}}


class Decoder(nn.Module):
  """Makes an input again of its coarsest features; attributes as `Generator`'s."""

  width: int = 32
  train: bool = False
  axis: str | None = None
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H/8, W/8, 4 width] to [B, H, W, 1], float32 in (-1, 1)."""
    block = nn.remat(Block) if self.remat else Block
    n, mode = self.width, (0.0, self.train, self.axis, self.dtype)
    x = block((4 * n,), *mode, name="level3")(x)
    for level, widths in ((2, (4 * n, 2 * n)), (1, (2 * n, n)), (0, (n,))):
      x = block(widths, *mode, name=f"level{level}")(layers.upsample_nearest(x))
    return jnp.tanh(conv(x, 1, dtype=self.dtype, name="out").astype(jnp.float32))


class Decoders(nn.Module):
  """The decoders of both inputs, for training only; attributes as `Generator`'s."""

  width: int = 32
  train: bool = False
  axis: str | None = None
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, a: Array, b: Array) -> tuple[Array, Array]:
    """Maps both inputs' features to both inputs, see `Decoder`."""
    mode = (self.width, self.train, self.axis, self.dtype, self.remat)
    made_a, made_b = (
      Decoder(*mode, name=source)(x) for source, x in zip(INPUTS, (a, b), strict=True)
    )
    return made_a, made_b


class Discriminator(nn.Module):
  """Tells true slices of the missing contrast from made ones, patch by patch.

  Attributes:
    width: channels of the first convolution; the others as `Block`'s.
  """

  width: int = 32
  train: bool = False
  axis: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, 1] to [B, ceil(H/16) - 2, ceil(W/16) - 2, 1], near 1 for what seems true."""
    for i in range(1, 5):
      width = self.width << (i - 1)
      x = conv(x, width, dtype=self.dtype, strides=2, name=f"conv{i}")
      if i > 1:
        norm = BatchNorm(
          epsilon=_DISCRIMINATOR_EPSILON, scale_init=_scale, dtype=self.dtype, name=f"norm{i}"
        )
        x = norm(x, self.train, self.axis)
      x = nn.leaky_relu(x, _SLOPE)
    return conv(x, 1, dtype=self.dtype, padding=0, name="last").astype(jnp.float32)


def build(
  width: int, dtype: Any, train: bool = False, axis: str | None = None, remat: bool = False
) -> dict[str, Any]:
  """The networks by name; the generator alone makes slices."""
  return {
    "generator": Generator(width, train, axis, dtype, remat),
    "decoders": Decoders(width, train, axis, dtype, remat),
    "discriminator": Discriminator(width, train, axis, dtype),
  }
