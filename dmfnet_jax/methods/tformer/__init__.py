"""TFormer (Computers in Biology and Medicine 157, 2023, arXiv 2211.11393): judges skin lesions.

From a clinical photograph, a dermoscopic one and what is known of the patient to a diagnosis and
the seven-point checklist. Where paper and published program differ, the program counts. For
research: it is no medical device.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.method import Array, Compute, Config, Images, Method, Params
from dmfnet_jax.methods.tformer import published, stages
from dmfnet_jax.methods.tformer.networks import BACKBONE, CLASSIFIER


def defaults(stage: int) -> dict[str, Any]:
  """The published values, but for the facts that tell the diagnosis."""
  del stage
  return {
    "network": {
      "width": 96,  # channels of the backbone's first stage
      "window": 7,  # side of the attentions' windows; pictures have 32 times as many pixels a side
      "depths": (2, 2, 6, 2),  # blocks of the backbone's four stages
      "heads": (3, 6, 12, 24),  # of their attentions
      "drop_path": 0.2,  # of the last block's paths in training; less before
      "fusion_heads": (6, 6, 6, 12),  # of the attentions of both pictures
      "features": 128,  # of each picture and of the facts, at the end
    },
    "facts": {
      # Whether to look at the management and the level of diagnostic difficulty, as published.
      # Physicians fill these in once they have judged the lesion: they tell the diagnosis.
      "leaking": False,
    },
    "loss": {"decay": 1e-4},  # of all parameters, as a term of the loss
    "augment": {
      "chance": 0.5,  # of changing an example at all
      "shift": 0.0625,  # the largest, in sides
      "scale": 0.8,  # the largest growth and shrinkage
      "angle": 45.0,  # the largest, in degrees
      "contrast": 0.2,  # the largest change of the clinical picture's contrast and brightness
    },
  }


def check(config: Any) -> None:
  """Refuses what cannot be trained; see `Method.check`.

  Raises:
    UserError: one line that names the field.
  """
  network = config.network
  for name in ("depths", "heads", "fusion_heads"):
    if len(network[name]) != stages.STAGES or min(network[name]) < 1:
      raise UserError(f"config.network.{name}={tuple(network[name])} must be four positive numbers")
  if network.window < 2:
    raise UserError(f"config.network.window={network.window} must be at least 2")
  for i in range(stages.STAGES):
    fused = network.width << min(i + 1, 3)
    if (network.width << i) % network.heads[i] or fused % network.fusion_heads[i]:
      raise UserError(
        f"config.network.heads and fusion_heads must divide the channels: {network.width << i} and "
        f"{fused} of stage {i}"
      )
  if network.features % 4:
    raise UserError(f"config.network.features={network.features} must be a multiple of 4")
  for name, least, most in (("drop_path", 0, 1), ("chance", 0, 1), ("scale", 0, 1)):
    value = (network if name == "drop_path" else config.augment)[name]
    if not least <= value <= most or (value == most and name != "chance"):
      section = "network" if name == "drop_path" else "augment"
      raise UserError(f"config.{section}.{name}={value} must be in [{least}, {most})")
  if config.crop_size != (side := stages.side_of(config)):
    raise UserError(
      f"config.crop_size={config.crop_size} must be {side}: 32 times config.network.window"
    )


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """The probabilities of each criterion's classes; see `Method.fuse`."""
  networks = stages.build(config, compute.dtype)

  def apply(params: Params, images: Images, keys: Array) -> Images:
    del keys  # nothing is drawn
    pictures = {field.name: (images[field.name] + 1) / 2 for field in stages.SOURCES[:2]}
    logits, _ = stages.judge(networks, config, params, images | pictures)
    return {name: nn.softmax(x, axis=-1) for name, x in logits.items()}

  return apply


def size(config: Config) -> tuple[int, int]:
  """The size that pictures are stretched to; see `Method.size`."""
  return (stages.side_of(config),) * 2


METHOD = Method(
  defaults=defaults,
  model=("network", "facts"),
  check=check,
  stages={1: stages.training},
  sources=stages.SOURCES,
  outputs=stages.OUTPUTS,
  networks=(BACKBONE, CLASSIFIER),
  fuse=fuse,
  size=size,
  left_out=stages.left_out,
  exact_size=True,
  from_torch=published.from_torch,
  torch_parts=published.PARTS,
)
