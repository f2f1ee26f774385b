"""EMMA (CVPR 2024, arXiv 2305.11443): equivariant fusion without targets.

Stage 1 trains two pseudo-sensing networks: of a fused picture each guesses what one sensor would
have seen. Stage 2 trains the fuser: the guesses shall be the sources, and fusing the guesses of a
shifted, rotated or flipped picture shall give that picture again. Where paper and published program
differ, the program counts.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from dmfnet_jax.errors import UserError, check_choice
from dmfnet_jax.methods.emma import published, stages
from dmfnet_jax.methods.emma.networks import build_fuser
from dmfnet_jax.methods.method import Array, Compute, Config, Images, Method, Params
from dmfnet_jax.nn import layers

_TILE = 32  # the published program fuses parts whose sides are multiples of it


def defaults(stage: int) -> dict[str, Any]:
  """The published values of a stage's sections."""
  if stage == 1:
    return {
      "sensing": {
        "width": 64,  # channels of the finest level; each coarser one has twice as many
        "levels": 5,  # of the UNet; its sides are halved between them
      },
      # What the sensors are guessed from: "mean" and "maximum" of the pair, or further pictures of
      # the dataset that other methods have fused, by their names there (as published).
      "inputs": ("mean", "maximum"),
    }
  return {
    "fuser": {
      "widths": (8, 16, 32, 32),  # channels of the levels, fine to coarse
      "heads": 8,  # of the attentions over channels; must divide the widths
    },
    "fusion": {
      "visible": "a",  # the source that takes the visible picture's place: a (an MRI) or b
      "stretch": True,  # each fused picture to its own minimum and maximum
      "tiled": False,  # fuses in overlapping parts as the published program; it shows seams
    },
    # The same picture otherwise, beside itself; each costs as much as fusing and sensing it.
    "transforms": {
      "shifts": 3,  # by distances that are drawn for each picture and step
      "rotations": (10, 130, 250),  # degrees, counter-clockwise
      "flips": True,  # left to right, upside down, and both
    },
    "loss": {"equivariance": 0.1},  # weight, beside the sources'
  }


def check(config: Any) -> None:
  """Refuses what cannot be trained; see `Method.check`.

  The sensing networks' section of a Stage 2 config is there once `start` has been read.

  Raises:
    UserError: one line that names the field.
  """
  side = 16  # the pipeline cuts validation pictures to it
  if "sensing" in config:
    side = max(side, 2 ** (config.sensing.levels - 1))
  if config.stage == 1:
    if not config.inputs:
      raise UserError("config.inputs is empty: name at least one fused picture, such as 'mean'")
  else:
    for width in config.fuser.widths:
      if width % config.fuser.heads:
        raise UserError(
          f"config.fuser.heads={config.fuser.heads} must divide the widths "
          f"{tuple(config.fuser.widths)}"
        )
    check_choice("fusion.visible", config.fusion.visible, ("a", "b"))
    side = max(side, 2 ** len(config.fuser.widths))
    if not 0 <= config.transforms.shifts < config.crop_size:
      raise UserError(
        f"config.transforms.shifts={config.transforms.shifts} must be less than the crop's side"
      )
  if config.crop_size < side or config.crop_size % side:
    raise UserError(f"config.crop_size={config.crop_size} must be a multiple of {side}")


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """The fuser alone; see `Method.fuse`."""
  fuser = build_fuser(config["fuser"], compute.dtype)
  check_choice("fusion.visible", config["fusion"]["visible"], ("a", "b"))

  def apply(params: Params, images: Images, keys: Array) -> Images:
    del keys  # nothing is drawn

    def fuse_part(infrared: Array, visible: Array) -> Array:
      return fuser.apply({"params": params["fuser"]}, infrared, visible)

    both = stages.order(config, *((images[name] + 1) / 2 for name in "ab"))
    fused = fuse_tiled(fuse_part, *both) if config["fusion"]["tiled"] else fuse_part(*both)
    return {"fused": 2 * fused - 1}

  return apply


def fuse_tiled(
  fuse_part: Callable[[Array, Array], Array], infrared: Array, visible: Array
) -> Array:
  """Fuses as the published program does: the largest part that it can, and the rest by three more.

  Args:
    fuse_part: fuses parts, whose sides are multiples of 32.
    infrared: [B, H, W, 1], sides of at least 32.
    visible: the same.

  Raises:
    UserError: a smaller picture.
  """
  _, height, width, _ = infrared.shape
  if min(height, width) < _TILE:
    raise UserError(f"fusion.tiled needs pictures of at least {_TILE} x {_TILE} pixels")
  below, right = height % _TILE, width % _TILE

  def part(top: int, left: int) -> Array:
    window = slice(top, top + height - below), slice(left, left + width - right)
    return fuse_part(infrared[:, *window], visible[:, *window])

  def row(top: int) -> Array:
    """The parts at the left and the right border; of the right one what the left one lacks."""
    if not right:
      return part(top, 0)
    return jnp.concatenate([part(top, 0), part(top, right)[:, :, -right:]], axis=2)

  if not below:
    return row(0)
  return jnp.concatenate([row(0), row(below)[:, -below:]], axis=1)


def after_crop(config: Config) -> Callable[[Images], Images] | None:
  """Stretches the pictures where the config says so; see `Method.after_crop`."""
  if not config["fusion"]["stretch"]:
    return None
  return lambda outputs: {"fused": layers.stretch(outputs["fused"])}


def stride(config: Config) -> int:
  """Two pixels remain at the coarsest level: one could not be reflected.

  Stage 1, whose config has no fuser, shows what the sensing networks make of pictures.
  """
  if "fuser" not in config:
    return 2 ** (config["sensing"]["levels"] - 1)
  return 1 if config["fusion"]["tiled"] else 2 ** len(config["fuser"]["widths"])


METHOD = Method(
  defaults=defaults,
  model=("sensing", "fuser", "fusion", "transforms", "loss"),
  check=check,
  stages={1: stages.sensing, 2: stages.fusion},
  networks=("fuser",),
  fuse=fuse,
  after_crop=after_crop,
  exact_size=True,
  stride=stride,
  from_torch=published.from_torch,
  torch_parts=published.PARTS,
)
