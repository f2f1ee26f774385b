"""Which parameter here is which of the published program's, and of torchvision's VGG-19."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.interop.layers import batch_norm
from dmfnet_jax.io import color
from dmfnet_jax.methods.coconet import stages
from dmfnet_jax.methods.coconet.networks import WIDTH
from dmfnet_jax.methods.method import STATS, Params, join

# Channels of the attention of each level.
_CAMS = {1: 2 * WIDTH, 2: 4 * WIDTH, 3: 8 * WIDTH}
LAYERS: torch_names.Layers = (
  *batch_norm(r"block(?P<n>\w+)/norm", "bn{n}"),
  (r"block(?P<n>\w+)/conv", "conv{n}"),
  (r"(?P<layer>deconv\d|att_deconv\d|conv10)", "{layer}"),
  *((rf"cam{level}/gamma", f"se_{width}.gamma") for level, width in _CAMS.items()),
  *((rf"cam{level}/(?P<layer>conv_\d)", f"se_{width}.{{layer}}") for level, width in _CAMS.items()),
)
# In the file, and in no result.
_UNUSED = re.compile(r"(se_32|att_deconv9)\..*")

# VGG-19's convolutions by torchvision's number; behind the inserted halving the network's own
# numbers are one higher.
_NUMBERS = {
  "conv1_1": 0,
  "conv1_2": 2,
  "conv2_1": 5,
  "conv2_2": 7,
  "conv3_1": 10,
  "conv3_2": 12,
  "conv3_3": 14,
  "conv3_4": 16,
  "conv4_1": 19,
  "conv4_2": 21,
  "conv4_3": 23,
  "conv4_4": 25,
  "conv5_1": 28,
}
VGG_LAYERS: torch_names.Layers = tuple(
  (name, f"features.{number}") for name, number in _NUMBERS.items()
)
_INSIDE = "vgg19."
INSIDE_LAYERS: torch_names.Layers = tuple(
  (name, f"{_INSIDE}slice{name[4]}.{number + (number > 0)}") for name, number in _NUMBERS.items()
)


def from_torch(parts: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
  """Converts the published checkpoint, or torchvision's VGG-19 for training; see `Method`.

  Args:
    parts: "network": the published state dict; "vgg": torchvision's, to be named in `vgg_file`.

  Raises:
    UserError: neither, or one that does not fit; all keys that do not are counted.
  """
  params: Params = {}
  if "vgg" in parts:
    params |= _vgg(parts["vgg"])
  if "network" in parts:
    params |= _network(parts["network"])
  if not params:
    raise UserError("give network=latest.pth, or for training vgg=VGG19.pth, or both")
  # The published program fuses pictures in 0..255, whatever it was trained with.
  return params, {"network": {"width": WIDTH}, "fusion": {"input_range": "bytes"}}


def _network(state: Mapping[str, Any]) -> Params:
  state = torch_names.unwrapped(state)
  if "conv1_1.weight" not in state:
    raise UserError("not CoCoNet's network: it has no conv1_1.weight")
  inside = {key: value for key, value in state.items() if key.startswith(_INSIDE)}
  own = {k: v for k, v in state.items() if k not in inside and not _UNUSED.fullmatch(k)}
  shapes = _shapes()
  variables = {"params": shapes["fuser"], "batch_stats": shapes[STATS]["fuser"]}
  found = torch_names.variables_from_state_dict(own, variables, LAYERS, "the network")
  return {
    "fuser": found["params"],
    "vgg": torch_names.params_from_state_dict(
      inside, shapes["vgg"], INSIDE_LAYERS, "the network's VGG"
    ),
    STATS: {"fuser": found["batch_stats"]},
  }


def _vgg(state: Mapping[str, Any]) -> Params:
  """Torchvision's VGG-19, for grey pictures: its first layer sees three equal channels."""
  state = {key: value for key, value in state.items() if key.startswith("features.")}
  first = state.get("features.0.weight")
  if first is None:
    raise UserError("not torchvision's VGG-19: it has no features.0.weight")
  if np.shape(first)[1:2] == (3,):
    grey = np.tensordot(first, np.array(color.WEIGHTS, np.float32), (1, 0))[:, None]
    state["features.0.weight"] = grey
  shapes = _shapes()
  both = {name: shapes[name] for name in stages.VGG_LEVELS}
  joined = {path: leaf for tree in both.values() for path, leaf in tree.items()}
  found = torch_names.params_from_state_dict(state, joined, VGG_LAYERS, "VGG-19")
  return {name: {layer: found[layer] for layer in tree} for name, tree in both.items()}


def _shapes() -> Params:
  """Shapes of all networks at the published width."""
  config = ml_collections.ConfigDict({"network": {"width": WIDTH}, "compute_dtype": "float32"})

  def draw(key: jax.Array) -> Params:
    vgg = [stages.draw_vgg(config, name, key) for name in stages.VGG_LEVELS]
    return join(stages.init(config, key), *vgg)

  return jax.eval_shape(draw, jax.random.key(0))


def to_torch(params: Params) -> dict[str, np.ndarray]:
  """The fuser's state dict, or a gradient's, named as the published program names it."""
  return torch_names.to_state_dict(params["fuser"], LAYERS)
