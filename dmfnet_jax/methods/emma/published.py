"""The published program's weights: which parameter here is which one there."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.interop.layers import base_block, batch_norm
from dmfnet_jax.methods.emma import stages
from dmfnet_jax.methods.method import STATS, Params, variables

# The published files: what each is, by the part's name.
PARTS = {
  "fuser": "EMMA.pth",
  "sense_infrared": "Ai.pth, to train with",
  "sense_visible": "Av.pth, to train with",
}
# Trained on infrared and visible pairs. Another order is a field of the config.
_VISIBLE = "b"


def _block(here: str, there: str) -> torch_names.Layers:
  return (
    (rf"{here}/embed", f"{there}.embed"),
    *base_block(f"{here}/global/", f"{there}.GlobalFeature."),
    (rf"{here}/local/conv(?P<i>\d)_1", f"{there}.LocalFeature.Extraction.{{i}}.conv.0"),
    (rf"{here}/local/conv(?P<i>\d)_2", f"{there}.LocalFeature.Extraction.{{i}}.conv.2"),
    (rf"{here}/merge", f"{there}.FFN"),
  )


def _conv_pair(here: str, there: str) -> torch_names.Layers:
  return (
    (rf"{here}/conv1", f"{there}.conv.0"),
    *batch_norm(rf"{here}/norm1", f"{there}.conv.1"),
    (rf"{here}/conv2", f"{there}.conv.3"),
    *batch_norm(rf"{here}/norm2", f"{there}.conv.4"),
  )


FUSER_LAYERS: torch_names.Layers = (
  *_block(r"infrared_(?P<k>\d)", "I_en_{k}"),
  *_block(r"visible_(?P<k>\d)", "V_en_{k}"),
  (r"infrared_down_(?P<k>\d)", "I_down{k}"),
  (r"visible_down_(?P<k>\d)", "V_down{k}"),
  *_block(r"fuse_(?P<k>\d)", "f_{k}"),
  (r"up_(?P<k>\d)", "up{k}.0"),
  *_block(r"decode_(?P<k>\d)", "de_{k}"),
  (r"out", "last.0"),
)

SENSING_LAYERS: torch_names.Layers = (
  *_conv_pair(r"down_(?P<k>\d)", "down{k}"),
  (r"double_(?P<k>\d)", "up_sample{k}.0"),
  *_conv_pair(r"up_(?P<k>\d)", "up{k}"),
  (r"out", "last.0"),
)


def from_torch(parts: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
  """Converts the published files; see `Method.from_torch`.

  Args:
    parts: "fuser" to fuse, both "sense_infrared" and "sense_visible" to train, or all three.

  Raises:
    UserError: files that are not enough, or that do not fit; all keys that do not are counted.
  """
  states = {part: torch_names.unwrapped(state) for part, state in parts.items()}
  sensing = [part for part in ("sense_infrared", "sense_visible") if part in states]
  if not states or len(sensing) == 1:
    raise UserError(
      "give fuser=EMMA.pth to fuse, sense_infrared=Ai.pth and sense_visible=Av.pth to train with, "
      "or all three"
    )
  params: Params = {}
  config: dict[str, Any] = {"fusion": {"visible": _VISIBLE}}
  if "fuser" in states:
    config["fuser"] = fuser_of(states["fuser"])
    shapes = jax.eval_shape(
      lambda: stages.init_fuser(ml_collections.ConfigDict(config), jax.random.key(0))
    )
    params["fuser"] = torch_names.variables_from_state_dict(
      states["fuser"], {"params": shapes["fuser"]}, FUSER_LAYERS, "the fuser"
    )["params"]
  if sensing:
    config["sensing"] = sensing_of(states["sense_infrared"])
    made = jax.eval_shape(
      lambda: stages.init_sensing(ml_collections.ConfigDict(config), jax.random.key(0))
    )
    infrared, visible = stages.order(config, *stages.SENSING)
    stats = {}
    for name, part in ((infrared, "sense_infrared"), (visible, "sense_visible")):
      found = torch_names.variables_from_state_dict(
        states[part], variables(made, name), SENSING_LAYERS, part
      )
      params[name], stats[name] = found["params"], found["batch_stats"]
    params[STATS] = stats
  return params, config


def fuser_of(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The `fuser` section, from the names and shapes.

  Raises:
    UserError: these are no weights of this family.
  """
  widths: list[int] = []
  while (key := f"f_{len(widths) + 1}.embed.weight") in state:
    widths.append(state[key].shape[0])
  scale = "f_1.GlobalFeature.attn.scale"
  if not widths or scale not in state:
    raise UserError(f"not an EMMA fuser: it has no {key if not widths else scale}")
  return {"widths": widths, "heads": state[scale].shape[0]}


def sensing_of(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The `sensing` section, from the names and shapes; errors as `fuser_of`'s."""
  levels = 0
  while (key := f"down{levels + 1}.conv.0.weight") in state:
    levels += 1
  if not levels:
    raise UserError(f"not a sensing network of EMMA: it has no {key}")
  return {"width": state["down1.conv.0.weight"].shape[0], "levels": levels}


def to_torch(params: Params, network: str) -> dict[str, np.ndarray]:
  """A network's parameters and statistics, named as its published file names them."""
  layers = FUSER_LAYERS if network == "fuser" else SENSING_LAYERS
  found: dict[str, np.ndarray] = {}
  for tree in variables(params, network).values():
    found |= torch_names.to_state_dict(tree, layers)
  return found
