"""The published program's weights: which parameter here is which one there."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.methods.dmfnet.torch import NORM_GROUPS, block_layers, unet_config_from_torch
from dmfnet_jax.methods.method import Params
from dmfnet_jax.methods.tfsdiff import networks, stages

PARTS = {"unet": "I..._E..._gen.pth"}

LAYERS: torch_names.Layers = (
  (r"gate/dense(?P<i>\d)", "SE_block.linear{i}"),
  (r"unet/noise_level_mlp/dense1", "noise_level_mlp.1"),
  (r"unet/noise_level_mlp/dense2", "noise_level_mlp.3"),
  # There the stem is the first of the way down.
  (r"unet/init_conv", "downs.0"),
  *block_layers(r"unet/downs_(?P<i>\d+)", "downs.{after}"),
  (r"unet/downs_(?P<i>\d+)", "downs.{after}.conv"),
  *block_layers(r"unet/(?P<part>mid|ups)_(?P<i>\d+)", "{part}.{i}"),
  (r"unet/ups_(?P<i>\d+)/conv", "ups.{i}.conv"),
  (r"unet/final_norm", "final_conv.block.0"),
  (r"unet/final_conv", "final_conv.block.3"),
)

_PREFIX = "denoise_fn."  # what stands beside it are buffers of the noise schedule


def from_torch(parts: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
  """Converts the published file; see `Method.from_torch`.

  It does not tell how much the sources were enlarged: the config's `enlargement` is the default.

  Raises:
    UserError: no file, or one that does not fit; all keys that do not are counted.
  """
  if "unet" not in parts:
    raise UserError("give unet=I..._E..._gen.pth")
  state = torch_names.unwrapped(parts["unet"])
  state = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)} or state
  config = unet_of(state)
  network = networks.build(config)
  shapes = jax.eval_shape(lambda: networks.init(jax.random.key(0), network, len(stages.SOURCES)))
  params = torch_names.params_from_state_dict(state, shapes, LAYERS, "the network")
  return {"unet": params}, {"unet": config}


def unet_of(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The `unet` section, from the names and shapes.

  Raises:
    UserError: these are no weights of this family.
  """
  for key in ("SE_block.linear1.weight", "downs.0.weight"):
    if key not in state:
      raise UserError(f"not a network of TFS-Diff: it has no {key}")

  def without_stem(key: str) -> str:
    side, _, rest = key.partition(".")
    number, _, layer = rest.partition(".")
    if side != "downs":
      return key
    return f"init_conv.{layer}" if number == "0" else f"downs.{int(number) - 1}.{layer}"

  of_unet = {without_stem(key): value for key, value in state.items()}
  return unet_config_from_torch(of_unet, norm_groups=NORM_GROUPS)
