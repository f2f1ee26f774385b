"""The published program's weights: which parameter here is which one there."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.interop.layers import batch_norm, coupling
from dmfnet_jax.methods.dfvo import stages
from dmfnet_jax.methods.method import STATS, Params

# "vi" is "Vi" there.
_SOURCES = {"vi": "Vi", "ir": "Ir"}


def _block(here: str, there: str) -> torch_names.Layers:
  return (
    (rf"{here}/conv", f"{there}.Conv"),
    *batch_norm(rf"{here}/norm", f"{there}.Bn"),
  )


def _decoder(here: str, there: str) -> torch_names.Layers:
  return (
    *_block(rf"{here}decode(?P<i>\d)", f"{there}Decode{{i}}"),
    (rf"{here}last", f"{there}Sigmoid.Conv"),
  )


def _edges(here: str, there: str) -> torch_names.Layers:
  return (
    (rf"attention/{here}/(?P<layer>conv[xy])", f"CSA.{there}.{{layer}}"),
    (rf"attention/{here}/mix", f"CSA.{there}.Conv"),
  )


def _source(here: str, there: str) -> torch_names.Layers:
  return (
    *_block(rf"{here}_encoder/encode(?P<i>\d)", f"{there}Encode{{i}}"),
    (rf"{here}_down", f"{there}Conv"),
    (rf"{here}_up", f"{there}UpConv"),
    *_edges(f"{here}_key", f"{there}SK_conv"),
    (rf"attention/{here}_value", f"CSA.{there}V_conv"),
    *coupling(rf"{here}_detail(?P<i>\d)/", f"{there}Detail.net.{{i}}."),
  )


LAYERS: dict[str, torch_names.Layers] = {
  "fuser": (
    *(row for here, there in _SOURCES.items() for row in _source(here, there)),
    *_edges("query", "CrossSQ_conv"),
    (r"detail_conv", "ViDeConv"),
    *_decoder("decoder/", "Fu"),
  ),
  "illumination": (
    *_block(r"encode(?P<i>\d)", "IL.Encode{i}"),
    *_decoder("decoder/", "IL."),
  ),
  "enhancer": _decoder("", "En"),
  "infrared": _decoder("", "Ir"),
}
# Whose keys are whose; the rest are the fuser's.
_OTHERS = {
  "illumination": re.compile(r"IL\..*"),
  "enhancer": re.compile(r"En(Decode\d|Sigmoid)\..*"),
  "infrared": re.compile(r"Ir(Decode\d|Sigmoid)\..*"),
}
# In the file, and in no result.
_UNUSED = re.compile(r"IrDeConv\..*")
# Transposed convolutions: their kernels are stored [in, out, 3, 3], and those of stride 1 flipped.
_TRANSPOSED = re.compile(r".*Decode\d\.Conv\.weight")
_UP = re.compile(r"(Vi|Ir)UpConv\.weight")


def from_torch(parts: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
  """Converts the published file, of the full network or of what fusing needs; see `Method`.

  Args:
    parts: "model": the state dict.

  Raises:
    UserError: no file, or one that does not fit; all keys that do not are counted.
  """
  if "model" not in parts:
    raise UserError("give the file: model=DFModel.pth")
  params, width = networks_of(parts["model"])
  return {"fuser": params["fuser"], STATS: {"fuser": params[STATS]["fuser"]}}, {
    "network": {"width": width}
  }


def networks_of(state: Mapping[str, Any]) -> tuple[Params, int]:
  """All networks of a state dict, and their width.

  Raises:
    UserError: it does not fit.
  """
  state = {
    k: turned(k, v) for k, v in torch_names.unwrapped(state).items() if not _UNUSED.fullmatch(k)
  }
  if "ViEncode1.Conv.weight" not in state:
    raise UserError("not DFVO's file: it has no ViEncode1.Conv.weight")
  width = state["ViEncode1.Conv.weight"].shape[0]
  states: dict[str, dict[str, np.ndarray]] = {}
  for key, value in state.items():
    owner = next((name for name, keys in _OTHERS.items() if keys.fullmatch(key)), "fuser")
    states.setdefault(owner, {})[key] = value
  names = stages.NETWORKS if len(states) > 1 else ("fuser",)
  shapes = jax.eval_shape(lambda: stages.init(width, "float32", jax.random.key(0), names))
  params: Params = {STATS: {}}
  for name in names:
    variables = {"params": shapes[name], "batch_stats": shapes[STATS][name]}
    found = torch_names.variables_from_state_dict(
      states.get(name, {}), variables, LAYERS[name], f"the {name}"
    )
    params[name], params[STATS][name] = found["params"], found["batch_stats"]
  return params, width


def turned(key: str, value: np.ndarray) -> np.ndarray:
  """A transposed convolution's kernel as an ordinary one's, or the reverse; others stay."""
  if _UP.fullmatch(key):
    return value.swapaxes(0, 1)
  return value.swapaxes(0, 1)[..., ::-1, ::-1] if _TRANSPOSED.fullmatch(key) else value


def to_torch(params: Params) -> dict[str, np.ndarray]:
  """The state dict of networks, or of a gradient, named as the published file names them."""
  state: dict[str, np.ndarray] = {}
  for name, layers in LAYERS.items():
    if name in params:
      state |= torch_names.to_state_dict(params[name], layers)
  return {key: turned(key, value) for key, value in state.items()}
