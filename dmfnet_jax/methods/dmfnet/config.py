"""DM-FNet's fields of a config, and which values make no sense."""

from collections.abc import Sequence
from typing import Any

from dmfnet_jax import losses
from dmfnet_jax.diffusion.schedule import BETA_SCHEDULES
from dmfnet_jax.errors import UserError, check_choice
from dmfnet_jax.methods import parts
from dmfnet_jax.methods.dmfnet.fusion_head import ATTENTIONS, OUTPUTS


def defaults(stage: int) -> dict[str, Any]:
  """The paper's values (SPEC) of a stage's sections."""
  if stage == 1:
    return {
      "unet": {
        "width": 128,  # channels of the finest level
        "multipliers": (1, 1, 1, 1, 2),  # each level's width over `width`, fine to coarse
        "num_res_blocks": 2,  # per level on the way down; one more on the way up
        "norm_groups": 32,  # of every normalisation; must divide every level's width
        "dropout": 0.2,  # share of activations dropped in every block
        "attention_levels": (),  # levels that attend besides the middle; 0 is the finest
      },
      "schedule": {
        "name": "cosine",  # or linear, quad, const, jsd, warmup10, warmup50
        "num_timesteps": 2000,  # T
        "start": 1e-6,  # first and last beta, where the schedule has them
        "end": 1e-2,  # see start
      },
      "timestep_range": (1, 2000),  # t is uniform in it, ends included
    }
  return {
    "fusion_head": {
      "attention": "triple",  # or "mean", or a module of yours: "my_module:MyAttention"
      "output": "tanh",  # or "blend": weighs the sources' own pixels, adds a rest
      "multi_scale_reach": 2,  # coarser levels that feed a level: 2, 1 or 0
    },
    "features": {
      "timesteps": (5, 10, 20),  # ascending
      "source": "decoder",  # or "encoder"
      "noise": True,  # False: features of clean images; nothing is drawn
      # Not Stage I's: linear in the paper.
      "schedule": {"name": "linear", "num_timesteps": 2000, "start": 1e-6, "end": 1e-2},
    },
    "fusion": {
      "contrast": 0.0,  # above 0: puts pictures' means to mid-grey, multiplies what deviates
    },
    "loss": {
      "fn": "fusion",  # or a function of yours, "my_module:my_loss": (fused, a, b) to [B], terms
      **losses.FUSION_WEIGHTS,  # `losses.fusion_loss` says what each means
    },
  }


def check(config: Any) -> None:
  """Refuses what cannot be trained; see `Method.check`.

  The UNet's section of a Stage II config is there once `start` has been read.

  Raises:
    UserError: one line that names the field.
  """
  levels = len(config.unet.multipliers) if "unet" in config else 1
  stride = max(16, 2 ** (levels - 1))  # 16: the pipeline cuts validation pictures to it
  if config.crop_size < stride or config.crop_size % stride:
    raise UserError(f"config.crop_size={config.crop_size} must be a multiple of {stride}")
  if config.stage == 1:
    check_norms(config.unet)
    check_choice("schedule.name", config.schedule.name, BETA_SCHEDULES)
    if len(config.timestep_range) != 2:
      raise UserError(f"config.timestep_range={config.timestep_range} must be two steps")
    _check_steps("timestep_range", config.timestep_range, config.schedule.num_timesteps)
    return
  features, head = config.features, config.fusion_head
  check_choice("features.schedule.name", features.schedule.name, BETA_SCHEDULES)
  check_choice("features.source", features.source, ("decoder", "encoder"))
  _check_steps("features.timesteps", features.timesteps, features.schedule.num_timesteps)
  parts.find("fusion_head.attention", head.attention, ATTENTIONS)
  check_choice("fusion_head.output", head.output, OUTPUTS)
  check_choice("fusion_head.multi_scale_reach", head.multi_scale_reach, (0, 1, 2))
  if config.fusion.contrast < 0:
    raise UserError(f"config.fusion.contrast={config.fusion.contrast} must be 0 or more")


def check_norms(unet: Any) -> None:
  """Refuses a UNet whose normalisations have more groups than divide a level's width."""
  for multiplier in unet.multipliers:
    if unet.width * multiplier % unet.norm_groups:
      raise UserError(
        f"config.unet.norm_groups={unet.norm_groups} must divide the width "
        f"{unet.width * multiplier}"
      )


def _check_steps(field: str, steps: Sequence[int], last: int) -> None:
  # JAX would clamp an index that is out of range, and train on other noise than was asked for.
  if not steps or list(steps) != sorted(steps) or steps[0] < 1 or steps[-1] > last:
    raise UserError(f"config.{field}={tuple(steps)} must be ascending steps in 1..{last}")
