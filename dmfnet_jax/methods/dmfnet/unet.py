"""The denoising UNet of Stage I (DM-FNet, arXiv 2506.15218; SPEC, Stage I).

Images are NHWC, float32 in [-1, 1]. The UNet predicts the clean image x_start from a noisy one and
the continuous noise level sqrt(alpha_bar). Its decoder features feed the fusion head.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.methods.dmfnet.attention import SelfAttention
from dmfnet_jax.nn import layers

Array = jax.Array


class NoiseLevelEmbedding(nn.Module):
  """Sinusoids of the noise level, then Dense 4C, swish, Dense C."""

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, noise_level: Array) -> Array:
    """Maps noise levels [B] in [0, 1] to embeddings [B, C]."""
    half = self.width // 2
    frequencies = jnp.exp(-math.log(1e4) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = noise_level.astype(jnp.float32)[:, None] * frequencies[None]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    hidden = nn.swish(layers.dense(4 * self.width, dtype=self.dtype, name="dense1")(embedding))
    return layers.dense(self.width, dtype=self.dtype, name="dense2")(hidden)


class ResnetBlock(nn.Module):
  """Norm, swish, conv, shift by the noise embedding; norm, swish, dropout, conv; plus the input."""

  features: int
  norm_groups: int
  dropout: float
  attention: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, inputs: Sequence[Array], embedding: Array, dropout_keys: Array | None
  ) -> Array:
    """Maps inputs [B, H, W, C_i], joined along C, and embeddings [B, C] to [B, H, W, features]."""

    def norm_swish(inputs: Sequence[Array], name: str) -> list[Array]:
      norm = layers.GroupNorm(self.norm_groups, dtype=self.dtype, name=name)
      return [nn.swish(x) for x in norm.over_parts(inputs)]

    def conv(size: int, name: str) -> nn.Module:
      return layers.ConvOverParts(self.features, size, dtype=self.dtype, name=name)

    h = conv(3, "conv1")(norm_swish(inputs, "norm1"))
    shift = layers.dense(self.features, dtype=self.dtype, name="noise_shift")(embedding)
    (h,) = norm_swish([h + shift[:, None, None, :]], "norm2")
    if dropout_keys is not None:
      h = layers.dropout(h, self.dropout, dropout_keys)
    h = layers.conv(self.features, 3, dtype=self.dtype, name="conv2")(h)
    if sum(x.shape[-1] for x in inputs) != self.features:
      h = h + conv(1, "residual")(inputs)
    else:
      (x,) = inputs
      h = h + x
    if self.attention:
      h = SelfAttention(self.norm_groups, self.dtype, name="attention")(h)
    return h


class Upsample(nn.Module):
  """Nearest x2, then a 3x3 convolution."""

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, 2H, 2W, features]."""
    return layers.conv(self.features, 3, dtype=self.dtype, name="conv")(layers.upsample_nearest(x))


