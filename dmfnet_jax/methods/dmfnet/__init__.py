"""DM-FNet (arXiv 2506.15218): a UNet learns to denoise, then a head fuses its features.

Stage 1 trains the UNet. Stage 2 trains the fusion head on the frozen UNet's features of both
sources, noised at a few steps.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from dmfnet_jax.diffusion.schedule import make_schedule
from dmfnet_jax.methods.dmfnet import config, features, stages, torch
from dmfnet_jax.methods.dmfnet.networks import build_fusion_head, build_unet
from dmfnet_jax.methods.method import WINDOW, Array, Compute, Config, Images, Method, Params
from dmfnet_jax.nn import layers

# The largest activations (the finest level's) that are held at once: so many per pass that runs,
# and so many for the sums over the timesteps or the head. From compiled programs; a test compares.
_ACTIVATIONS_PER_PASS = 4.5
_ACTIVATIONS_BESIDES = 4.5


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """Noise, the UNet's features and the head; see `Method.fuse`."""
  schedule = make_schedule(**config["features"]["schedule"])
  timesteps = tuple(config["features"]["timesteps"])
  noise = config["features"]["noise"]
  fuse_noised = fuse_noisy(config, compute)

  def apply(params: Params, images: Images, keys: Array) -> Images:
    sources = images["a"], images["b"]
    noisy = features.noise_sources(
      schedule, timesteps, *sources, keys, noise=noise, window=images.get(WINDOW)
    )
    return {"fused": fuse_noised(params, *noisy, sources=sources)}

  return apply


def fuse_noisy(config: Config, compute: Compute) -> Callable[..., Array]:
  """The deterministic part of `fuse`: noised sources [T, B, H, W, 1] twice and levels [T]."""
  unet = build_unet(config["unet"], compute.dtype)
  head = build_fusion_head(
    config["fusion_head"], config["unet"], len(config["features"]["timesteps"]), compute.dtype
  )
  options = {"source": config["features"]["source"], "passes_per_step": compute.parts_per_step}
  return functools.partial(features.fuse_noisy, unet, head, **options, compute=compute)


def after_crop(config: Config) -> Callable[[Images], Images] | None:
  """Levels the pictures where the config says so; see `Method.after_crop`."""
  if not (contrast := config["fusion"]["contrast"]):
    return None
  return lambda outputs: {"fused": layers.level(outputs["fused"], contrast)}


def memory(
  config: Config, size: tuple[int, ...], pairs: int, passes: int, bytes_per_value: int
) -> int:
  """About how much memory the activations take at their peak, in bytes; see `Method.memory`.

  At least what XLA's CPU compiler plans (`Engine.temporary_bytes`), and at most twice that for
  pictures that are not tiny.
  """
  unet = config["unet"]
  pixels = size[0] * size[1]
  activation = pixels * unet["width"] * unet["multipliers"][0] * 4
  positions = pixels // stride(config) ** 2
  attention = 2 * 4 * positions**2 * passes  # scores and weights, float32
  # Norms and sums over timesteps are float32 in every dtype, the rest follows it.
  follows = 0.3 + 0.7 * bytes_per_value / 4
  activations = follows * _ACTIVATIONS_PER_PASS * passes + _ACTIVATIONS_BESIDES
  return int(pairs * (activation * activations + attention))


def stride(config: Mapping[str, Any]) -> int:
  """Sides are multiples of this: the UNet halves them at each level but the first."""
  return 2 ** (len(config["unet"]["multipliers"]) - 1)


METHOD = Method(
  defaults=config.defaults,
  model=("unet", "fusion_head", "features", "fusion", "loss"),
  check=config.check,
  stages={1: stages.denoising, 2: stages.fusion},
  networks=("unet", "fusion_head"),
  fuse=fuse,
  after_crop=after_crop,
  extras={"fuse_noisy": fuse_noisy},
  is_random=True,
  in_tiles="close",
  stride=stride,
  parts=lambda config: 2 * len(config["features"]["timesteps"]),
  memory=memory,
  from_torch=torch.from_torch,
  torch_parts={"unet": "I630000_E14000_gen.pth", "fusion_head": "MIF.pth or IVIF.pth"},
)
