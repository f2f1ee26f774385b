"""Noise schedules (SPEC, Noise schedule). Computed in float64, used in float32."""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dmfnet_jax.errors import UserError

Array = jax.Array


def _warmup(num_timesteps: int, start: float, end: float, fraction: float) -> np.ndarray:
  steps = int(num_timesteps * fraction)
  return np.append(np.linspace(start, end, steps), np.full(num_timesteps - steps, end))


def _cosine(num_timesteps: int, offset: float = 8e-3, max_beta: float = 0.999) -> np.ndarray:
  """Nichol & Dhariwal 2021 (arXiv 2102.09672), equation 17."""
  time = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
  alpha_bar = np.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
  return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


BETA_SCHEDULES = {
  "linear": lambda t, start, end: np.linspace(start, end, t, dtype=np.float64),
  "quad": lambda t, start, end: np.linspace(start**0.5, end**0.5, t, dtype=np.float64) ** 2,
  "const": lambda t, start, end: np.full(t, end, np.float64),
  "jsd": lambda t, start, end: 1.0 / np.linspace(t, 1, t, dtype=np.float64),
  "warmup10": lambda t, start, end: _warmup(t, start, end, 0.1),
  "warmup50": lambda t, start, end: _warmup(t, start, end, 0.5),
  "cosine": lambda t, start, end: _cosine(t),
}


def make_betas(
  name: str, num_timesteps: int = 2000, start: float = 1e-6, end: float = 1e-2
) -> np.ndarray:
  """Returns the betas [T] (float64, in (0, 1]) of a named schedule.

  Args:
    name: a key of `BETA_SCHEDULES`.
    num_timesteps: T.
    start: first beta of linear, quad and the warm-ups.
    end: last beta of linear, quad and the warm-ups, and the constant of const.

  Raises:
    ValueError: an unknown name.
  """
  if name not in BETA_SCHEDULES:
    raise ValueError(f"unknown beta schedule {name!r}; known: {', '.join(BETA_SCHEDULES)}")
  return BETA_SCHEDULES[name](num_timesteps, start, end)


class NoiseSchedule(flax.struct.PyTreeNode):
  """What the diffusion process needs of its betas; a pytree of float32 arrays.

  Attributes:
    betas: [T].
    alpha_bar: [T] cumulated products of 1 - beta.
    noise_levels: [T + 1] G = [1, sqrt(alpha_bar_1), ..., sqrt(alpha_bar_T)].
    posterior_mean_x_start: [T] weight of x_start in the mean of q(x_{i-1} | x_i, x_start).
    posterior_mean_x_t: [T] weight of x_i in it.
    posterior_log_variance: [T] its log-variance, clipped at log(1e-20).
  """

  betas: Array
  alpha_bar: Array
  noise_levels: Array
  posterior_mean_x_start: Array
  posterior_mean_x_t: Array
  posterior_log_variance: Array

  @property
  def num_timesteps(self) -> int:
    """T."""
    return self.betas.shape[0]


def make_schedule(
  name: str, num_timesteps: int = 2000, start: float = 1e-6, end: float = 1e-2
) -> NoiseSchedule:
  """Builds a `NoiseSchedule`; arguments and errors as for `make_betas`."""
  betas = make_betas(name, num_timesteps, start, end)
  alpha_bar = np.cumprod(1 - betas)
  alpha_bar_previous = np.append(1.0, alpha_bar[:-1])
  # Ho et al. 2020 (arXiv 2006.11239), equation 7.
  variance = betas * (1 - alpha_bar_previous) / (1 - alpha_bar)
  arrays = {
    "betas": betas,
    "alpha_bar": alpha_bar,
    "noise_levels": np.sqrt(np.append(1.0, alpha_bar)),
    "posterior_mean_x_start": betas * np.sqrt(alpha_bar_previous) / (1 - alpha_bar),
    "posterior_mean_x_t": (1 - alpha_bar_previous) * np.sqrt(1 - betas) / (1 - alpha_bar),
    "posterior_log_variance": np.log(np.maximum(variance, 1e-20)),
  }
  return NoiseSchedule(**{k: jnp.asarray(v, jnp.float32) for k, v in arrays.items()})


def kept_steps(num_timesteps: int, num_steps: int) -> np.ndarray:
  """So many of the steps 0 .. T - 1 at equal distances, both ends included, ascending.

  Raises:
    UserError: none, or more than there are.
  """
  if not 1 <= num_steps <= num_timesteps:
    raise UserError(f"config.sampling.steps={num_steps} must be in 1..{num_timesteps}")
  distance = (num_timesteps - 1) / max(num_steps - 1, 1)
  # Half to even, as Python's `round`.
  return np.rint(np.arange(num_steps) * distance).astype(int)


def sample_noise_level(schedule: NoiseSchedule, key: Array, t: Array) -> Array:
  """Draws continuous noise levels of steps t in 1..T, uniform between G[t] and G[t - 1].

  They are float32, of t's shape, which may be any.
  """
  low, high = schedule.noise_levels[t], schedule.noise_levels[t - 1]
  return jax.random.uniform(key, jnp.shape(t), minval=low, maxval=high)
