"""DDFM (ICCV 2023, arXiv 2303.06840): fusion by sampling a diffusion prior; nothing is trained.

At every reverse step the luma of the prior's clean estimate is replaced by one EM step, which draws
it to the two sources. Where paper and published program differ, the program counts, and the paper's
form is an option.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.errors import check_choice
from dmfnet_jax.methods.ddfm import em, priors, published
from dmfnet_jax.methods.method import Array, Compute, Config, Images, Method, Params
from dmfnet_jax.nn import layers

LUMA_RANGES = ("video", "full")


def defaults(stage: int) -> dict[str, Any]:
  """The published values; those of the prior come with it."""
  del stage
  return {
    "prior": {},  # kind "guided" (the published UNet, colours) or "unet" (dmfnet's), and its fields
    "schedule": {},  # of the noise that the prior was trained on, see `diffusion.schedule`
    "sampling": {
      "steps": 100,  # passes of the prior
      "eta": 0.0,  # 0: DDIM, which draws the start alone; 1: the paper's ancestral sampling
    },
    "em": {
      "lambda": 0.5,  # of the smoothed difference, with rho
      "rho": 0.001,  # so small that the smoothing moves the result by less than 1e-3
      "rule": "code",  # or "paper": without the bound, and told by the second source
      "first": "b",  # the source that the result is told by: b, or a
      "luma_range": "video",  # of the prior's luma; or "full": black stays black
    },
    "fusion": {"stretch": True},  # each fused picture to its own minimum and maximum
  }


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """Samples the prior, and draws each clean estimate to the sources; see `Method.fuse`."""
  prior = priors.build(config, compute.dtype)
  options, eta = config["em"], config["sampling"]["eta"]
  for field, known in (
    ("rule", em.RULES),
    ("first", ("a", "b")),
    ("luma_range", LUMA_RANGES),
  ):
    check_choice(f"em.{field}", options[field], known)
  signal, spread = np.sqrt(prior.alpha_bar), np.sqrt(1 - prior.alpha_bar)

  def apply(params: Params, images: Images, keys: Array) -> Images:
    first, second = images["a"], images["b"]
    if options["first"] == "b":
      first, second = second, first

    def predict(x: Array, k: Array) -> Array:
      compute.tell(k[0] + 1, len(signal) - 1)
      return prior.predict(params["prior"], x, k)

    def rectify(x_start: Array, state: em.State) -> tuple[Array, em.State]:
      return rectify_luma(x_start, first, second, state, options)

    x = gaussian.normal_per_example(keys, (*first.shape[1:-1], prior.channels))
    state = em.begin(first)
    x, _ = gaussian.ddim_steps(
      predict, x, signal, spread, eta=eta, keys=keys, rectify=rectify, state=state
    )
    return {"fused": priors.luma(x)}

  return apply


def rectify_luma(
  x_start: Array, first: Array, second: Array, state: em.State, options: Config
) -> tuple[Array, em.State]:
  """One EM step on the luma of clean estimates [B, H, W, 1 or 3]; colours stay the prior's."""
  luma = priors.to_range(priors.luma(x_start), options["luma_range"])
  rectified, state, _ = em.step(luma, first, second, state, options)
  return priors.replace_luma(x_start, rectified - luma, options["luma_range"]), state


def after_crop(config: Config) -> Callable[[Images], Images]:
  """Stretches the pictures where the config says so; see `Method.after_crop`."""
  stretch = layers.stretch if config["fusion"]["stretch"] else lambda fused: jnp.clip(fused, -1, 1)
  return lambda outputs: {"fused": stretch(outputs["fused"])}


def stride(config: Config) -> int:
  """The prior halves the sides at each level but the first."""
  return 2 ** (len(config["prior"]["multipliers"]) - 1)


METHOD = Method(
  defaults=defaults,
  model=("prior", "schedule", "sampling", "em", "fusion"),
  networks=("prior",),
  fuse=fuse,
  after_crop=after_crop,
  is_random=True,
  exact_size=True,
  stride=stride,
  from_torch=published.from_torch,
  torch_parts={"prior": "256x256_diffusion_uncond.pt, or a model with a UNet"},
  from_model=published.from_model,
)
