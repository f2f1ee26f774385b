"""AdaFuse (arXiv 2310.05462): features fused in space and in the log-magnitude spectrum.

Two convolutional pyramids; at every level three cross-attention blocks fuse both sources in space,
in frequency, and the two results with each other; a decoder makes the picture. Where paper and
published program differ, the program counts. Its training is not published: the loss is that of the
authors' successor.
"""

from collections.abc import Callable
from typing import Any

from dmfnet_jax.errors import UserError, check_choice
from dmfnet_jax.methods.adafuse import published, stages
from dmfnet_jax.methods.adafuse.networks import build
from dmfnet_jax.methods.method import (
  Array,
  Compute,
  Config,
  Images,
  Method,
  Params,
  variables,
)
from dmfnet_jax.nn import layers

# Maps as large as the finest level's features, and matrices of its attention scores, that live at a
# time. From compiled programs; a test compares.
_FEATURES_AT_ONCE, _SCORES_AT_ONCE = 20, 5


def defaults(stage: int) -> dict[str, Any]:
  """The published values, and the successor's for the loss."""
  del stage
  return {
    "network": {
      # One encoder for both sources, as in the published CT model, or one each (PET, SPECT).
      "shared_encoder": False,
      "stem": 64,  # channels before the first level
      "widths": (112, 160, 208, 256),  # channels of the levels, each half as large as the last
      "head": 16,  # channels before the picture
      "dim": 256,  # width of the tokens
      "heads": 8,  # of all attentions; must divide dim
      "patch": 16,  # side of a token's patch, in pixels of each level
      "depth": 4,  # transformer blocks of each source in each of the cross attentions
    },
    "fusion": {
      "stretch": True,  # each fused picture to its own minimum and maximum
    },
    # A substitute: that of ASFE-Fusion, by the same authors.
    "loss": {
      "content": 0.5,  # of the Frobenius norm of what is missing to the sources' mean
      "structure": 0.5,  # of the logarithm of that of the structure tensors
      "ssim": 1.0,  # of 1 - SSIM with each source
      "ssim_gradient": False,  # whether SSIM is trained on; in the program it only adds a number
      # How sources are scaled to [0, 1] before training: "picture", each to its own range; "batch",
      # as published; "none", as in fusing.
      "scaling": "picture",
    },
  }


def check(config: Any) -> None:
  """Refuses what cannot be trained; see `Method.check`.

  Raises:
    UserError: one line that names the field.
  """
  network = config.network
  if network.dim % network.heads:
    raise UserError(f"config.network.dim={network.dim} must be a multiple of heads={network.heads}")
  if network.patch < 1 or not network.widths or min(network.widths) < 2 or network.head < 2:
    raise UserError("config.network needs a patch of at least 1 and levels of at least 2 channels")
  check_choice("loss.scaling", config.loss.scaling, ("picture", "batch", "none"))
  side = stages.side(network)
  if config.crop_size < side or config.crop_size % side:
    raise UserError(
      f"config.crop_size={config.crop_size} must be a multiple of {side}: the patch, once for each "
      "time that the levels are halved"
    )


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """Fuses with the running statistics; see `Method.fuse`."""
  network = build(config["network"], compute.dtype)

  def apply(params: Params, images: Images, keys: Array) -> Images:
    del keys  # nothing is drawn
    outputs = network.apply(variables(params, stages.NETWORK), *stages.order(images))
    return {"fused": 2 * outputs["fused"] - 1}

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
  del parts, bytes_per_value  # norms, spectra and attentions are float32 in every dtype
  network = config["network"]
  pixels = size[0] * size[1]
  tokens = pixels // network["patch"] ** 2  # of the finest level
  features = _FEATURES_AT_ONCE * pixels * network["widths"][0]
  return pairs * 4 * (features + _SCORES_AT_ONCE * network["heads"] * tokens**2)


METHOD = Method(
  defaults=defaults,
  model=("network", "fusion", "loss"),
  check=check,
  stages={1: stages.fusion},
  networks=(stages.NETWORK,),
  fuse=fuse,
  after_crop=after_crop,
  exact_size=True,
  memory=memory,
  stride=lambda config: stages.side(config["network"]),
  from_torch=published.from_torch,
  torch_parts={"model": "Model_CT_MRI.pth, or one for PET or SPECT"},
)
