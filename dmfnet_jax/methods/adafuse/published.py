"""The published program's weights: which parameter here is which one there."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.interop.layers import batch_norm
from dmfnet_jax.methods.adafuse.networks import build
from dmfnet_jax.methods.method import STATS, Params

NETWORK = "fuser"

# Built by the program and never used, or constants.
_UNUSED = re.compile(
  r"(fusionnet\d+\.)?(decoder|conv1x1)\..*"
  r"|(.*\.)?QKV_Block[12]\.(norm2|mlp|attn\.proj)\..*"
)
_BLUR = re.compile(r".*\.down_anti\.filt")
_HEADS = 8


def _conv_pair(here: str, there: str) -> torch_names.Layers:
  return (
    *batch_norm(rf"{here}/bn(?P<n>[12])", f"{there}.bn{{n}}"),
    (rf"{here}/conv(?P<n>[12])", f"{there}.conv{{n}}"),
  )


def encoder(here: str, there: str) -> torch_names.Layers:
  """The rows of an encoder."""
  return (
    (rf"{here}inlayer", f"{there}inlayer"),
    *_conv_pair(rf"{here}block(?P<k>\d+)", f"{there}block{{k}}"),
  )


def _attention(here: str, there: str) -> torch_names.Layers:
  return (
    (rf"{here}/norm1/body", f"{there}.norm1"),
    (rf"{here}/qkv", f"{there}.attn.qkv"),
  )


def cross_attention(here: str, there: str) -> torch_names.Layers:
  """The rows of one cross-attention block."""
  block = rf"{here}blocks(?P<source>[12])_(?P<i>\d+)"
  published = f"{there}TransformerEncoderBlocks{{source}}.{{i}}"
  return (
    (rf"{here}embed(?P<source>[12])", f"{there}patchembed{{source}}.proj"),
    *_attention(rf"{block}/attention", published),
    (rf"{block}/proj", f"{published}.attn.proj"),
    (rf"{block}/norm2/body", f"{published}.norm2"),
    (rf"{block}/fc(?P<n>[12])", f"{published}.mlp.fc{{n}}"),
    *_attention(rf"{here}qkv(?P<source>[12])", f"{there}QKV_Block{{source}}"),
    (rf"{here}proj(?P<source>[12])", f"{there}proj{{source}}"),
    (rf"{here}depatch", f"{there}depatch.projection.0"),
  )


def spatial_frequency(here: str, there: str) -> torch_names.Layers:
  """The rows of one level's fusion."""
  names = {"frequency": "FusionBlock1", "spatial": "FusionBlock2", "final": "FusionBlock_final"}
  return tuple(
    row
    for ours, theirs in names.items()
    for row in cross_attention(f"{here}{ours}/", f"{there}{theirs}.")
  )


LAYERS: torch_names.Layers = (
  *encoder(r"(?P<encoder>encoder[12]?)/", "{encoder}."),
  *spatial_frequency(r"fusion(?P<k>\d+)/", "fusionnet{k}."),
  *_conv_pair(r"up(?P<k>\d+)", "conv_up{k}"),
  (r"outlayer", "outlayer"),
)


def from_torch(parts: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
  """Converts a published file; see `Method.from_torch`.

  The heads of the attentions leave no trace in a file: they are the published program's.

  Args:
    parts: "model": the state dict.

  Raises:
    UserError: no file, or one that does not fit; all keys that do not are counted.
  """
  if "model" not in parts:
    raise UserError("give the file: model=Model_CT_MRI.pth")
  state = used(torch_names.unwrapped(parts["model"]))
  network = network_of(state)
  check_blur(state)
  state = {key: value for key, value in state.items() if not _BLUR.fullmatch(key)}
  side = network["patch"] * 2 ** (len(network["widths"]) - 1)
  picture = jax.ShapeDtypeStruct((1, side, side, 1), np.float32)
  shapes = jax.eval_shape(
    lambda: build(network, "float32").lazy_init(jax.random.key(0), picture, picture)
  )
  made = torch_names.variables_from_state_dict(state, shapes, LAYERS, "the file")
  params = {NETWORK: made["params"], STATS: {NETWORK: made["batch_stats"]}}
  return params, {"network": network}


def used(state: Mapping[str, Any]) -> dict[str, Any]:
  """A state dict without what the program builds and never uses."""
  return {key: value for key, value in state.items() if not _UNUSED.fullmatch(key)}


def network_of(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The `network` section, from the names and shapes.

  Raises:
    UserError: these are no weights of this family.
  """
  shared = "encoder.inlayer.weight" in state
  encoder = "encoder" if shared else "encoder1"
  block = "fusionnet1.FusionBlock1"

  def shape(key: str) -> tuple[int, ...]:
    if key not in state:
      raise UserError(f"not an AdaFuse file: it has no {key}")
    return state[key].shape

  def count(pattern: str) -> int:
    found = (re.match(pattern, key) for key in state)
    return len({match[1] for match in found if match})

  levels = count(rf"{encoder}\.block(\d+)\.conv2\.")
  return {
    "shared_encoder": shared,
    "stem": shape(f"{encoder}.inlayer.weight")[0],
    "widths": [shape(f"{encoder}.block{k}.conv2.weight")[0] for k in range(1, levels + 1)],
    "head": shape("outlayer.weight")[1],
    "dim": shape(f"{block}.patchembed1.proj.weight")[0],
    "heads": _HEADS,
    "patch": shape(f"{block}.patchembed1.proj.weight")[-1],
    "depth": count(rf"{re.escape(block)}\.TransformerEncoderBlocks1\.(\d+)\."),
  }


def check_blur(state: Mapping[str, np.ndarray]) -> None:
  """Refuses another low-pass filter than the published one, which is a constant here.

  Raises:
    UserError: a filter differs.
  """
  taps = np.array([1, 3, 3, 1], np.float32)
  expected = np.outer(taps, taps) / 64
  for key, value in state.items():
    if _BLUR.fullmatch(key) and not (
      value.shape[1:] == (1, 4, 4) and np.allclose(value, expected, atol=1e-6)
    ):
      raise UserError(f"{key} is another filter than (1 3 3 1) x (1 3 3 1) / 64")
