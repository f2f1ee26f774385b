"""Layers that methods share. Images are NHWC; parameters are float32."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dmfnet_jax.nn import rows as divided
from dmfnet_jax.nn.initializers import torch_bias, torch_kernel

Array = jax.Array
Dtype = Any


def matmul_precision(dtype: Dtype) -> lax.Precision:
  """Returns the precision of matrix units for a compute dtype.

  TPUs (and GPUs through TF32) round float32 operands unless told otherwise; a model that is
  configured for float32 is meant to compute in float32.
  """
  return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


@functools.partial(jax.jit, static_argnums=(1, 2))
def orthogonal(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
  """The reference's initialisation. Jitted by itself: a model has few distinct kernel shapes."""
  return nn.initializers.orthogonal()(key, shape, dtype)


def _pointwise(x: Array, kernel: Array, *args: Any, precision: Any, **kwargs: Any) -> Array:
  """A 1x1 convolution [B, H, W, I] by [1, 1, I, O] as the matrix product that it is.

  On CPU XLA takes several times as long for the convolution, most of it in the gradients.
  """
  del args, kwargs  # strides, padding and the like: those of every 1x1 convolution here
  return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0], precision=precision)


def conv(
  features: int, kernel_size: int, *, dtype: Dtype, rows: str | None = None, **kwargs
) -> nn.Conv:
  """A square convolution padded by half its kernel on *every* side.

  This is torch's `padding=k // 2`. It differs from SAME at stride 2, where SAME would pad the
  bottom and the right only. `padding="REFLECT"` reflects instead of adding zeros. For divided
  `rows` (see `nn.rows`) the stride is 1 and the padding zeros.
  """
  kwargs.setdefault("kernel_init", orthogonal)
  kwargs.setdefault("padding", kernel_size // 2)
  if kernel_size == 1:
    kwargs["conv_general_dilated"] = _pointwise
  elif rows is not None:
    kwargs["conv_general_dilated"] = divided.divided_conv(rows)
  return nn.Conv(
    features,
    (kernel_size, kernel_size),
    dtype=dtype,
    precision=matmul_precision(dtype),
    **kwargs,
  )


class ConvOverParts(nn.Module):
  """A square convolution over the channels of several arrays, as over their concatenation.

  Each part takes its slice of the kernel and the products are added up, so that the concatenation,
  a copy of all of them, is never made. Padded as `conv`, with the parameters of that layer.
  """

  features: int
  kernel_size: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, parts: Sequence[Array]) -> Array:
    """Maps [B, H, W, C_i] to [B, H, W, features]."""
    channels = [part.shape[-1] for part in parts]
    shape = (self.kernel_size, self.kernel_size, sum(channels), self.features)
    kernel = self.param("kernel", orthogonal, shape).astype(self.dtype)
    bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(self.dtype)
    slices = jnp.split(kernel, np.cumsum(channels)[:-1], axis=2)
    convolve = _pointwise if self.kernel_size == 1 else lax.conv_general_dilated
    products = [
      convolve(
        part.astype(self.dtype),
        of_part,
        window_strides=(1, 1),
        padding=[(self.kernel_size // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=matmul_precision(self.dtype),
      )
      for part, of_part in zip(parts, slices, strict=True)
    ]
    return functools.reduce(jnp.add, products) + bias[None, None, None]


def conv_transpose(features: int, *, dtype: Dtype, **kwargs) -> nn.ConvTranspose:
  """A transposed convolution that doubles the sides: torch's 4x4 of stride 2 and padding 1.

  Its kernel is [4, 4, out, in], which torch's layout [in, out, 4, 4] becomes as others do.
  """
  return nn.ConvTranspose(
    features,
    (4, 4),
    (2, 2),
    padding="SAME",
    transpose_kernel=True,
    dtype=dtype,
    precision=matmul_precision(dtype),
    **kwargs,
  )


def torch_conv(inputs: int, features: int, kernel_size: int, *, dtype: Dtype, **kwargs) -> nn.Conv:
  """`conv` of so many input channels with PyTorch's default initialisation, of its bias too."""
  bias = torch_bias(kernel_size**2 * inputs)
  init: dict[str, Any] = {"kernel_init": torch_kernel, "bias_init": bias}
  return conv(features, kernel_size, dtype=dtype, **init, **kwargs)


def dense(features: int, *, dtype: Dtype, **kwargs) -> nn.Dense:
  """A dense layer with the reference's orthogonal initialisation."""
  return nn.Dense(
    features,
    kernel_init=orthogonal,
    dtype=dtype,
    precision=matmul_precision(dtype),
    **kwargs,
  )


class GroupNorm(nn.Module):
  """Group normalisation with torch's epsilon 1e-5 (flax's own is 1e-6).

  The same values as `flax.linen.GroupNorm`. Written with one moment a channel, merged to groups,
  and one multiply-add, it reads the activations once for both moments and once for the result; on
  CPU (8 x 96 x 96 x 64) that is three times faster than the general layer, and twice in the
  gradient.

  Attributes:
    num_groups: groups; must divide the channels.
    dtype: dtype of the result; statistics are float32.
  """

  num_groups: int = 32
  dtype: Dtype = jnp.float32

  def __call__(self, x: Array) -> Array:
    """Normalises [B, H, W, C] over positions and the channels of each group."""
    (normed,) = self.over_parts([x])
    return normed

  @nn.compact
  def over_parts(self, parts: Sequence[Array]) -> list[Array]:
    """Normalises several [B, H, W, C_i] as their concatenation would be, which is never made."""
    b = parts[0].shape[0]
    ends = np.cumsum([part.shape[-1] for part in parts])
    channels = int(ends[-1])
    scale = self.param("scale", nn.initializers.ones_init(), (channels,))
    bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
    parts = [part.astype(jnp.float32) for part in parts]

    def per_channel_mean(parts: Sequence[Array]) -> Array:  # [B, C]
      return jnp.concatenate([jnp.mean(part, axis=(1, 2)) for part in parts], axis=-1)

    def group_mean(per_channel: Array) -> Array:  # [B, C] to [B, C]
      groups = per_channel.reshape(b, self.num_groups, -1)
      mean = jnp.mean(groups, axis=-1, keepdims=True)
      return jnp.broadcast_to(mean, groups.shape).reshape(b, channels)

    mean = group_mean(per_channel_mean(parts))
    mean_of_squares = group_mean(per_channel_mean([part * part for part in parts]))
    variance = jnp.maximum(mean_of_squares - mean * mean, 0.0)
    factor = lax.rsqrt(variance + 1e-5) * scale[None]
    offset = bias[None] - mean * factor
    factors, offsets = (jnp.split(x[:, None, None], ends[:-1], axis=-1) for x in (factor, offset))
    return [
      (part * factor + offset).astype(self.dtype)
      for part, factor, offset in zip(parts, factors, offsets, strict=True)
    ]


def dropout(x: Array, rate: float, keys: Array) -> Array:
  """Dropout whose mask belongs to the example and not to the batch.

  Args:
    x: [B, ...] activations.
    rate: the probability that a value is dropped, in [0, 1), rounded to a multiple of 2^-16.
    keys: [B] PRNG keys, one an example, so that an example's mask does not depend on the batch,
      the device or the process in which it is computed.

  Returns:
    `x` with values dropped and the others scaled by 1 / (1 - rate).
  """
  if rate == 0.0:
    return x
  keep = jax.vmap(lambda key: _keep_mask(key, rate, x.shape[1:]))(keys)
  return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def _keep_mask(key: Array, rate: float, shape: tuple[int, ...]) -> Array:
  """False with probability `rate`, from sixteen random bits a value.

  A random word is a hundred integer operations, which a TPU's vector unit has to do: with one a
  value, as `jax.random.bernoulli` draws, dropout would be a quarter of a block's training time.
  """
  rows, *rest = shape
  words = jax.random.bits(key, (-(-rows // 2), *rest))
  # Halves lie rows apart, not channels: nothing moves between a TPU's lanes.
  halves = (words[None] >> jnp.array([0, 16], jnp.uint32).reshape(-1, *[1] * words.ndim)) & 0xFFFF
  halves = halves.reshape(-1, *rest)[:rows]
  return halves >= jnp.uint32(round(rate * 2**16))


def drop_path(x: Array, rate: float, keys: Array) -> Array:
  """Drops an example's whole branch, and scales those that stay (arXiv 1603.09382).

  Args:
    x: [B, ...], the branch beside a shortcut.
    rate: the probability that a branch is dropped, in [0, 1).
    keys: [B] PRNG keys, one an example.
  """
  if rate == 0.0:
    return x
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)
  factor = keep.astype(x.dtype) / (1 - rate)
  return x * factor.reshape(-1, *[1] * (x.ndim - 1))


def upsample_nearest(x: Array) -> Array:
  """Doubles [B, H, W, C] to [B, 2H, 2W, C] by repetition (a broadcast: no gather)."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def upsample_bilinear(x: Array, rows: str | None = None) -> Array:
  """Doubles [B, H, W, C] to [B, 2H, 2W, C], bilinear with aligned corners.

  With aligned corners output j samples input j (n - 1) / (2n - 1): even outputs 2i lie i / (2n - 1)
  before input i and odd outputs 2i + 1 lie (n - 1 - i) / (2n - 1) behind it. So each output is a
  blend of an input with one neighbour, and neither gathers nor (in the gradient) scatters are
  needed. `jax.image.resize` samples half-pixel centres, which is another operation. For divided
  `rows` see `nn.rows`.
  """
  for axis in (1, 2):
    own = n = x.shape[axis]
    shape = [1] * x.ndim
    shape[axis] = own
    i = jnp.arange(own, dtype=jnp.float32)
    # At the border the neighbour's weight is zero, so its value does not matter.
    if axis == 1 and rows is not None:
      n *= lax.axis_size(rows)
      i += own * lax.axis_index(rows).astype(jnp.float32)
      above, below = divided.exchange(x, 1, rows)
      previous = jnp.concatenate([above, x[:, :-1]], axis)
      following = jnp.concatenate([x[:, 1:], below], axis)
    else:
      previous = jnp.roll(x, 1, axis)
      following = jnp.roll(x, -1, axis)
    i = i.reshape(shape)
    before = (i / (2 * n - 1)).astype(x.dtype)
    behind = ((n - 1 - i) / (2 * n - 1)).astype(x.dtype)
    even = x + before * (previous - x)
    odd = x + behind * (following - x)
    doubled = [*x.shape]
    doubled[axis] = 2 * own
    x = jnp.stack([even, odd], axis + 1).reshape(doubled)
  return x


def stretch(x: Array) -> Array:
  """Scales each picture [B, H, W, C] in [-1, 1] so that it reaches from -1 to 1.

  A constant picture stays as it is.
  """
  low, high = (f(x, axis=(1, 2, 3), keepdims=True) for f in (jnp.min, jnp.max))
  return jnp.where(high > low, 2 * (x - low) / jnp.where(high > low, high - low, 1.0) - 1, x)


def level(x: Array, contrast: float) -> Array:
  """Brings the mean of each picture [B, H, W, C] in [-1, 1] to mid-grey, 0.

  Args:
    x: the pictures.
    contrast: what deviations from the mean are multiplied by; what leaves [-1, 1] is cut.
  """
  mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
  return jnp.clip(contrast * (x - mean), -1, 1)
