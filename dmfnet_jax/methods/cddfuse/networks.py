"""The four networks of CDDFuse (arXiv 2211.14461, as its published program computes them).

Pictures are NHWC, float32 in [0, 1], one channel, of any height and width; nothing is downsampled.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.nn.coupling import CouplingNode
from dmfnet_jax.nn.restormer import BaseBlock, RestormerBlock, conv

Array = jax.Array


class Encoder(nn.Module):
  """Splits a picture into base features (low frequencies) and detail features (high ones).

  Attributes:
    width: channels of all features.
    heads: of the attentions; must divide the width.
    blocks: Restormer blocks before the split.
    nodes: coupling nodes of the detail features.
    dtype: compute dtype.
    remat: recompute each block's activations in the backward pass.
  """

  width: int = 64
  heads: int = 8
  blocks: int = 4
  nodes: int = 3
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, image: Array) -> dict[str, Array]:
    """Maps [B, H, W, 1] to "base", "detail" and the "shallow" they come from [B, H, W, width]."""
    block = nn.remat(RestormerBlock) if self.remat else RestormerBlock
    embedded = conv(self.width, 3, dtype=self.dtype, name="embed")(image.astype(self.dtype))
    features = {"embed": embedded}
    x = embedded
    for i in range(self.blocks):
      x = block(self.heads, self.dtype, name=f"blocks_{i}")(x)
      features[f"block{i}"] = x
    detail = x
    for i in range(self.nodes):
      detail = CouplingNode(self.dtype, name=f"detail_{i}")(detail)
    base = BaseBlock(self.heads, dtype=self.dtype, name="base")(x)
    return {**features, "shallow": x, "base": base, "detail": detail}


class Decoder(nn.Module):
  """Makes a picture of base and detail features; attributes as `Encoder`'s."""

  width: int = 64
  heads: int = 8
  blocks: int = 4
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, base: Array, detail: Array, skip: Array | None) -> tuple[Array, Array]:
    """Decodes.

    Args:
      base: [B, H, W, width].
      detail: [B, H, W, width].
      skip: [B, H, W, 1], added before the sigmoid; None for nothing.

    Returns:
      The picture [B, H, W, 1], float32 in (0, 1), and the reduced features [B, H, W, width].
    """
    block = nn.remat(RestormerBlock) if self.remat else RestormerBlock
    x = jnp.concatenate([base, detail], axis=-1)
    reduced = x = conv(self.width, 1, dtype=self.dtype, name="reduce")(x)
    for i in range(self.blocks):
      x = block(self.heads, self.dtype, name=f"blocks_{i}")(x)
    x = nn.leaky_relu(conv(self.width // 2, 3, dtype=self.dtype, name="out1")(x), 0.01)
    x = conv(1, 3, dtype=self.dtype, name="out2")(x).astype(jnp.float32)
    return nn.sigmoid(x if skip is None else x + skip), reduced


def build(network: Mapping[str, Any], dtype: Any, remat: bool = False) -> dict[str, nn.Module]:
  """The networks that a config's `network` section describes, by name."""
  width, heads, blocks = network["width"], network["heads"], network["blocks"]
  return {
    "encoder": Encoder(width, heads, blocks, network["nodes"], dtype, remat),
    "decoder": Decoder(width, heads, blocks, dtype, remat),
    "base_fusion": BaseBlock(heads, dtype=dtype),
    "detail_fusion": CouplingNode(dtype),
  }
