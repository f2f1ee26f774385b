"""Where the prior comes from: the published program's file, or a model of this package."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.messages import say
from dmfnet_jax.methods.ddfm.guided import CHANNELS, GuidedUNet
from dmfnet_jax.methods.method import Config, Params

LAYERS: torch_names.Layers = (
  (r"time_embed_(?P<i>\d)", "time_embed.{i}"),
  (r"input_0_0", "input_blocks.0.0"),
  *(
    (rf"{here}/{ours}", f"{there}.{theirs}")
    for here, there in (
      (r"(?P<side>input|output)_(?P<i>\d+)_(?P<j>\d)", "{side}_blocks.{i}.{j}"),
      (r"middle_(?P<j>\d)", "middle_block.{j}"),
    )
    for ours, theirs in (
      ("in_norm", "in_layers.0"),
      ("in_conv", "in_layers.2"),
      ("embedding", "emb_layers.1"),
      ("out_norm", "out_layers.0"),
      ("out_conv", "out_layers.3"),
      ("skip", "skip_connection"),
      ("norm", "norm"),
      ("qkv", "qkv"),
      ("proj", "proj_out"),
    )
  ),
  (r"out_(?P<i>\d)", "out.{i}"),
)

# What the files do not tell.
_HEAD_WIDTH = 64
SCHEDULE = {"name": "linear", "num_timesteps": 1000, "start": 1e-4, "end": 0.02}
# Of the stored UNets' denoising stage: their files tell their fusing only.
_UNET_SCHEDULE = {"name": "cosine", "num_timesteps": 2000, "start": 1e-6, "end": 1e-2}
_UNET_METHOD = "dmfnet"
# Sections that are not the prior's: their defaults.
_OTHERS: dict[str, Any] = {"sampling": {}, "em": {}, "fusion": {}}


def from_torch(
  parts: Mapping[str, Any], *, head_width: int = _HEAD_WIDTH
) -> tuple[Params, dict[str, Any]]:
  """Converts the published prior; see `Method.from_torch`.

  Args:
    parts: "prior": the state dict.
    head_width: channels of the attentions' heads, which the file does not tell.

  Raises:
    UserError: no file, or one that does not fit; all keys that do not are counted.
  """
  if "prior" not in parts:
    raise UserError("give prior=256x256_diffusion_uncond.pt, or prior=MODEL with a UNet")
  # Kernels of 1 are those of dense layers here.
  state = {k: v[..., 0] if v.ndim == 3 else v for k, v in parts["prior"].items()}
  network = network_of(state) | {"head_width": head_width}
  unet = GuidedUNet(**network)
  side = 2 ** (len(network["multipliers"]) - 1)
  shapes = jax.eval_shape(
    lambda: unet.init(
      jax.random.key(0), np.zeros((1, side, side, CHANNELS), np.float32), np.ones(1, np.float32)
    )
  )
  found = torch_names.variables_from_state_dict(state, shapes, LAYERS, "the prior")
  return {"prior": found["params"]}, {
    "prior": {"kind": "guided", **network},
    "schedule": SCHEDULE,
    **_OTHERS,
  }


def network_of(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The UNet's fields, from the names and shapes.

  Raises:
    UserError: these are no weights of this family.
  """
  stem = "input_blocks.0.0.weight"
  if stem not in state:
    raise UserError(f"not a prior of guided-diffusion: it has no {stem}")
  width = state[stem].shape[0]
  blocks = {int(key.split(".")[1]) for key in state if key.startswith("input_blocks.")}

  def width_of(i: int) -> int:
    key = f"input_blocks.{i}.0.in_layers.2.weight"
    if key not in state:
      raise UserError(f"not a prior of guided-diffusion: it has no {key}")
    return state[key].shape[0]

  # On the way up each level but the finest ends with a block that doubles the sides: it has a norm
  # of the width that it keeps, and follows the level's other blocks.
  ups = [
    i
    for i in range(len(blocks))
    if any(f"output_blocks.{i}.{j}.in_layers.2.weight" in state for j in (1, 2))
  ]
  levels = len(ups) + 1
  per_level = len(blocks) // levels  # blocks, and one that halves the sides or the stem
  multipliers, attention = [], []
  for level in range(levels):
    first = 1 + level * per_level
    multipliers.append(width_of(first) // width)
    if f"input_blocks.{first}.1.qkv.weight" in state:
      attention.append(2**level)
  return {
    "width": width,
    "multipliers": tuple(multipliers),
    "num_res_blocks": per_level - 1,
    "attention_downsampling": tuple(attention),
  }


def from_model(params: Params, config: Config) -> tuple[Params, dict[str, Any]]:
  """Takes the UNet of a model as the prior; see `Method.from_model`.

  Raises:
    UserError: a model of a method that has no such UNet.
  """
  if config["method"] != _UNET_METHOD or "unet" not in params:
    raise UserError(
      f"a prior is the UNet of a {_UNET_METHOD} model, and this is one of {config['method']}"
    )
  say(
    "warning: the UNet's file does not tell on which noise it was trained: "
    f"{_UNET_SCHEDULE['name']}, {_UNET_SCHEDULE['num_timesteps']} steps are taken "
    "(other: --config.schedule.name=...). One that learnt slight noise alone, as "
    "the released ones did, guesses at the strong noise"
  )
  return {"prior": params["unet"]}, {
    "prior": {"kind": "unet", **config["unet"]},
    "schedule": _UNET_SCHEDULE,
    **_OTHERS,
  }
