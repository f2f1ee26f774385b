"""Weights of the published PyTorch program.

State dictionaries are mappings of the published names to numpy arrays in PyTorch's layout
(`interop.torch`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.methods.dmfnet import networks
from dmfnet_jax.methods.dmfnet.fusion_head import FusionHead
from dmfnet_jax.methods.dmfnet.unet import UNet

StateDict = Mapping[str, np.ndarray]
Params = dict[str, Any]


def block_layers(here: str, there: str) -> torch_names.Layers:
  """The rows of a block of the UNet."""
  return (
    (rf"{here}/noise_shift", f"{there}.res_block.noise_func.noise_func.0"),
    (rf"{here}/norm(?P<n>[12])", f"{there}.res_block.block{{n}}.block.0"),
    (rf"{here}/conv(?P<n>[12])", f"{there}.res_block.block{{n}}.block.3"),
    (rf"{here}/residual", f"{there}.res_block.res_conv"),
    (rf"{here}/attention/(?P<layer>norm|qkv|out)", f"{there}.attn.{{layer}}"),
  )


# (a layer here, the same layer there). In the second column {even} is 2 * level, {odd} is one more.
UNET_LAYERS = (
  (r"noise_level_mlp/dense1", "noise_level_mlp.1"),
  (r"noise_level_mlp/dense2", "noise_level_mlp.3"),
  (r"init_conv", "init_conv"),
  *block_layers(r"(?P<part>\w+)_(?P<i>\d+)", "{part}.{i}"),
  (r"downs_(?P<i>\d+)", "downs.{i}.conv"),
  (r"ups_(?P<i>\d+)/conv", "ups.{i}.conv"),
  (r"final_norm", "final_conv.block.0"),
  (r"final_conv", "final_conv.block.3"),
)
FUSION_HEAD_LAYERS = (
  (r"timestep_fusion_(?P<level>\d+)/conv1", "decoder.{even}.block.0"),
  (r"timestep_fusion_(?P<level>\d+)/conv2", "decoder.{even}.block.2"),
  (r"attention_(?P<level>\d+)/spatial", "decoder.{odd}.att.sa.sa"),
  (r"attention_(?P<level>\d+)/squeeze", "decoder.{odd}.att.ca.ca.0"),
  (r"attention_(?P<level>\d+)/excite", "decoder.{odd}.att.ca.ca.2"),
  (r"attention_(?P<level>\d+)/pixel", "decoder.{odd}.att.pa.pa2"),
  (r"skip_(?P<level>\d+)/conv1", "decoder.{odd}.block1.0"),
  (r"skip_(?P<level>\d+)/conv2", "decoder.{odd}.block1.2"),
  (r"block_(?P<level>\d+)/conv1", "decoder.{odd}.block.0"),
  (r"block_(?P<level>\d+)/conv2", "decoder.{odd}.block.2"),
  (r"out1", "rgb_decode2.conv"),
  (r"out2", "rgb_decode1.conv"),
)

# The published program's own; a checkpoint's shapes do not tell them.
NORM_GROUPS = 32
TIMESTEPS = (5, 10, 20)


def unet_config_from_torch(state_dict: StateDict, *, norm_groups: int = NORM_GROUPS) -> dict:
  """Infers the attributes of `UNet` from a checkpoint's names and shapes.

  Args:
    state_dict: the checkpoint, with or without the prefix "denoise_fn.".
    norm_groups: groups of its normalisations, which the shapes do not tell.

  Raises:
    UserError: this is no UNet of this family.
  """
  state = _unet_state(state_dict)
  if "init_conv.weight" not in state:
    other = " (but it looks like a fusion head: are the two files swapped?)" * any(
      key.startswith("rgb_decode") for key in state_dict
    )
    raise UserError(f"not a DM-FNet UNet checkpoint: it has no init_conv.weight{other}")
  width = state["init_conv.weight"].shape[0]
  levels: list[list[str]] = [[]]  # the blocks of each; a downsampling ends a level
  for i in sorted({int(key.split(".")[1]) for key in state if re.match(r"downs\.\d+\.", key)}):
    if any(key.startswith(f"downs.{i}.res_block.") for key in state):
      levels[-1].append(f"downs.{i}")
    else:
      levels.append([])
  multipliers = []
  for level, blocks in enumerate(levels):
    kernels = [state.get(f"{block}.res_block.block2.block.3.weight") for block in blocks]
    level_width = max((len(kernel) for kernel in kernels if kernel is not None), default=0)
    if not level_width or level_width % width:
      raise UserError(
        f"not a DM-FNet UNet checkpoint: level {level} is {level_width} wide, "
        f"which is no multiple of the stem's {width}"
      )
    if level_width % norm_groups:
      raise UserError(
        f"level {level} is {level_width} wide, which {norm_groups} normalisation groups do not "
        "divide: call dmfnet_jax.weights.convert.convert with the right norm_groups"
      )
    multipliers.append(level_width // width)
  attend = [any(f"{block}.attn.qkv.weight" in state for block in blocks) for blocks in levels]
  return {
    "width": width,
    "multipliers": tuple(multipliers),
    "num_res_blocks": len(levels[0]),
    "norm_groups": norm_groups,
    "attention_levels": tuple(level for level, attends in enumerate(attend) if attends),
  }


def fusion_head_config_from_torch(state_dict: StateDict) -> dict:
  """Infers `level_widths` and `num_timesteps` of `FusionHead` from a checkpoint.

  Raises:
    UserError: this is no fusion head of this family.
  """
  level_widths: list[int] = []
  while (key := f"decoder.{2 * len(level_widths) + 1}.att.pa.pa2.weight") in state_dict:
    level_widths.append(state_dict[key].shape[0])
  if not level_widths:
    unet = any("init_conv" in key for key in state_dict)
    other = " (but it looks like a UNet: are the two files swapped?)" * unet
    raise UserError(f"not a DM-FNet fusion head: it has no decoder.1.att.pa.pa2.weight{other}")
  # Timestep fusion takes all timesteps' channels; with one timestep there is none.
  num_timesteps = 1
  for level, width in enumerate(level_widths):
    if (entry := state_dict.get(f"decoder.{2 * level}.block.0.weight")) is not None:
      num_timesteps = entry.shape[1] // width
  return {"level_widths": tuple(level_widths), "num_timesteps": num_timesteps}


def unet_params_from_torch(
  state_dict: StateDict, *, norm_groups: int = NORM_GROUPS, name: str = "the UNet checkpoint"
) -> Params:
  """Turns a published UNet's state dictionary into parameters of `UNet`.

  Args:
    state_dict: the checkpoint. Where the prefix "denoise_fn." occurs, everything outside it
      (buffers of the noise schedule) is ignored.
    norm_groups: see `unet_config_from_torch`.
    name: what error messages call the checkpoint.

  Raises:
    UserError: keys are missing, unexpected or of the wrong shape; all are counted.
  """
  unet = UNet(**unet_config_from_torch(state_dict, norm_groups=norm_groups))
  return _convert(_unet_state(state_dict), networks.init_unet, unet, UNET_LAYERS, name)


def fusion_head_params_from_torch(
  state_dict: StateDict, *, name: str = "the fusion head checkpoint"
) -> Params:
  """Turns a published fusion head's state dictionary into parameters; see the UNet's."""
  head = FusionHead(**fusion_head_config_from_torch(state_dict))
  return _convert(state_dict, networks.init_head, head, FUSION_HEAD_LAYERS, name)


def _unet_state(state_dict: StateDict) -> StateDict:
  prefix = "denoise_fn."
  inside = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
  return inside or state_dict


def _convert(
  state: StateDict, init: Callable[..., Params], network: Any, layers: torch_names.Layers, name: str
) -> Params:
  shapes = jax.eval_shape(lambda: init(jax.random.key(0), network))
  return torch_names.params_from_state_dict(state, shapes, layers, name)


def from_torch(
  parts: Mapping[str, StateDict],
  *,
  norm_groups: int = NORM_GROUPS,
  timesteps: Sequence[int] = TIMESTEPS,
) -> tuple[Params, dict[str, Any]]:
  """Converts the published program's two checkpoints; see `Method.from_torch`.

  Args:
    parts: the state dictionaries "unet" and "fusion_head".
    norm_groups: groups of the UNet's normalisations; the checkpoints do not tell.
    timesteps: steps whose features the head was trained on; it tells only how many.

  Raises:
    UserError: a checkpoint does not fit, or the two do not belong together.
  """
  if missing := {"unet", "fusion_head"} - parts.keys():
    raise UserError(f"the published weights are two files: {' and '.join(sorted(missing))} missing")
  unet, head = (torch_names.unwrapped(parts[part]) for part in ("unet", "fusion_head"))
  unet_config = unet_config_from_torch(unet, norm_groups=norm_groups)
  head_config = fusion_head_config_from_torch(head)
  params = {
    "unet": unet_params_from_torch(unet, norm_groups=norm_groups),
    "fusion_head": fusion_head_params_from_torch(head),
  }
  offered = tuple(unet_config["width"] * m for m in reversed(unet_config["multipliers"]))
  if head_config["level_widths"] != offered:
    raise UserError(
      f"the fusion head takes features of widths {head_config['level_widths']}, but the UNet gives "
      f"{offered}: the two files do not belong together"
    )
  if head_config["num_timesteps"] != len(timesteps):
    raise UserError(
      f"the fusion head takes features of {head_config['num_timesteps']} timesteps, not of "
      f"{tuple(timesteps)}: call dmfnet_jax.weights.convert.convert with the right timesteps"
    )
  features = {"timesteps": tuple(timesteps)}
  return params, {"unet": unet_config, "fusion_head": {}, "features": features}
