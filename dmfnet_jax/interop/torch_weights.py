"""Weights of the published PyTorch program, read and written.

State dictionaries are mappings of the published names to numpy arrays in PyTorch's layout
(`torch_names`); only reading a `.pth` file needs PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dmfnet_jax import weights
from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch_names
from dmfnet_jax.models.fusion_head import FusionHead
from dmfnet_jax.models.unet import UNet

StateDict = Mapping[str, np.ndarray]
Params = dict[str, Any]

UNET_PREFIX = "denoise_fn."
# The published program's own; a checkpoint's shapes do not tell them.
NORM_GROUPS = 32
TIMESTEPS = (5, 10, 20)


def unet_config_from_torch(state_dict: StateDict, *, norm_groups: int = NORM_GROUPS) -> dict:
  """Infers the UNet's sizes from a checkpoint's names and shapes.

  Args:
    state_dict: the checkpoint, with or without the prefix "denoise_fn.".
    norm_groups: groups of its normalisations, which the shapes do not tell.

  Returns:
    `width`, `multipliers`, `num_res_blocks`, `norm_groups` and `attention_levels` of
    `dmfnet_jax.models.unet.UNet`.

  Raises:
    UserError: this is no UNet of this family.
  """
  state = _unet_state(state_dict)
  if "init_conv.weight" not in state:
    other = " (but it looks like a fusion head: are the two files swapped?)" * _is_head(state_dict)
    raise UserError(f"not a DM-FNet UNet checkpoint: it has no init_conv.weight{other}")
  width = state["init_conv.weight"].shape[0]
  # A level's blocks carry its width; a downsampling ends the level.
  level_widths: list[int | None] = [None]
  blocks_of_first = 0
  attention_levels = []
  for i in sorted({int(key.split(".")[1]) for key in state if re.match(r"downs\.\d+\.", key)}):
    if not any(key.startswith(f"downs.{i}.res_block.") for key in state):
      level_widths.append(None)
      continue
    level = len(level_widths) - 1
    blocks_of_first += level == 0
    kernel = state.get(f"downs.{i}.res_block.block2.block.3.weight")
    if kernel is not None:
      level_widths[-1] = kernel.shape[0]
    if f"downs.{i}.attn.qkv.weight" in state and level not in attention_levels:
      attention_levels.append(level)
  for level, level_width in enumerate(level_widths):
    if level_width is None or level_width % width:
      raise UserError(
        f"not a DM-FNet UNet checkpoint: level {level} is {level_width or 0} wide, "
        f"which is no multiple of the stem's {width}"
      )
    if level_width % norm_groups:
      raise UserError(
        f"level {level} is {level_width} wide, which {norm_groups} normalisation groups do not "
        "divide: call dmfnet_jax.interop.torch_weights.convert with the right norm_groups"
      )
  return {
    "width": width,
    "multipliers": tuple(w // width for w in level_widths if w is not None),
    "num_res_blocks": blocks_of_first,
    "norm_groups": norm_groups,
    "attention_levels": tuple(attention_levels),
  }


def fusion_head_config_from_torch(state_dict: StateDict) -> dict:
  """Infers the fusion head's sizes from a checkpoint's names and shapes.

  Returns:
    `level_widths` and `num_timesteps` of `dmfnet_jax.models.fusion_head.FusionHead`.

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
  config = unet_config_from_torch(state_dict, norm_groups=norm_groups)
  return torch_names.from_state_dict(
    _unet_state(state_dict), _unet_shapes(config), torch_names.UNET_LAYERS, name
  )


def fusion_head_params_from_torch(
  state_dict: StateDict, *, name: str = "the fusion head checkpoint"
) -> Params:
  """Turns a published fusion head's state dictionary into parameters of `FusionHead`.

  Raises:
    UserError: keys are missing, unexpected or of the wrong shape; all are counted.
  """
  config = fusion_head_config_from_torch(state_dict)
  return torch_names.from_state_dict(
    state_dict, _fusion_head_shapes(config), torch_names.FUSION_HEAD_LAYERS, name
  )


def unet_params_to_torch(params: Params) -> dict[str, np.ndarray]:
  """Turns parameters of `UNet` into the published program's (prefix "denoise_fn.", no buffers)."""
  state = torch_names.to_state_dict(params, torch_names.UNET_LAYERS)
  return {UNET_PREFIX + key: value for key, value in state.items()}


def fusion_head_params_to_torch(params: Params) -> dict[str, np.ndarray]:
  """Turns parameters of `FusionHead` into the published program's.

  Raises:
    ValueError: the head is an ablation that the published program does not have.
  """
  return torch_names.to_state_dict(params, torch_names.FUSION_HEAD_LAYERS)


