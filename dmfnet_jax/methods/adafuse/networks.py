"""AdaFuse's network (arXiv 2310.05462, as its published program computes it).

Pictures are NHWC, float32 in [0, 1], one channel. At each level of two convolutional pyramids three
cross-attention blocks fuse the features: in space, in frequency, and the two results with each
other; a U-Net decoder makes the picture.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.nn import layers
from dmfnet_jax.nn.batch_norm import BatchNorm
from dmfnet_jax.nn.initializers import torch_bias, torch_kernel
from dmfnet_jax.nn.restormer import LayerNorm

Array = jax.Array

_MLP_RATIO = 4


def _dense(inputs: int, features: int, *, dtype: Any, **kwargs: Any) -> nn.Dense:
  return nn.Dense(
    features,
    kernel_init=torch_kernel,
    bias_init=torch_bias(inputs),
    dtype=dtype,
    precision=layers.matmul_precision(dtype),
    **kwargs,
  )


def _gelu(x: Array) -> Array:
  return nn.gelu(x, approximate=False)


class ConvPair(nn.Module):
  """Two 3x3 convolutions with a batch norm behind each, and nothing between them.

  Attributes:
    middle: channels between the two.
    features: channels of the result.
    dtype: compute dtype of the convolutions; the norms are float32.
  """

  middle: int
  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool, axis: str | None) -> Array:
    """Maps [B, H, W, C] to [B, H, W, features]; see `AdaFuse` for the rest."""
    for i, width in enumerate((self.middle, self.features), 1):
      x = layers.torch_conv(x.shape[-1], width, 3, dtype=self.dtype, name=f"conv{i}")(x)
      x = BatchNorm(dtype=self.dtype, name=f"bn{i}")(x, train, axis)
    return x


def blur_pool(x: Array) -> Array:
  """Halves [B, H, W, C]: 2x2 maxima at every pixel, a 4x4 binomial filter, every second one kept.

  Zhang 2019, arXiv 1904.11486: the maximum first, so that H - 1 rows are filtered. Reflected
  borders, one pixel before and two behind.
  """
  for axis in (1, 2):
    x = jnp.maximum(*(jax.lax.slice_in_dim(x, i, x.shape[axis] - 1 + i, axis=axis) for i in (0, 1)))
  x = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)), mode="reflect")
  for axis in (1, 2):
    stop = x.shape[axis] - 3
    taps = [jax.lax.slice_in_dim(x, i, stop + i, 2, axis) for i in range(4)]
    x = (taps[0] + 3 * taps[1] + 3 * taps[2] + taps[3]) / 8
  return x


class Encoder(nn.Module):
  """A pyramid of features, each level half as large as the one before.

  Attributes:
    stem: channels before the first level.
    widths: channels of the levels.
    dtype: compute dtype.
  """

  stem: int
  widths: Sequence[int]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Array, train: bool, axis: str | None) -> list[Array]:
    """Maps [B, H, W, 1] to the levels, finest first: [B, H / 2^k, W / 2^k, widths[k]]."""
    x = layers.torch_conv(1, self.stem, 1, dtype=self.dtype, name="inlayer")(
      image.astype(self.dtype)
    )
    levels = []
    for k, width in enumerate(self.widths, 1):
      if k > 1:
        x = _gelu(blur_pool(x))
      pair = ConvPair(x.shape[-1] // 2, width, self.dtype, name=f"block{k}")
      x = _gelu(pair(x, train, axis))
      levels.append(x)
    return levels


class QueryKeyValue(nn.Module):
  """Queries, keys and values of normalised tokens.

  Attributes:
    heads: each owns as many neighbouring channels.
    dtype: compute dtype; norm and softmax are float32.
  """

  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: Array) -> tuple[Array, Array, Array]:
    """Maps [B, N, D] to queries, keys and values [B, N, heads, D / heads] each."""
    b, n, d = tokens.shape
    normed = LayerNorm(self.dtype, name="norm1")(tokens)
    qkv = _dense(d, 3 * d, use_bias=False, dtype=self.dtype, name="qkv")(normed)
    query, key, value = jnp.split(qkv.reshape(b, n, 3 * self.heads, d // self.heads), 3, axis=2)
    return query, key, value


def attend(query: Array, key: Array, value: Array) -> Array:
  """Attention [B, N, heads, d] of each head, its heads joined: [B, N, heads d]."""
  precision = layers.matmul_precision(query.dtype)
  scores = jnp.einsum(
    "bnhd,bmhd->bhnm", query, key, precision=precision, preferred_element_type=jnp.float32
  )
  weights = nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1).astype(value.dtype)
  attended = jnp.einsum("bhnm,bmhd->bnhd", weights, value, precision=precision)
  return attended.reshape(*attended.shape[:2], -1)


class TransformerBlock(nn.Module):
  """Attention and an MLP of four times the width, each behind a norm and around it a sum.

  Attributes:
    heads: of the attention.
    dtype: compute dtype.
  """

  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    """Maps [B, N, D] to [B, N, D]."""
    d = tokens.shape[-1]
    query, key, value = QueryKeyValue(self.heads, self.dtype, name="attention")(tokens)
    attended = attend(query, key, value)
    tokens = tokens + _dense(d, d, dtype=self.dtype, name="proj")(attended)
    h = LayerNorm(self.dtype, name="norm2")(tokens)
    h = _gelu(_dense(d, _MLP_RATIO * d, dtype=self.dtype, name="fc1")(h))
    return tokens + _dense(_MLP_RATIO * d, d, dtype=self.dtype, name="fc2")(h)


class CrossAttentionFusion(nn.Module):
  """CAF: patches of two feature maps become tokens; each source attends to the other's values.

  In the paper keys and queries are exchanged; in the program, as here, values are: each attention
  map is a source's own.

  Attributes:
    dim: width of the tokens.
    heads: of all attentions.
    patch: side of a patch, in pixels of the maps.
    depth: transformer blocks of each source.
    dtype: compute dtype.
  """

  dim: int
  heads: int
  patch: int
  depth: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, a: Array, b: Array) -> Array:
    """Maps two [B, H, W, C], sides multiples of the patch, to one of the same shape."""
    batch, height, width, channels = a.shape
    p, rows, columns = self.patch, height // self.patch, width // self.patch
    qkv = []
    for i, x in enumerate((a, b), 1):
      patches = x.astype(self.dtype).reshape(batch, rows, p, columns, p, channels)
      embed = nn.DenseGeneral(
        self.dim,
        axis=(-3, -2, -1),
        kernel_init=torch_kernel,
        bias_init=torch_bias(p * p * channels),
        dtype=self.dtype,
        precision=layers.matmul_precision(self.dtype),
        name=f"embed{i}",
      )
      tokens = embed(patches.transpose(0, 1, 3, 2, 4, 5)).reshape(batch, -1, self.dim)
      self.sow("intermediates", f"embedding{i}", tokens)  # kept only where somebody asks for it
      for j in range(self.depth):
        tokens = TransformerBlock(self.heads, self.dtype, name=f"blocks{i}_{j}")(tokens)
      self.sow("intermediates", f"tokens{i}", tokens)
      qkv.append(QueryKeyValue(self.heads, self.dtype, name=f"qkv{i}")(tokens))
    (qa, ka, va), (qb, kb, vb) = qkv
    self.sow("intermediates", "query1", qa)
    crossed = [attend(qa, ka, vb), attend(qb, kb, va)]
    projected = [
      _dense(self.dim, self.dim, dtype=self.dtype, name=f"proj{i}")(x)
      for i, x in enumerate(crossed, 1)
    ]
    tokens = (projected[0] + projected[1]) / 2
    pixels = _dense(self.dim, p * p * channels, dtype=self.dtype, name="depatch")(tokens)
    pixels = pixels.reshape(batch, rows, columns, p, p, channels).transpose(0, 1, 3, 2, 4, 5)
    return a + b + pixels.reshape(a.shape)


def log_spectrum(x: Array) -> Array:
  """ln(1 + |FFT|) of the maps [B, H, W, C], float32, frequency 0 in the middle.

  The published program rolls the channels by half as well, which its weights rely on.
  """
  spectrum = jnp.fft.fft2(x.astype(jnp.float32), axes=(1, 2))
  # |.| has gradient 0 at 0.
  return jnp.fft.fftshift(jnp.log1p(jnp.abs(spectrum)), axes=(1, 2, 3))


def from_spectrum(x: Array) -> Array:
  """|inverse FFT| of [B, H, W, C], rolled back as `log_spectrum` rolls; neither phase nor exp."""
  shifted = jnp.fft.ifftshift(x.astype(jnp.float32), axes=(1, 2, 3))
  return jnp.abs(jnp.fft.ifft2(shifted, axes=(1, 2)))


class SpatialFrequencyFusion(nn.Module):
  """SSF: features fused in space, in frequency, and both results with each other.

  Attributes as `CrossAttentionFusion`'s, and `remat`: recompute a block in the backward pass.
  """

  dim: int
  heads: int
  patch: int
  depth: int
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array, y: Array) -> dict[str, Array]:
    """Fuses two [B, H, W, C]; "fused" and what it is made of, all of the same shape."""
    caf: Callable[..., Any] = nn.remat(CrossAttentionFusion) if self.remat else CrossAttentionFusion

    def cross(name: str) -> Any:
      return caf(self.dim, self.heads, self.patch, self.depth, self.dtype, name=name)

    spectra = [log_spectrum(features).astype(self.dtype) for features in (x, y)]
    frequency = cross("frequency")(*spectra)
    spatial = cross("spatial")(x, y)
    frequency_back = from_spectrum(frequency).astype(self.dtype)
    return {
      "x_spectrum": spectra[0],
      "frequency": frequency,
      "frequency_back": frequency_back,
      "spatial": spatial,
      "fused": cross("final")(spatial, frequency_back),
    }


class AdaFuse(nn.Module):
  """The whole network.

  Attributes:
    shared_encoder: one encoder for both sources, or one each.
    stem: channels before the first level.
    widths: channels of the levels, finest first.
    head: channels before the picture.
    dim: width of the tokens.
    heads: of all attentions; must divide `dim`.
    patch: side of a patch, in pixels of each level.
    depth: transformer blocks of each source in each cross attention.
    dtype: compute dtype; norms, softmax and Fourier transforms are float32.
    remat: recompute the cross attentions in the backward pass.
  """

  shared_encoder: bool
  stem: int
  widths: Sequence[int]
  head: int
  dim: int
  heads: int
  patch: int
  depth: int
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self, image1: Array, image2: Array, train: bool = False, axis: str | None = None
  ) -> dict[str, Any]:
    """Fuses.

    Args:
      image1: [B, H, W, 1] the CT, PET or SPECT, sides multiples of patch 2^(levels - 1).
      image2: [B, H, W, 1] the MRI.
      train: batch norms use the batch's statistics and update the running ones.
      axis: over which devices share the batch, in training.

    Returns:
      "encoder1" and "fusion", the levels' features, finest first; "up", the decoder's features,
      coarsest first; and "fused", [B, H, W, 1] float32 of any range.
    """
    if self.shared_encoder:
      encoder = Encoder(self.stem, self.widths, self.dtype, name="encoder")
      encoders = [encoder, encoder]
    else:
      encoders = [Encoder(self.stem, self.widths, self.dtype, name=f"encoder{i}") for i in (1, 2)]
    features = [
      encoder(image, train, axis) for encoder, image in zip(encoders, (image1, image2), strict=True)
    ]
    fusion = [
      SpatialFrequencyFusion(
        self.dim, self.heads, self.patch, self.depth, self.dtype, self.remat, name=f"fusion{k}"
      )(x, y)["fused"]
      for k, (x, y) in enumerate(zip(*features, strict=True), 1)
    ]
    # Coarse to fine; each step makes the next finer level's width.
    targets = [self.head, *self.widths[:-1]]
    up: list[Array] = []
    for k in range(len(self.widths), 0, -1):
      x = jnp.concatenate([*up[-1:], fusion[k - 1]], axis=-1)
      pair = ConvPair(targets[k - 1] // 2, targets[k - 1], self.dtype, name=f"up{k}")
      x = pair(x, train, axis)
      up.append(_gelu(layers.upsample_bilinear(x) if k > 1 else x))
    fused = layers.torch_conv(self.head, 1, 1, dtype=self.dtype, name="outlayer")(up[-1])
    fused = fused.astype(jnp.float32)
    return {"encoder1": features[0], "fusion": fusion, "up": up, "fused": fused}


def build(network: Mapping[str, Any], dtype: Any, remat: bool = False) -> AdaFuse:
  """The network that a config's `network` section describes."""
  sections = {**network, "widths": tuple(network["widths"])}
  return AdaFuse(**sections, dtype=dtype, remat=remat)
