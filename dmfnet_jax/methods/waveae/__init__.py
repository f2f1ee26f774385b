"""A wavelet-pooled autoencoder, in the manner of arXiv 2310.11910.

The paper (Das, Gupta, Radeva, Bakde 2023) has neither program nor weights. Its abstract gives the
kind: a dense autoencoder that fuses from end to end and whose feature maps are halved by wavelet
pooling with attention over channels. All sizes, the decoder, the fusion and the loss are ours, so
results are not the paper's.
"""

from collections.abc import Callable
from typing import Any

from dmfnet_jax import losses
from dmfnet_jax.errors import UserError, check_choice
from dmfnet_jax.methods.method import Array, Compute, Config, Images, Method, Params
from dmfnet_jax.methods.waveae import stages
from dmfnet_jax.methods.waveae.networks import FUSIONS, POOLS, build
from dmfnet_jax.nn.wavelet import WAVELETS

# Maps as large as the finest level's features that live at a time. From compiled programs; a test
# compares.
_FEATURES_AT_ONCE = 6


def defaults(stage: int) -> dict[str, Any]:
  """Our values; see `networks.WaveletAutoencoder`."""
  del stage
  return {
    "network": {
      "growth": 16,  # channels that a dense convolution adds; features are growth (convs + 1) wide
      "convs": 3,  # convolutions of a dense block
      "levels": 2,  # how often the sides are halved
      "pool": "wavelet",  # or "LL", its smooth band only; "mean"; "max"
      "attention": True,  # over the channels of the pooling
      "wavelet": "haar",  # or "db2"
      "fusion": "conv",  # of a level's features: a learned mixture; or "mean", "max"
    },
    "loss": {
      # "fuse" has the weights of `losses.fusion_loss`, so that methods can be compared by their
      # networks alone. "rebuild" trains an autoencoder of the sources; a run that begins from it
      # (`start`) fuses.
      "objective": "fuse",
      **losses.FUSION_WEIGHTS,  # `losses.fusion_loss` says what each means
      "edge_weight": 0.0,  # mean |details of F - the larger ones of A and B|, of one Haar level
    },
  }


def check(config: Any) -> None:
  """Refuses what cannot be trained; see `Method.check`.

  Raises:
    UserError: one line that names the field.
  """
  network = config.network
  for field in ("growth", "convs", "levels"):
    if network[field] < 1:
      raise UserError(f"config.network.{field}={network[field]} must be at least 1")
  for field, known in (("pool", POOLS), ("wavelet", WAVELETS), ("fusion", FUSIONS)):
    check_choice(f"network.{field}", network[field], known)
  check_choice("loss.objective", config.loss.objective, stages.OBJECTIVES)
  side = max(16, 2**network.levels)  # 16: the pipeline cuts validation pictures to it
  if config.crop_size < side or config.crop_size % side:
    raise UserError(f"config.crop_size={config.crop_size} must be a multiple of {side}")


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """Encodes, fuses each level, decodes; see `Method.fuse`."""
  network = build(config["network"], compute.dtype)

  def apply(params: Params, images: Images, keys: Array) -> Images:
    del keys  # nothing is drawn
    return {"fused": network.apply({"params": params[stages.NETWORK]}, images["a"], images["b"])}

  return apply


def memory(
  config: Config, size: tuple[int, ...], pairs: int, parts: int, bytes_per_value: int
) -> int:
  """About how much memory the activations take at their peak; see `Method.memory`."""
  del parts, bytes_per_value  # measured in float32, and counted so in every dtype
  network = config["network"]
  width = network["growth"] * (network["convs"] + 1)
  return pairs * size[0] * size[1] * width * 4 * _FEATURES_AT_ONCE


METHOD = Method(
  defaults=defaults,
  model=("network", "loss"),
  check=check,
  stages={1: stages.training},
  networks=(stages.NETWORK,),
  fuse=fuse,
  exact_size=True,
  memory=memory,
  stride=lambda config: 2 ** config["network"]["levels"],
)