def _unet_state(state_dict: StateDict) -> StateDict:
  inside = {
    key.removeprefix(UNET_PREFIX): value
    for key, value in state_dict.items()
    if key.startswith(UNET_PREFIX)
  }
  return inside or state_dict


def _is_head(state_dict: StateDict) -> bool:
  return any(key.startswith("rgb_decode") for key in state_dict)


def _shapes(module: Any, *args: Any) -> dict[str, tuple[int, ...]]:
  variables = jax.eval_shape(module.init, jax.random.key(0), *args)
  flat = flax.traverse_util.flatten_dict(variables["params"], sep="/")
  return {path: value.shape for path, value in flat.items()}


def _unet_shapes(config: dict) -> dict[str, tuple[int, ...]]:
  size = 2 ** (len(config["multipliers"]) - 1)
  return _shapes(UNet(**config), jnp.zeros((1, size, size, 1)), jnp.zeros((1,)))


def _fusion_head_shapes(config: dict) -> dict[str, tuple[int, ...]]:
  sizes = [4 * 2**level for level in range(len(config["level_widths"]))]
  features = tuple(
    jnp.zeros((config["num_timesteps"], 1, size, size, width))
    for size, width in zip(sizes, config["level_widths"], strict=True)
  )
  return _shapes(FusionHead(**config), features, features)


def read_pth(path: str | Path) -> dict[str, np.ndarray]:
  """Reads a `.pth` checkpoint into numpy arrays, without running any code that it may contain.

  A checkpoint wrapped as {"state_dict": ...} or {"model": ...} is unwrapped, and the prefix
  "module." of torch's DataParallel removed.

  Raises:
    UserError: PyTorch is not installed, or the file is missing or no such checkpoint.
  """
  try:
    import torch
  except ImportError as error:
    raise UserError("reading .pth files needs PyTorch: pip install 'dmfnet_jax[torch]'") from error
  if not Path(path).is_file():
    raise UserError(f"no such file: {path}")
  try:
    content = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # torch raises whatever its unpickler and zip reader raise
    reason = str(error).strip().split("\n")[0]
    raise UserError(f"{path} is not a PyTorch weights file: {reason}") from error
  for wrapper in ("state_dict", "model"):
    if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
      content = content[wrapper]
  if not isinstance(content, Mapping):
    raise UserError(f"{path} holds a {type(content).__name__}, not a state dictionary")
  return {
    str(key).removeprefix("module."): value.float().numpy()
    for key, value in content.items()
    if isinstance(value, torch.Tensor)
  }


def convert(
  unet_path: str | Path,
  head_path: str | Path,
  out_path: str | Path,
  *,
  norm_groups: int = NORM_GROUPS,
  timesteps: Sequence[int] = TIMESTEPS,
) -> None:
  """Converts the published program's `.pth` files into one model file for `load_model`.

  Args:
    unet_path: the UNet (published as `I630000_E14000_gen.pth`).
    head_path: the fusion head (published as `MIF.pth` and `IVIF.pth`).
    out_path: the `.safetensors` file to write; its folder must exist.
    norm_groups: groups of the UNet's normalisations; the files do not tell.
    timesteps: steps whose features the head was trained on; the files tell only how many.

  Raises:
    UserError: PyTorch is not installed; a file is missing, no such checkpoint, or does not fit.
  """
  if Path(out_path).is_dir() or not Path(out_path).absolute().parent.is_dir():
    raise UserError(f"cannot write {out_path}: give a file in a folder that exists")
  unet, head = read_pth(unet_path), read_pth(head_path)
  unet_config = unet_config_from_torch(unet, norm_groups=norm_groups)
  head_config = fusion_head_config_from_torch(head)
  params = {
    "unet": unet_params_from_torch(unet, norm_groups=norm_groups, name=str(unet_path)),
    "fusion_head": fusion_head_params_from_torch(head, name=str(head_path)),
  }
  offered = tuple(unet_config["width"] * m for m in reversed(unet_config["multipliers"]))
  if head_config["level_widths"] != offered:
    raise UserError(
      f"{head_path} takes features of widths {head_config['level_widths']}, "
      f"but {unet_path} gives {offered}: the two files do not belong together"
    )
  if head_config["num_timesteps"] != len(timesteps):
    raise UserError(
      f"{head_path} takes features of {head_config['num_timesteps']} timesteps, not of "
      f"{tuple(timesteps)}: call dmfnet_jax.interop.torch_weights.convert with the right timesteps"
    )
  config = {
    "unet": {**unet_config, "dropout": 0.2},
    "fusion_head": {"attention": "triple", "multi_scale_reach": 2},
    "features": {
      "timesteps": tuple(timesteps),
      "source": "decoder",
      "schedule": {"name": "linear", "num_timesteps": 2000, "start": 1e-6, "end": 1e-2},
    },
  }
  weights.save_weights(out_path, params, config)
