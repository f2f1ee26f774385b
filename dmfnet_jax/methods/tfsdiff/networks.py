"""TFS-Diff's network: the denoising UNet of SR3 behind a gate over its input's channels.

Pictures are NHWC, float32 in [-1, 1]; sides are multiples of 16 (of five levels).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.methods.dmfnet.unet import UNet
from dmfnet_jax.nn import layers

Array = jax.Array

COLOURS = 3
_REDUCTION = 4


class ChannelGate(nn.Module):
  """Weighs channels by a bottleneck over their means (squeeze and excitation, arXiv 1709.01507).

  Attributes:
    dtype: compute dtype.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, C]."""
    channels = x.shape[-1]
    means = jnp.mean(x, axis=(1, 2))
    h = layers.dense(channels // _REDUCTION, dtype=self.dtype, name="dense1")(means)
    gate = nn.sigmoid(layers.dense(channels, dtype=self.dtype, name="dense2")(nn.relu(h)))
    return x * gate.astype(x.dtype)[:, None, None]


class Denoiser(nn.Module):
  """Predicts the noise of a fused picture, given the sources.

  The gate weighs the noisy picture's channels too, and is not told the noise level (the paper: the
  sources' alone).

  Attributes:
    unet: what follows the gate.
    dtype: compute dtype.
  """

  unet: UNet
  dtype: Any = jnp.float32

  def setup(self):
    self.gate = ChannelGate(self.dtype)

  def __call__(
    self,
    condition: Array,
    x_noisy: Array,
    noise_level: Array,
    dropout_keys: Array | None = None,
  ) -> Array:
    """Predicts the noise.

    Args:
      condition: [B, H, W, 9], the enlarged sources side by side.
      x_noisy: [B, H, W, 3].
      noise_level: [B] sqrt(alpha_bar) in (0, 1].
      dropout_keys: see `UNet`.

    Returns:
      [B, H, W, 3] float32.
    """
    gated = self.gate(jnp.concatenate([condition, x_noisy], axis=-1))
    return self.unet(gated, noise_level, dropout_keys)[0]


def build(unet: Mapping[str, Any], dtype: Any = "float32", remat: bool = False) -> Denoiser:
  """The network that a config's `unet` section describes."""
  options = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in unet.items()}
  return Denoiser(UNet(**options, outputs=COLOURS, dtype=dtype, remat=remat), dtype)


def init(key: Array, network: Denoiser, sources: int) -> Any:
  """Initialises the parameters: orthogonal kernels, zero biases; no forward pass is compiled."""
  side = 2 ** (len(network.unet.multipliers) - 1)
  condition, picture = (
    jax.ShapeDtypeStruct((1, side, side, COLOURS * count), jnp.float32) for count in (sources, 1)
  )
  level = jax.ShapeDtypeStruct((1,), jnp.float32)
  return network.lazy_init(key, condition, picture, level)["params"]
