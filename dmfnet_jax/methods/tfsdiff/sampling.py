"""Draws fused pictures from noise, under the condition of the sources."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import kept_steps, make_betas
from dmfnet_jax.methods.method import Array, Config
from dmfnet_jax.methods.tfsdiff.networks import COLOURS, build

Tell = Callable[[Array, int], None]


def make_sampler(config: Config, dtype: Any = "float32") -> Callable[..., Array]:
  """Returns `sample(params, condition, keys, tell) -> pictures`.

  With all steps and an `eta` of 1 this is the published ancestral sampling; otherwise DDIM, or
  something between, along steps at equal distances.

  Args:
    config: a model config: `unet`, `schedule` and `sampling`.
    dtype: compute dtype.

  Returns:
    A function of the network's parameters, the condition [B, H, W, 9], keys [B], and whom to tell
    how many of how many steps are done. It gives [B, H, W, 3] in [-1, 1].

  Raises:
    UserError: no steps, or more than the schedule has.
  """
  network, options = build(config["unet"], dtype), config["sampling"]
  alpha_bar = np.cumprod(1 - make_betas(**config["schedule"]))
  kept = kept_steps(len(alpha_bar), options["steps"])[::-1]
  alpha_bar = np.append(alpha_bar[kept], 1.0)
  signal, spread = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
  levels = signal[:-1].astype(np.float32)
  clean = gaussian.clean_from_noise(alpha_bar[:-1])

  def sample(params: Any, condition: Array, keys: Array, tell: Tell = lambda k, n: None) -> Array:
    def predict(x: Array, k: Array) -> Array:
      tell(k[0] + 1, len(levels))
      noise = network.apply({"params": params}, condition, x, jnp.asarray(levels)[k])
      return clean(x, noise, k)

    x = gaussian.normal_per_example(keys, (*condition.shape[1:-1], COLOURS))
    x, _ = gaussian.ddim_steps(predict, x, signal, spread, eta=options["eta"], keys=keys)
    return jnp.clip(x, -1, 1)

  return sample
