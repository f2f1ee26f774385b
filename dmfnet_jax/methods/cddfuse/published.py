"""The published program's weights: which parameter here is which one there."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.interop.layers import base_block, coupling
from dmfnet_jax.methods.cddfuse import stages
from dmfnet_jax.methods.method import Params

# The state dicts of the file, by network here.
PARTS = {
  "encoder": "DIDF_Encoder",
  "decoder": "DIDF_Decoder",
  "base_fusion": "BaseFuseLayer",
  "detail_fusion": "DetailFuseLayer",
}


def _restormer(here: str, there: str) -> torch_names.Layers:
  return (
    (rf"{here}/norm(?P<n>[12])/body", f"{there}.norm{{n}}.body"),
    (rf"{here}/attention/temperature", f"{there}.attn.temperature"),
    (rf"{here}/(?P<layer>qkv|qkv_dwconv)", f"{there}.attn.{{layer}}"),
    (rf"{here}/attention_out", f"{there}.attn.project_out"),
    (rf"{here}/mlp/(?P<layer>\w+)", f"{there}.ffn.{{layer}}"),
  )


LAYERS: dict[str, torch_names.Layers] = {
  "encoder": (
    (r"embed", "patch_embed.proj"),
    *_restormer(r"blocks_(?P<i>\d+)", "encoder_level1.{i}"),
    *base_block("base/", "baseFeature."),
    *coupling(r"detail_(?P<i>\d+)/", "detailFeature.net.{i}."),
  ),
  "decoder": (
    (r"reduce", "reduce_channel"),
    *_restormer(r"blocks_(?P<i>\d+)", "encoder_level2.{i}"),
    (r"out1", "output.0"),
    (r"out2", "output.2"),
  ),
  "base_fusion": base_block("", ""),
  "detail_fusion": coupling("", "net.0."),
}

# What each published file was trained for; a wrong skip gives washed-out pictures and no error.
_FUSION = {
  "ivf": {"skip": "visible", "visible": "b"},
  "mif": {"skip": "none", "visible": "a"},
}


def from_torch(parts: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
  """Converts one of the two published files; see `Method.from_torch`.

  Args:
    parts: "ivf" or "mif": the file's four state dicts by their names.

  Raises:
    UserError: not exactly one file, or one that does not fit; all keys that do not are counted.
  """
  if len(parts) != 1:
    raise UserError("give one file: ivf=CDDFuse_IVF.pth or mif=CDDFuse_MIF.pth")
  ((kind, states),) = parts.items()
  missing = [name for name in PARTS.values() if not isinstance(states.get(name), Mapping)]
  if missing:
    raise UserError(f"not a CDDFuse file: it has no {' and no '.join(missing)}")
  states = {here: torch_names.unwrapped(states[there]) for here, there in PARTS.items()}
  network = network_of(states["encoder"])
  shapes = jax.eval_shape(
    lambda: stages.init(
      ml_collections.ConfigDict({"network": network, "compute_dtype": "float32"}),
      stages.PARTS,
      jax.random.key(0),
    )
  )
  params = {}
  for name, layers in LAYERS.items():
    params[name] = torch_names.params_from_state_dict(
      states[name], shapes[name], layers, PARTS[name]
    )
  return params, {"network": network, "fusion": _FUSION[kind]}


def network_of(encoder: Mapping[str, np.ndarray]) -> dict[str, int]:
  """The sizes of the networks, from the encoder's names and shapes.

  Raises:
    UserError: this is no encoder of this family.
  """
  try:
    width = encoder["patch_embed.proj.weight"].shape[0]
    heads = encoder["baseFeature.attn.scale"].shape[0]
  except KeyError as error:
    raise UserError(f"not a CDDFuse file: its encoder has no {error.args[0]}") from error

  def count(prefix: str) -> int:
    indices = {key[len(prefix) :].split(".")[0] for key in encoder if key.startswith(prefix)}
    return len(indices)

  blocks, nodes = count("encoder_level1."), count("detailFeature.net.")
  return {"width": width, "heads": heads, "blocks": blocks, "nodes": nodes}


def to_torch(params: Params) -> dict[str, dict[str, np.ndarray]]:
  """The state dicts of networks, named as the published file names them."""
  return {
    PARTS[name]: {
      f"module.{key}": value
      for key, value in torch_names.to_state_dict(params[name], layers).items()
    }
    for name, layers in LAYERS.items()
    if name in params
  }
