"""The published program's weights: which parameter here is which one there."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.interop.layers import batch_norm
from dmfnet_jax.methods.method import STATS, Params, variables
from dmfnet_jax.methods.tformer import stages
from dmfnet_jax.methods.tformer.networks import BACKBONE, CLASSIFIER

# What each file is, by the part's name.
PARTS = {
  "model": "new_model.pth",
  "backbone": "swin_tiny_patch4_window7_224.pth of ImageNet, to train with",
}
# Built and never used, or made anew: the backbone's own classes, and what follows from the sizes.
_UNUSED = re.compile(r"(cli_vit\.)?head\..*|.*(relative_position_index|attn_mask)")
_TABLE = "relative_position_bias_table"


def _mlp(here: str, there: str) -> torch_names.Layers:
  return ((rf"{here}mlp/(?P<layer>fc[12])", f"{there}mlp.{{layer}}"),)


def _merging(here: str, there: str) -> torch_names.Layers:
  return ((rf"{here}/(?P<layer>norm|reduction)", f"{there}.{{layer}}"),)


def swin(there: str = "") -> torch_names.Layers:
  """The rows of `nn.swin.Swin`."""
  here, block = r"stage(?P<k>\d)/block(?P<b>\d)/", there + "layers.{k}.blocks.{b}."
  return (
    ("embed", f"{there}patch_embed.proj"),
    ("embed_norm", f"{there}patch_embed.norm"),
    (rf"{here}norm(?P<n>[12])", f"{block}norm{{n}}"),
    (rf"{here}position/table", f"{block}attn.{_TABLE}"),
    (rf"{here}(?P<layer>qkv|proj)", f"{block}attn.{{layer}}"),
    *_mlp(here, block),
    *_merging(r"stage(?P<k>\d)/merge", there + "layers.{k}.downsample"),
    ("norm", f"{there}norm"),
  )


def _fusion() -> torch_names.Layers:
  rows: list[tuple[str, str]] = []
  for i, which in enumerate(("first", "second")):
    here, there = rf"fuse(?P<k>\d)/{which}(?P<b>\d)/", f"fusion_block{{k}}.layers.{{b}}.{i}."
    rows += [
      (rf"{here}norm(?P<n>[12])", f"{there}norm{{n}}"),
      (rf"{here}position/table", f"{there}attn.{_TABLE}"),
      (rf"{here}(?P<layer>to_q|to_kv|proj)", f"{there}attn.{{layer}}"),
      *_mlp(here, there),
    ]
  return tuple(rows)


_SHORT = {"clinical": "cli", "dermoscopic": "der"}
_HEADS = {
  "diagnosis": "diag",
  "pigment_network": "pn",
  "blue_whitish_veil": "bwn",  # (sic)
  "vascular_structures": "vs",
  "pigmentation": "pig",
  "streaks": "str",
  "dots_and_globules": "dag",
  "regression_structures": "rs",
}
_POST = "fusion_meta.layers.0."

LAYERS: Mapping[str, torch_names.Layers] = {
  BACKBONE: swin("cli_vit."),
  CLASSIFIER: (
    *_fusion(),
    *(
      row
      for side, short in _SHORT.items()
      for row in (
        *_merging(f"merge0_{side}", f"downsample_{short}_0"),
        *_merging(f"merge1_{side}", f"downsample_{short}"),
        (f"pooled_{side}", f"fusion_head_{short}.0"),
      )
    ),
    *(
      row
      for i, number in ((0, 0), (1, 3))
      for row in (
        (rf"meta/dense{i}", f"meta_subnet.rnn.model.{number}"),
        *batch_norm(rf"meta/norm{i}", f"meta_subnet.rnn.model.{number + 1}"),
      )
    ),
    (r"post/(?P<layer>project_in|project_out)", f"{_POST}{{layer}}"),
    (r"post/(?P<layer>x_norm[12]|c_norm1)", f"{_POST}fn.{{layer}}"),
    (r"post/(?P<layer>to_q|to_kv|proj)", f"{_POST}fn.attn.{{layer}}"),
    (r"post/(?P<layer>fc[12])", f"{_POST}fn.mlp.{{layer}}"),
    *((name, f"fc_{short}") for name, short in _HEADS.items()),
  ),
}


def from_torch(parts: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
  """Converts a published file; see `Method.from_torch`.

  Args:
    parts: "model", the whole, or "backbone" alone, as ImageNet's file has it.

  Raises:
    UserError: none or both, or a file that does not fit; all keys that do not are counted.
  """
  if len(parts) != 1:
    raise UserError("give model=new_model.pth, or to train with backbone=swin_tiny_...pth")
  ((part, state),) = parts.items()
  state = used(torch_names.unwrapped(state))
  whole = part == "model"
  config: dict[str, Any] = {"network": network_of(state, "cli_vit." if whole else "")}
  # All facts, as published.
  config["facts"] = {"leaking": True} if whole else {"leaking": False}
  made = jax.eval_shape(lambda: stages.init(config, jax.random.key(0)))
  if not whole:
    backbone = torch_names.params_from_state_dict(state, made[BACKBONE], swin(), "the backbone")
    return {BACKBONE: backbone}, config
  names = (BACKBONE, CLASSIFIER)
  found = torch_names.variables_from_state_dict(
    state,
    {
      "params": {name: made[name] for name in names},
      "batch_stats": made[STATS],
    },
    tuple((rf"{name}/{here}", there) for name in names for here, there in LAYERS[name]),
    "the file",
  )
  return found["params"] | {STATS: found["batch_stats"]}, config


def used(state: Mapping[str, Any]) -> dict[str, Any]:
  """A state dict without what the program builds and never uses."""
  return {key: value for key, value in state.items() if not _UNUSED.fullmatch(key)}


def network_of(state: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, Any]:
  """The `network` section, from the names and shapes of a state dict.

  Raises:
    UserError: these are no weights of this family.
  """

  def shape(key: str) -> tuple[int, ...]:
    if key not in state:
      raise UserError(f"not a file of TFormer or Swin: it has no {key}")
    return state[key].shape

  def depth(stage: int) -> int:
    found = (re.match(rf"{re.escape(prefix)}layers\.{stage}\.blocks\.(\d+)\.", k) for k in state)
    return len({match[1] for match in found if match})

  table = f"{prefix}layers.{{}}.blocks.0.attn.{_TABLE}".format
  network: dict[str, Any] = {
    "width": shape(f"{prefix}patch_embed.proj.weight")[0],
    "window": (round(shape(table(0))[0] ** 0.5) + 1) // 2,
    "depths": [depth(i) for i in range(stages.STAGES)],
    "heads": [shape(table(i))[1] for i in range(stages.STAGES)],
    "drop_path": 0.2,  # these leave no trace in a file
    "fusion_heads": [6, 6, 6, 12],
    "features": 128,
  }
  if prefix:
    tables = (f"fusion_block{i}.layers.0.0.attn.{_TABLE}" for i in range(stages.STAGES))
    network["fusion_heads"] = [shape(key)[1] for key in tables]
    network["features"] = shape("fusion_head_cli.0.weight")[0]
  return network


def to_torch(params: Params) -> dict[str, np.ndarray]:
  """Parameters and statistics of what is there, named as in the published file."""
  return {
    key: value
    for name in (BACKBONE, CLASSIFIER)
    if name in params
    for tree in variables(params, name).values()
    for key, value in torch_names.to_state_dict(tree, LAYERS[name]).items()
  }