class UNet(nn.Module):
  """The denoising UNet.

  Attributes:
    width: channels C of the first level (the paper: 128; 20,670,081 parameters).
    multipliers: each level's width over C, fine to coarse.
    num_res_blocks: ResNet blocks a level on the way down; one more on the way up.
    norm_groups: groups of every normalisation; must divide every width.
    dropout: dropout rate inside the blocks, applied where `dropout_keys` are given.
    attention_levels: levels (0 = the finest) whose blocks attend, besides the middle.
    outputs: channels of the prediction; the input may have any number.
    dtype: compute dtype; parameters, norms, softmax and the output stay float32.
    remat: recompute each block's activations in the backward pass (less memory, more time).
  """

  width: int = 128
  multipliers: Sequence[int] = (1, 1, 1, 1, 2)
  num_res_blocks: int = 2
  norm_groups: int = 32
  dropout: float = 0.2
  attention_levels: Sequence[int] = ()
  outputs: int = 1
  dtype: Any = jnp.float32
  remat: bool = False

  def setup(self):
    resnet_block = nn.remat(ResnetBlock) if self.remat else ResnetBlock

    def block(features: int, attention: bool) -> ResnetBlock:
      return resnet_block(features, self.norm_groups, self.dropout, attention, self.dtype)

    widths = [self.width * m for m in self.multipliers]
    last = len(widths) - 1
    # The lists' order is the published program's, so that the parameter trees correspond.
    downs: list[nn.Module] = []
    ups: list[nn.Module] = []
    for level, features in enumerate(widths):
      attend = level in self.attention_levels
      downs += [block(features, attend) for _ in range(self.num_res_blocks)]
      if level < last:
        downs.append(layers.conv(features, 3, strides=2, dtype=self.dtype))
    for level, features in reversed(list(enumerate(widths))):
      attend = level in self.attention_levels
      ups += [block(features, attend) for _ in range(self.num_res_blocks + 1)]
      if level > 0:
        ups.append(Upsample(features, self.dtype))

    self.noise_level_mlp = NoiseLevelEmbedding(self.width, self.dtype)
    self.init_conv = layers.conv(self.width, 3, dtype=self.dtype)
    self.downs = downs
    self.mid = [block(widths[-1], True), block(widths[-1], False)]
    self.ups = ups
    self.final_norm = layers.GroupNorm(self.norm_groups, dtype=self.dtype)
    self.final_conv = layers.conv(self.outputs, 3, dtype=self.dtype)

  def __call__(
    self, x: Array, noise_level: Array, dropout_keys: Array | None = None
  ) -> tuple[Array, dict[str, tuple[Array, ...]]]:
    """Predicts the clean image.

    Args:
      x: [B, H, W, 1] noisy images; H and W multiples of 2 ** (levels - 1).
      noise_level: [B] sqrt(alpha_bar) in [0, 1].
      dropout_keys: [B] PRNG keys, one an example, for training; None turns dropout off.

    Returns:
      x_start [B, H, W, 1] float32, and the features: "encoder" in the order of computation (stem,
      blocks and downsamples), "decoder" the up-blocks' outputs, last (finest) first.

    Raises:
      ValueError: H or W is not a multiple of the coarsest level's stride.
    """
    embedding = self.noise_level_mlp(noise_level)
    h, skips = self._encode(x, embedding, dropout_keys)
    decoder = self._decode(h, skips, embedding, dropout_keys, num_blocks=len(skips))
    x_start = self.final_conv(nn.swish(self.final_norm(decoder[-1])))
    return x_start.astype(jnp.float32), {"encoder": tuple(skips), "decoder": tuple(decoder[::-1])}

  def fusion_features(
    self, x: Array, noise_level: Array, source: str = "decoder"
  ) -> tuple[Array, ...]:
    """Computes the features that the fusion head uses, and nothing behind them.

    The decoder's are each level's first up-block (the paper's features 14, 11, 8, 5, 2), so the
    finest level's other blocks and the output convolution are never run: a third of the
    arithmetic. The encoder's (an ablation) are each level's last block.

    Returns:
      One [B, h, w, c] feature a level, coarse to fine.

    Raises:
      ValueError: another `source`, or a size that does not fit.
    """
    if source not in ("decoder", "encoder"):
      raise ValueError(f"features come from the 'decoder' or the 'encoder', not from {source!r}")
    embedding = self.noise_level_mlp(noise_level)
    h, skips = self._encode(x, embedding, None)
    if source == "encoder":
      return tuple(skips[self.num_res_blocks :: self.num_res_blocks + 1][::-1])
    blocks_per_level = self.num_res_blocks + 1
    num_blocks = blocks_per_level * (len(self.multipliers) - 1) + 1
    return tuple(self._decode(h, skips, embedding, None, num_blocks)[::blocks_per_level])

  def _encode(self, x, embedding, dropout_keys):
    stride = 2 ** (len(self.multipliers) - 1)
    if x.shape[1] % stride or x.shape[2] % stride:
      raise ValueError(f"height and width must be multiples of {stride}, got {x.shape[1:3]}")
    h = self.init_conv(x.astype(self.dtype))
    skips = [h]
    for index, layer in enumerate(self.downs):
      if isinstance(layer, nn.Conv):
        h = layer(h)
      else:
        h = layer((h,), embedding, _fold(dropout_keys, index))
      skips.append(h)
    return h, skips

  def _decode(self, h, skips, embedding, dropout_keys, num_blocks):
    """Runs the middle and the first `num_blocks` up-blocks; returns the latter's outputs."""
    for index, layer in enumerate(self.mid, start=len(self.downs)):
      h = layer((h,), embedding, _fold(dropout_keys, index))
    remaining = list(skips)
    outputs: list[Array] = []
    for index, layer in enumerate(self.ups, start=len(self.downs) + len(self.mid)):
      if len(outputs) == num_blocks:
        break
      if isinstance(layer, Upsample):
        h = layer(h)
      else:
        h = layer((h, remaining.pop()), embedding, _fold(dropout_keys, index))
        outputs.append(h)
    return outputs


def _fold(keys: Array | None, index: int) -> Array | None:
  """Gives layer `index` keys of its own."""
  return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, index)
