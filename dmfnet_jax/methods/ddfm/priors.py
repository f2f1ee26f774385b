"""The diffusion priors of DDFM: what each predicts, at which steps, and of how many channels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import kept_steps, make_betas
from dmfnet_jax.errors import check_choice
from dmfnet_jax.methods.ddfm.guided import CHANNELS, GuidedUNet
from dmfnet_jax.methods.dmfnet.networks import build_unet
from dmfnet_jax.methods.method import Array, Config

KINDS = ("guided", "unet")

# Of red, green and blue (BT.601).
_LUMA = np.array([65.481, 128.553, 24.966], np.float32) / 219


class Prior(NamedTuple):
  """A prior along the steps of a reverse process.

  Attributes:
    channels: of its pictures.
    network: the Flax module.
    alpha_bar: float64 [N + 1], of the steps from noise to picture, 1 at the end.
    conditions: float32 [N], what the network is told of each step.
    predict: the network's parameters, pictures [B, H, W, channels], the step's number [B] to clean
      pictures.
  """

  channels: int
  network: Any
  alpha_bar: np.ndarray
  conditions: np.ndarray
  predict: Callable[[Any, Array, Array], Array]


def build(config: Config, dtype: Any = "float32") -> Prior:
  """The prior that a config's `prior`, `schedule` and `sampling` describe.

  Raises:
    UserError: an unknown kind, or more steps than the schedule has.
  """
  network = {k: tuple(v) if isinstance(v, list) else v for k, v in config["prior"].items()}
  kind = network.pop("kind", None)
  check_choice("prior.kind", kind, KINDS)
  all_alpha_bar = np.cumprod(1 - make_betas(**config["schedule"]))
  kept = kept_steps(len(all_alpha_bar), config["sampling"]["steps"])[::-1]
  alpha_bar = np.append(all_alpha_bar[kept], 1.0)
  if kind == "guided":
    return _guided(GuidedUNet(**network, dtype=dtype), alpha_bar, kept)
  unet = build_unet(network, dtype)
  levels = np.sqrt(alpha_bar[:-1]).astype(np.float32)

  def predict(params: Any, x: Array, k: Array) -> Array:
    return unet.apply({"params": params}, x, jnp.asarray(levels)[k])[0]

  return Prior(1, unet, alpha_bar, levels, predict)


def _guided(network: GuidedUNet, alpha_bar: np.ndarray, kept: np.ndarray) -> Prior:
  timesteps = kept.astype(np.float32)
  # The network predicts the noise; its variance is of no use to DDIM.
  clean = gaussian.clean_from_noise(alpha_bar[:-1])

  def predict(params: Any, x: Array, k: Array) -> Array:
    noise = network.apply({"params": params}, x, jnp.asarray(timesteps)[k])[..., :CHANNELS]
    return clean(x, noise, k)

  return Prior(CHANNELS, network, alpha_bar, timesteps, predict)


def luma(pictures: Array) -> Array:
  """[B, H, W, 3 or 1] to [B, H, W, 1], of the same range."""
  if pictures.shape[-1] == 1:
    return pictures
  return jnp.sum(pictures * jnp.asarray(_LUMA)[None, None, None], axis=-1, keepdims=True)


def to_range(y: Array, luma_range: str) -> Array:
  """The luma as the EM step sees it.

  "video" is the published program's, which takes [-1, 1] for [0, 1]: (16 + 219 y) / 255. "full"
  is y itself.
  """
  return (16 + 219 * y) / 255 if luma_range == "video" else y


def replace_luma(pictures: Array, difference: Array, luma_range: str) -> Array:
  """Adds to the luma of pictures [B, H, W, 3 or 1]; what they have of colour stays.

  The difference [B, H, W, 1] is one of `to_range`'s values. Cb and Cr add the same to red, green
  and blue whatever Y is, so nothing else is needed of the way to Y'CbCr and back.
  """
  return pictures + difference * (255 / 219 if luma_range == "video" else 1.0)
