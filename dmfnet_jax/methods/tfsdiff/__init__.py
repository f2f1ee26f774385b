"""TFS-Diff (MICCAI 2024, arXiv 2404.17357): three sources of low resolution to one sharp picture.

A conditional diffusion model draws the fused picture, in colour and enlarged, from noise; the
sources, enlarged, are the condition. It learns from pictures that were fused before. Where paper
and published program differ, the program counts.
"""

import math
from collections.abc import Callable
from typing import Any

from dmfnet_jax.diffusion.schedule import BETA_SCHEDULES, kept_steps
from dmfnet_jax.errors import UserError, check_choice
from dmfnet_jax.methods.dmfnet.config import check_norms
from dmfnet_jax.methods.method import Array, Compute, Config, Field, Images, Method, Params
from dmfnet_jax.methods.tfsdiff import networks, published, resampling, stages
from dmfnet_jax.methods.tfsdiff.sampling import make_sampler


def defaults(stage: int) -> dict[str, Any]:
  """The published values, of 128 to 256 pixels."""
  del stage
  return {
    "unet": {
      "width": 64,  # channels of the finest level
      "multipliers": (1, 2, 4, 8, 8),  # each level's width over `width`, fine to coarse
      "num_res_blocks": 2,  # per level on the way down; one more on the way up
      "norm_groups": 32,  # of every normalisation; must divide every level's width
      "dropout": 0.2,  # share of activations dropped in every block
      "attention_levels": (4,),  # levels that attend besides the middle; 0 is the finest
    },
    "schedule": {
      "name": "linear",  # or cosine, quad, const, jsd, warmup10, warmup50
      "num_timesteps": 4000,  # T
      "start": 1e-6,  # first and last beta, where the schedule has them
      "end": 1e-2,  # see start
    },
    "sampling": {
      "steps": 4000,  # passes of the network, at equal distances over the schedule
      "eta": 1.0,  # 1: ancestral, as published; 0: DDIM, which draws the start alone
    },
    "enlargement": {
      "factor": 2,  # the fused picture's sides over the sources'; 1: they are enlarged already
      "sharp_sources": True,  # training makes them coarse itself; False: the dataset's are enlarged
    },
  }


def check(config: Any) -> None:
  """Refuses what cannot be trained; see `Method.check`.

  Raises:
    UserError: one line that names the field.
  """
  check_norms(config.unet)
  check_choice("schedule.name", config.schedule.name, BETA_SCHEDULES)
  kept_steps(config.schedule.num_timesteps, config.sampling.steps)
  _check_factor(config)
  # The pipeline cuts validation pictures to 16.
  side = math.lcm(16, 2 ** (len(config.unet.multipliers) - 1), config.enlargement.factor)
  if config.crop_size < side or config.crop_size % side:
    raise UserError(f"config.crop_size={config.crop_size} must be a multiple of {side}")


def _check_factor(config: Config) -> None:
  factor = config["enlargement"]["factor"]
  if factor < 1:
    raise UserError(f"config.enlargement.factor={factor} must be at least 1")


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """Enlarges the sources and samples; see `Method.fuse`."""
  _check_factor(config)
  sample, factor = make_sampler(config, compute.dtype), config["enlargement"]["factor"]

  def apply(params: Params, images: Images, keys: Array) -> Images:
    condition = stages.side_by_side(
      [resampling.enlarge(images[source.name], factor) for source in stages.SOURCES]
    )
    return {"fused": sample(params["unet"], condition, keys, compute.tell)}

  return apply


def stride(config: Config) -> int:
  """Of the sources: the network halves the enlarged sides at each level but the first."""
  coarsest = 2 ** (len(config["unet"]["multipliers"]) - 1)
  return coarsest // math.gcd(coarsest, config["enlargement"]["factor"])


METHOD = Method(
  defaults=defaults,
  model=("unet", "schedule", "sampling", "enlargement"),
  check=check,
  stages={1: stages.denoising},
  networks=("unet",),
  sources=stages.SOURCES,
  outputs=(Field("fused", channels=networks.COLOURS),),
  fuse=fuse,
  scale=lambda config: config["enlargement"]["factor"],
  is_random=True,
  exact_size=True,
  stride=stride,
  from_torch=published.from_torch,
  torch_parts=published.PARTS,
)
