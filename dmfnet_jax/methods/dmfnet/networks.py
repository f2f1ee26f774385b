"""The networks that a config describes."""

from collections.abc import Mapping
from typing import Any

from dmfnet_jax.methods.dmfnet.fusion_head import FusionHead
from dmfnet_jax.methods.dmfnet.unet import UNet


def build_unet(config: Mapping[str, Any], dtype: Any = "float32", remat: bool = False) -> UNet:
  """Builds the UNet that a config's `unet` section describes (its keys are UNet's attributes)."""
  options = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in config.items()}
  return UNet(**options, dtype=dtype, remat=remat)


def build_fusion_head(
  head: Mapping[str, Any], unet: Mapping[str, Any], num_timesteps: int, dtype: Any = "float32"
) -> FusionHead:
  """Builds the head for a UNet's features: `head` names its parts, the widths follow the UNet's."""
  widths = tuple(unet["width"] * m for m in reversed(unet["multipliers"]))
  return FusionHead(level_widths=widths, num_timesteps=num_timesteps, **head, dtype=dtype)
