"""DFVO (arXiv 2505.04526): a dark visible picture is brightened and fused in one network.

One stage with tasks that build on each other: how the visible picture is lit, what it would look
like in good light, the infrared picture again, and the fusion of the two. Where paper and published
program differ, the program counts.
"""

from collections.abc import Callable
from typing import Any

from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.dfvo import published, stages
from dmfnet_jax.methods.dfvo.networks import STRIDE, build
from dmfnet_jax.methods.method import Array, Compute, Config, Images, Method, Params, variables
from dmfnet_jax.nn import layers

# Values per pixel that live at a time, over the width, but for the attention's two maps. From
# compiled programs; a test compares.
_WIDTHS_AT_ONCE = 95


def defaults(stage: int) -> dict[str, Any]:
  """The published values of the only stage's sections."""
  del stage
  return {
    "network": {
      "width": 16,  # channels of the first layer; features have 8 times as many
    },
    "fusion": {
      # Each fused luma to its own minimum and maximum; the published program stretches the picture
      # in colour.
      "stretch": True,
    },
    "loss": {
      "infrared": 10.0,  # of the rebuilt infrared picture
      "retinex": 500.0,  # the enhanced picture times the illumination is the visible one
      "mutual_gradient": 1.35,  # of the illumination
      "smoothness": 1.55,  # of the illumination
      "edges": 0.65,  # of the fused picture
      "intensity": 1.75,  # of the fused picture
      "colour": 0.35,  # of the fused picture
      # Equal parts of the run: the last three, of the fusion, are multiplied by the number of the
      # epoch, from 0, and the growth.
      "epochs": 100,
      "fusion_growth": 0.1,  # per epoch
    },
  }


def check(config: Any) -> None:
  """Refuses what cannot be trained; see `Method.check`.

  Raises:
    UserError: one line that names the field.
  """
  for field, value in (
    ("network.width", config.network.width),
    ("loss.epochs", config.loss.epochs),
  ):
    if value < 1:
      raise UserError(f"config.{field}={value} must be at least 1")
  if config.crop_size < 16 or config.crop_size % 16:  # the pipeline cuts validation pictures to it
    raise UserError(f"config.crop_size={config.crop_size} must be a multiple of 16")


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """Fuses the lumas; see `Method.fuse`."""
  network = build(config["network"]["width"], compute.dtype)["fuser"]

  def apply(params: Params, images: Images, keys: Array) -> Images:
    del keys  # nothing is drawn
    visible, infrared = (images[name] / 2 + 0.5 for name in ("b", "a"))
    found = network.apply(variables(params, "fuser"), visible, infrared)
    return {"fused": 2 * found["picture"] - 1}

  return apply


def after_crop(config: Config) -> Callable[[Images], Images] | None:
  """Stretches the result to its own range, where the config says so."""
  if not config["fusion"]["stretch"]:
    return None
  return lambda outputs: {"fused": layers.stretch(outputs["fused"])}


def memory(
  config: Config, size: tuple[int, ...], pairs: int, parts: int, bytes_per_value: int
) -> int:
  """About how much memory the activations take at their peak; see `Method.memory`."""
  del parts, bytes_per_value  # the depthwise convolutions and the softmax are float32 in any dtype
  pixels = size[0] * size[1]
  attention = 2 * (pixels // STRIDE**2) ** 2
  return 4 * pairs * (pixels * config["network"]["width"] * _WIDTHS_AT_ONCE + attention)


METHOD = Method(
  defaults=defaults,
  model=("network", "fusion", "loss"),
  check=check,
  stages={1: stages.training},
  networks=("fuser",),
  fuse=fuse,
  after_crop=after_crop,
  exact_size=True,
  memory=memory,
  stride=lambda config: STRIDE,
  from_torch=published.from_torch,
  torch_parts={"model": "DFModel.pth"},
)
