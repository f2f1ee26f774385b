"""The fusion head of Stage II (SPEC, Stage II): two sources' UNet features to one image.

Levels run coarse to fine, features are NHWC.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.models import layers
from dmfnet_jax.models.attention import MeanAttention, TripleAttention

Array = jax.Array

ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
  "triple": TripleAttention,
  "mean": MeanAttention,
}


class ConvBlock(nn.Module):
  """1x1 convolution, ReLU, 3x3 convolution, ReLU."""

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, features]."""
    x = nn.relu(layers.conv(self.features, 1, dtype=self.dtype, name="conv1")(x))
    return nn.relu(layers.conv(self.features, 3, dtype=self.dtype, name="conv2")(x))


class FusionHead(nn.Module):
  """Timestep fusion, attention and multi-scale fusion at each level, then the output convolutions.

  Attributes:
    level_widths: channels of the levels' features, coarse to fine.
    num_timesteps: timesteps T whose features come in; with one, timestep fusion is left out.
    attention: a name in `ATTENTIONS`.
    multi_scale_reach: how many coarser levels feed a level: 2 (the paper), 1, or 0 (the finest
      level alone makes the image).
    dtype: compute dtype; parameters and the output stay float32.
  """

  level_widths: Sequence[int] = (256, 128, 128, 128, 128)
  num_timesteps: int = 3
  attention: str = "triple"
  multi_scale_reach: int = 2
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, features_a: Sequence[Array], features_b: Sequence[Array]) -> Array:
    """Fuses the features of two sources.

    Args:
      features_a: a [T, B, h, w, c] array a level, coarse to fine, timesteps ascending; of the MRI.
      features_b: the same of the other modality.

    Returns:
      The fused image [B, H, W, 1], float32 in (-1, 1).

    Raises:
      ValueError: the features' levels or timesteps are not the configured ones.
    """
    widths = tuple(self.level_widths)
    for features in (features_a, features_b):
      got = tuple((f.shape[0], f.shape[-1]) for f in features)
      if got != tuple((self.num_timesteps, width) for width in widths):
        raise ValueError(
          f"the head is built for {self.num_timesteps} timesteps of widths {widths}, "
          f"got (timesteps, width) {got}"
        )
    first_level = 0 if self.multi_scale_reach else len(widths) - 1
    outputs: list[Array] = []
    for level in range(first_level, len(widths)):
      width = widths[level]
      next_width = widths[min(level + 1, len(widths) - 1)]
      a = features_a[level].astype(self.dtype)
      b = features_b[level].astype(self.dtype)
      if self.num_timesteps > 1:
        timestep_fusion = ConvBlock(width, self.dtype, name=f"timestep_fusion_{level}")
        a = timestep_fusion(jnp.concatenate(list(a), axis=-1))
        b = timestep_fusion(jnp.concatenate(list(b), axis=-1))
      else:
        a, b = a[0], b[0]
      attention = ATTENTIONS[self.attention]
      fused = attention(dtype=self.dtype, name=f"attention_{level}")(a, b)
      if self.multi_scale_reach >= 1 and level >= 1:
        fused += layers.upsample_bilinear(outputs[-1])
      if self.multi_scale_reach >= 2 and level >= 2:
        skipped = ConvBlock(width, self.dtype, name=f"skip_{level}")
        fused += layers.upsample_bilinear(skipped(layers.upsample_bilinear(outputs[-2])))
      outputs.append(ConvBlock(next_width, self.dtype, name=f"block_{level}")(fused))
    h = layers.conv(widths[-1] // 2, 3, dtype=self.dtype, name="out1")(outputs[-1])
    h = layers.conv(1, 3, dtype=self.dtype, name="out2")(nn.leaky_relu(h, 0.2))
    return jnp.tanh(h.astype(jnp.float32))
