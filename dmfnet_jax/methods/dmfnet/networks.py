"""The networks that a config describes, and their first parameters.

`lazy_init` runs the initialisers alone: no forward pass is compiled.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax.methods import parts
from dmfnet_jax.methods.dmfnet.fusion_head import ATTENTIONS, FusionHead
from dmfnet_jax.methods.dmfnet.unet import UNet


def build_unet(config: Mapping[str, Any], dtype: Any = "float32", remat: bool = False) -> UNet:
  """Builds the UNet that a config's `unet` section describes (its keys are UNet's attributes)."""
  options = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in config.items()}
  return UNet(**options, dtype=dtype, remat=remat)


def build_fusion_head(
  head: Mapping[str, Any], unet: Mapping[str, Any], num_timesteps: int, dtype: Any = "float32"
) -> FusionHead:
  """Builds the head for a UNet's features: `head` names its parts, the widths follow the UNet's.

  Raises:
    UserError: a part that there is not, see `parts.find`: here, and not only where it computes.
  """
  widths = tuple(unet["width"] * m for m in reversed(unet["multipliers"]))
  built = FusionHead(level_widths=widths, num_timesteps=num_timesteps, **head, dtype=dtype)
  parts.find("fusion_head.attention", built.attention, ATTENTIONS)
  return built


def init_unet(key: jax.Array, unet: UNet) -> Any:
  """Initialises a UNet's parameters."""
  size = 2 ** (len(unet.multipliers) - 1)
  image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
  return unet.lazy_init(key, image, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]


def init_head(key: jax.Array, head: FusionHead) -> Any:
  """Initialises a head's parameters."""
  features = [
    jax.ShapeDtypeStruct((head.num_timesteps, 1, 4 << level, 4 << level, width), jnp.float32)
    for level, width in enumerate(head.level_widths)
  ]
  image = jax.ShapeDtypeStruct((*features[-1].shape[1:-1], 1), jnp.float32)
  return head.lazy_init(key, features, features, (image, image))["params"]
