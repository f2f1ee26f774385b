"""CoCoNet (IJCV 2024, arXiv 2211.10960): a U-Net over both pictures and VGG's features of each.

Stage 1 learns from the sources themselves. Stage 2 goes on with a contrast: where a mask says that
A matters the result should be like A and unlike B, and elsewhere the reverse. Where paper and
published program differ, the program counts.
"""

from collections.abc import Callable
from typing import Any

from dmfnet_jax.errors import UserError, check_choice
from dmfnet_jax.methods.coconet import published, stages
from dmfnet_jax.methods.coconet.networks import STATISTICS, STRIDE, WIDTH
from dmfnet_jax.methods.method import Array, Compute, Config, Images, Method, Params

# Values per pixel that live at a time, over the width. From compiled programs; a test compares.
_WIDTHS_AT_ONCE = 10


def defaults(stage: int) -> dict[str, Any]:
  """The published values of a stage's sections; both stages have all of them."""
  del stage
  return {
    # A model file with VGG-19's weights (`dmfnet convert coconet vgg=...`); "": random ones.
    stages.VGG_FILE: "",
    "network": {
      "width": WIDTH,  # channels at full size; VGG is twice as wide, so ImageNet's has 32 here
    },
    "fusion": {
      # Statistics of the batch norms in fusing: "picture", each picture's own, as the published
      # program takes them; or "running", those that training has left.
      "statistics": "picture",
      # What the networks see: "signed", [-1, 1], as in training; or "bytes", 0..255, as the
      # published program does when it fuses.
      "input_range": "signed",
    },
    "loss": {
      "ssim": 20.0,  # of the weighted SSIM; the squared error has 1
      "ssim_sharpness": 0.5,  # the smaller, the more the source of stronger edges counts
      "mse_sharpness": 0.75,  # the same of the source of higher entropy
      "entropy": "per_image",  # or "cumulative", over the batch, as the published program has it
      "contrast": 1.0,  # Stage 2: of both contrastive terms
      "negatives": 2,  # Stage 2: negatives from other examples, besides the example's own
      # Stage 2: what is salient. "otsu": A above Otsu's threshold; "saliency": the dataset's field.
      "mask": "otsu",
    },
  }


def check(config: Any) -> None:
  """Refuses what cannot be trained; see `Method.check`.

  Raises:
    UserError: one line that names the field.
  """
  check_choice("fusion.statistics", config.fusion.statistics, STATISTICS[1:])
  check_choice("fusion.input_range", config.fusion.input_range, stages.RANGES)
  check_choice("loss.entropy", config.loss.entropy, ("per_image", "cumulative"))
  check_choice("loss.mask", config.loss.mask, ("otsu", "saliency"))
  if config.network.width < 1 or config.loss.negatives < 0:
    raise UserError("config.network.width must be at least 1, and config.loss.negatives 0")
  if config.crop_size < STRIDE or config.crop_size % STRIDE:
    raise UserError(f"config.crop_size={config.crop_size} must be a multiple of {STRIDE}")


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """Fuses both sources; see `Method.fuse`."""
  check_choice("fusion.input_range", config["fusion"]["input_range"], stages.RANGES)
  check_choice("fusion.statistics", config["fusion"]["statistics"], STATISTICS[1:])

  def apply(params: Params, images: Images, keys: Array) -> Images:
    del keys  # nothing is drawn
    return {"fused": stages.fuse_any(config, params, images, dtype=compute.dtype)}

  return apply


def memory(
  config: Config, size: tuple[int, ...], pairs: int, parts: int, bytes_per_value: int
) -> int:
  """About how much memory the activations take at their peak; see `Method.memory`."""
  del parts
  return pairs * size[0] * size[1] * config["network"]["width"] * bytes_per_value * _WIDTHS_AT_ONCE


METHOD = Method(
  defaults=defaults,
  model=("network", "fusion", "loss"),
  check=check,
  stages={1: stages.pretraining, 2: stages.finetuning},
  networks=("fuser", "vgg"),
  fuse=fuse,
  exact_size=True,
  memory=memory,
  from_torch=published.from_torch,
  torch_parts={"network": "latest.pth", "vgg": "torchvision's VGG-19, to train with"},
)
