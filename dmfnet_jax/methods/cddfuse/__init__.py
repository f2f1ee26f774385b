"""CDDFuse (CVPR 2023, arXiv 2211.14461): base and detail features, each kind fused by its layer.

A shared encoder splits each picture; what both have of a kind is added up and fused; a decoder
makes the picture. Stage 1 rebuilds the sources, Stage 2 fuses. Where paper and published program
differ, the program counts.
"""

from collections.abc import Callable
from typing import Any

from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.cddfuse import published, stages
from dmfnet_jax.methods.cddfuse.networks import build
from dmfnet_jax.methods.method import Array, Compute, Config, Images, Method, Params
from dmfnet_jax.nn import layers

_SKIPS = ("none", "visible", "sum")
# Values per pixel that live at a time, over the width: the taps of the depthwise convolutions, of
# both pictures. From compiled programs; a test compares.
_WIDTHS_AT_ONCE = 90


def defaults(stage: int) -> dict[str, Any]:
  """The published values of a stage's sections; both stages have all of them."""
  del stage
  return {
    "network": {
      "width": 64,  # channels of all features
      "heads": 8,  # of the attentions over channels; must divide the width
      "blocks": 4,  # Restormer blocks of the encoder, and of the decoder
      "nodes": 3,  # coupling nodes of the detail features
    },
    "fusion": {
      # What the decoder adds before its sigmoid: "none", "visible", or "sum" of both sources. It
      # belongs to the weights: with another than they were trained with pictures are washed out.
      "skip": "visible",
      "visible": "a",  # the source that takes the visible picture's place: a (an MRI) or b
      "stretch": True,  # each fused picture to its own minimum and maximum
    },
    "loss": {
      "ssim": 5.0,  # Stage 1: of each rebuilt picture
      "reconstruction_gradient": 5.0,  # Stage 1: of the rebuilt visible picture
      "fusion_gradient": 10.0,  # Stage 2: of the edges
      "decomposition": 2.0,  # both stages
    },
  }


def check(config: Any) -> None:
  """Refuses what cannot be trained; see `Method.check`.

  Raises:
    UserError: one line that names the field.
  """
  network, fusion = config.network, config.fusion
  if network.width % network.heads or network.width % 2:
    raise UserError(
      f"config.network.width={network.width} must be even and a multiple of heads={network.heads}"
    )
  for field, value, known in (
    ("skip", fusion.skip, _SKIPS),
    ("visible", fusion.visible, ("a", "b")),
  ):
    if value not in known:
      raise UserError(
        f"config.fusion.{field} is one of {', '.join(map(repr, known))}, not {value!r}"
      )
  if config.crop_size < 16 or config.crop_size % 16:  # the pipeline cuts validation pictures to it
    raise UserError(f"config.crop_size={config.crop_size} must be a multiple of 16")


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """Encodes both sources, fuses and decodes; see `Method.fuse`."""
  networks = build(config["network"], compute.dtype)
  fusion = config["fusion"]

  def apply(params: Params, images: Images, keys: Array) -> Images:
    del keys  # nothing is drawn
    visible, infrared = stages.order(config, images)
    features = [stages.encode(networks, params, image) for image in (visible, infrared)]
    merged = stages.merge(networks, params, *features)
    skip = stages.choose_skip(fusion["skip"], visible, infrared)
    fused, _ = stages.decode(networks, params, *merged, skip)
    return {"fused": 2 * fused - 1}

  return apply


def after_crop(config: Config) -> Callable[[Images], Images] | None:
  """Stretches the pictures where the config says so; see `Method.after_crop`."""
  if not config["fusion"]["stretch"]:
    return None
  return lambda outputs: {"fused": layers.stretch(outputs["fused"])}


def memory(
  config: Config, size: tuple[int, ...], pairs: int, parts: int, bytes_per_value: int
) -> int:
  """About how much memory the activations take at their peak; see `Method.memory`."""
  del parts, bytes_per_value  # the depthwise convolutions add up in float32 in every dtype
  return pairs * size[0] * size[1] * config["network"]["width"] * 4 * _WIDTHS_AT_ONCE


METHOD = Method(
  defaults=defaults,
  model=("network", "fusion", "loss"),
  check=check,
  stages={1: stages.reconstruction, 2: stages.fusion},
  networks=stages.PARTS,
  fuse=fuse,
  after_crop=after_crop,
  exact_size=True,
  memory=memory,
  from_torch=published.from_torch,
  torch_parts={"ivf": "CDDFuse_IVF.pth", "mif": "CDDFuse_MIF.pth"},
)
