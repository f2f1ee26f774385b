"""The published program's weights: which parameter here is which one there.

None are published. The program saves state dictionaries, which are what this reads.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.interop.layers import batch_norm
from dmfnet_jax.methods.deform3d.networks import PATCH, build
from dmfnet_jax.methods.method import STATS, Params

NETWORK = "fuser"
PARTS = {"model": "a state dictionary that the program saved"}

# Built by the program and never used.
UNUSED = re.compile(r".*\.cross_attn\.proj\..*|swin\.concat_back_dim\.0\..*")
# Of every level as many channels a head: a third of the finest level's.
_HEADS = 3


def _gate(here: str, there: str, first: int) -> torch_names.Layers:
  """A gate of the program's `Sequential`, whose first convolution has a number in it."""
  return (
    (rf"{here}/conv1", f"{there}.{first}"),
    (rf"{here}/norm/body", f"{there}.{first + 1}.norm"),
    (rf"{here}/conv2", f"{there}.{first + 3}"),
  )


def _block(here: str, there: str) -> torch_names.Layers:
  attention = {"query": "q", "key": "k", "value": "v"}
  return (
    (rf"{here}/norm1/body", f"{there}.norm1"),
    (rf"{here}/offset/embed", f"{there}.proj_q"),
    (rf"{here}/offset/depthwise", f"{there}.conv_offset.0"),
    (rf"{here}/offset/norm/body", f"{there}.conv_offset.1.norm"),
    (rf"{here}/offset/out", f"{there}.conv_offset.3"),
    (rf"{here}/mix", f"{there}.dwconv3x3.0"),
    *batch_norm(rf"{here}/mix_norm", f"{there}.dwconv3x3.1"),
    *_gate(rf"{here}/channel_gate", f"{there}.channel_interaction", 1),
    *_gate(rf"{here}/spatial_gate", f"{there}.spatial_interaction", 0),
    (rf"{here}/projection", f"{there}.projection"),
    *((rf"{here}/{ours}", f"{there}.cross_attn.{theirs}") for ours, theirs in attention.items()),
    (rf"{here}/proj", f"{there}.proj"),
    (rf"{here}/fc(?P<n>[12])", f"{there}.mlp.fc{{n}}"),
  )


def layers(levels: int) -> torch_names.Layers:
  """The network's table; the program counts the decoder's levels from the coarsest."""
  of_levels: list[tuple[str, str]] = []
  for level in range(levels):
    encoder, decoder = f"swin.layers.{level}", f"swin.up_layers.{levels - 1 - level}"
    of_levels += [
      *_block(rf"encoder_{level}_block_(?P<i>\d+)", f"{encoder}.blocks.{{i}}"),
      *_block(rf"decoder_{level}_block_(?P<i>\d+)", f"{decoder}.blocks.{{i}}"),
      (rf"merge_{level}/conv", f"{encoder}.downsample.down_conv"),
      (rf"merge_{level}/norm/body", f"{encoder}.downsample.norm"),
      (rf"expand_{level}/conv", f"{decoder}.downsample.up_conv"),
      (rf"expand_{level}/norm/body", f"{decoder}.downsample.norm"),
      (rf"join_{level}", f"swin.concat_back_dim.{levels - 1 - level}"),
    ]
  return (
    *of_levels,
    (r"embed", "swin.patch_embed.proj"),
    (r"(?P<norm>norm2?)/body", "swin.{norm}"),
    (r"unembed", "swin.reverse_patch_embedding"),
    (r"out", "out_conv"),
  )


def from_torch(parts: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
  """Converts a state dictionary; see `Method.from_torch`.

  The heads of the attentions leave no trace in one: they are the published program's.

  Args:
    parts: "model": the state dictionary.

  Raises:
    UserError: no file, or one that does not fit; all keys that do not are counted.
  """
  if "model" not in parts:
    raise UserError("give the file: model=dsc.pth")
  state = used(torch_names.unwrapped(parts["model"]))
  network = network_of(state)
  volume = jax.ShapeDtypeStruct((1, PATCH, PATCH, PATCH, 1), np.float32)
  shapes = jax.eval_shape(lambda: build(network).lazy_init(jax.random.key(0), volume, volume))
  shapes = {kind: shapes[kind] for kind in ("params", "batch_stats")}
  table = layers(len(network["depths"]))
  made = torch_names.variables_from_state_dict(state, shapes, table, "the file")
  return {NETWORK: made["params"], STATS: {NETWORK: made["batch_stats"]}}, {"network": network}


def used(state: Mapping[str, Any]) -> dict[str, Any]:
  """A state dictionary without what the program builds and never uses."""
  return {key: value for key, value in state.items() if not UNUSED.fullmatch(key)}


def network_of(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The `network` section, from the names and shapes.

  Raises:
    UserError: these are no weights of this family.
  """
  first = "swin.patch_embed.proj.weight"
  if first not in state:
    raise UserError(f"not a DC2Fusion file: it has no {first}")
  blocks = {
    (int(match[1]), int(match[2]))
    for match in (re.match(r"swin\.layers\.(\d+)\.blocks\.(\d+)\.", key) for key in state)
    if match
  }
  levels = max((level for level, _ in blocks), default=-1) + 1
  depths = [sum(level == of for of, _ in blocks) for level in range(levels)]
  return {
    "width": state[first].shape[0],
    "depths": depths,
    "heads": [_HEADS << level for level in range(levels)],
    "drop_path": 0.2,
    "plain": False,
  }


def to_torch(params: Params, levels: int) -> dict[str, np.ndarray]:
  """The parameters and statistics, named as the program names them."""
  trees = (params[NETWORK], params.get(STATS, {}).get(NETWORK, {}))
  found: dict[str, np.ndarray] = {}
  for tree in trees:
    found |= torch_names.to_state_dict(tree, layers(levels))
  return found
