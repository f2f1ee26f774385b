"""DC2Fusion (ICONIP 2023, arXiv 2310.06291): whole MRI and PET volumes to one grey volume.

A U-shaped transformer of small windows, in every block of which each source asks the other through
a deformable sampling of it, beside a convolution of both. Its two maps are weighted by their own
size over the whole volume. Where paper and published program differ, the program counts.
"""

from collections.abc import Callable
from typing import Any

from dmfnet_jax.errors import UserError, check_choice
from dmfnet_jax.methods.deform3d import objectives, published, stages
from dmfnet_jax.methods.deform3d.networks import NARROWER, PATCH, build
from dmfnet_jax.methods.method import (
  Array,
  Compute,
  Config,
  Field,
  Images,
  Method,
  Params,
  variables,
)


def defaults(stage: int) -> dict[str, Any]:
  """The published values."""
  del stage
  return {
    "network": {
      "width": 96,  # channels of the finest level's tokens; a multiple of 8 and of its heads
      "depths": (2, 2, 6, 2),  # blocks of the levels, fine to coarse, on the way down and up
      "heads": (3, 6, 12, 24),  # of their attentions
      "drop_path": 0.2,  # of the last block's paths in training; less before
      # True: as the paper describes it. The published program takes samples for tokens though they
      # are laid out by channels, divides reference points by another axis' side, has no softmax and
      # the width in the place of the batch norms' epsilon.
      "plain": False,
    },
    "fusion": {
      # Each map is weighted by its own size: the "sum" of its absolute values over the volume, as
      # published, so that larger volumes become brighter; or their "mean" over what is not black.
      "weights": "sum",
    },
    "loss": {
      "weight_a": 2.0,  # of the MRI's LNCC, 1 - SSIM and absolute difference
      "weight_b": 1.0,  # of the PET's
    },
    # Probabilities, in training.
    "augment": {
      "rotate": 0.1,  # both volumes, about each axis, by up to 0.2 radians
      "gamma": 0.5,  # of the MRI, 0.1 to 2; the loss sees it, too
      "noise": 0.5,  # of the MRI, likewise
    },
  }


def check(config: Any) -> None:
  """Refuses what cannot be trained; see `Method.check`.

  Raises:
    UserError: one line that names the field.
  """
  network = config.network
  if not network.depths or len(network.depths) != len(network.heads):
    raise UserError(
      f"config.network.heads={tuple(network.heads)} must have a number for each level of "
      f"depths={tuple(network.depths)}"
    )
  if network.width % NARROWER:
    raise UserError(f"config.network.width={network.width} must be a multiple of {NARROWER}")
  for level, heads in enumerate(network.heads):
    if (network.width << level) % heads:
      raise UserError(
        f"config.network.heads={tuple(network.heads)} must divide the levels' channels, "
        f"{network.width} and its doubles"
      )
  if not 0 <= network.drop_path < 1:
    raise UserError(f"config.network.drop_path={network.drop_path} must be in [0, 1)")
  check_choice("fusion.weights", config.fusion.weights, stages.WEIGHTS)
  for name, probability in config.augment.items():
    if not 0 <= probability <= 1:
      raise UserError(f"config.augment.{name}={probability} is a probability: 0 to 1")
  if config.crop_size < objectives.LEAST_SIDE:
    raise UserError(
      f"config.crop_size={config.crop_size} must be at least {objectives.LEAST_SIDE}, the side of "
      "SSIM's window"
    )


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """Both maps, which `after_crop` puts together; see `Method.fuse`."""
  network = build(config["network"], compute.dtype)
  check_choice("fusion.weights", config["fusion"]["weights"], stages.WEIGHTS)

  def apply(params: Params, images: Images, keys: Array) -> Images:
    del keys  # nothing is drawn
    a, b = ((images[name] + 1) / 2 for name in "ab")
    maps = network.apply(variables(params, published.NETWORK), a, b)
    return {"maps": maps, "shown": stages.is_shown(a, b)}

  return apply


def after_crop(config: Config) -> Callable[[Images], Images]:
  """Weights the maps by what they are over the whole volume; see `Method.after_crop`."""
  weights = config["fusion"]["weights"]

  def put_together(outputs: Images) -> Images:
    fused = stages.combine(outputs["maps"], outputs["shown"], weights)
    return {"fused": 2 * fused - 1}

  return put_together


METHOD = Method(
  defaults=defaults,
  model=("network", "fusion", "loss", "augment"),
  check=check,
  stages={1: stages.fusion},
  sources=(Field("a"), Field("b", gives_colour=True)),
  networks=(published.NETWORK,),
  fuse=fuse,
  after_crop=after_crop,
  space=3,
  exact_size=True,
  tile_step=lambda config: PATCH,  # so that blocks cut a volume into the whole's tokens
  from_torch=published.from_torch,
  torch_parts=published.PARTS,
)
