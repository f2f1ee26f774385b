"""Gaussian diffusion with a continuous noise level (SPEC, Noise schedule).

Images are [B, H, W, 1] float32 in [-1, 1]. A `denoise_fn(x_t, noise_level)` takes such images and
noise levels [B] = sqrt(alpha_bar), and predicts the clean images x_start. Keys are [B]: one an
example, so that a sample does not depend on the batch in which it is drawn.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmfnet_jax.diffusion.schedule import NoiseSchedule

Array = jax.Array
DenoiseFn = Callable[[Array, Array], Array]


def make_key(seed: Array | int) -> Array:
  """A PRNG key of JAX's threefry, whatever the process's default generator is.

  The others draw otherwise for many examples at once than for each alone.
  """
  return jax.random.key(seed, impl="threefry2x32")


def normal_per_example(keys: Array, shape: tuple[int, ...]) -> Array:
  """Draws standard normal noise [B, *shape], example by example from `keys` [B]."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def q_sample(x_start: Array, noise_level: Array, noise: Array) -> Array:
  """Noises clean images: x_noisy = g x_start + sqrt(1 - g^2) noise.

  Args:
    x_start: [..., H, W, C] clean images.
    noise_level: g, of the leading shape [...].
    noise: standard normal noise of x_start's shape.
  """
  g = jnp.reshape(noise_level, (*jnp.shape(noise_level), 1, 1, 1))
  return g * x_start + jnp.sqrt(1 - g**2) * noise


def q_posterior(
  schedule: NoiseSchedule, x_start: Array, x_t: Array, i: Array | int
) -> tuple[Array, Array]:
  """Mean and log-variance of q(x_{i-1} | x_i, x_start) at the 0-based step i in 0..T-1."""
  mean = schedule.posterior_mean_x_start[i] * x_start + schedule.posterior_mean_x_t[i] * x_t
  return mean, schedule.posterior_log_variance[i]


def p_mean_log_variance(
  schedule: NoiseSchedule, denoise_fn: DenoiseFn, x_t: Array, i: Array | int
) -> tuple[Array, Array]:
  """Mean and log-variance of the model's reverse step at the 0-based step i.

  The model is conditioned on G[i + 1]; its x_start is clipped to [-1, 1].
  """
  noise_level = jnp.full(x_t.shape[:1], schedule.noise_levels[i + 1])
  x_start = jnp.clip(denoise_fn(x_t, noise_level), -1, 1)
  return q_posterior(schedule, x_start, x_t, i)


def clean_from_noise(alpha_bar: np.ndarray) -> Callable[[Array, Array, Array], Array]:
  """Returns (x_t, predicted noise, k [B]) -> x_start, of steps with these `alpha_bar`.

  The roots come from float64: near 1, float32 would leave few digits of 1 / alpha_bar - 1.
  """
  of_x, of_noise = (
    np.float32(value) for value in (np.sqrt(1 / alpha_bar), np.sqrt(1 / alpha_bar - 1))
  )

  def clean(x_t: Array, noise: Array, k: Array) -> Array:
    a, b = (jnp.asarray(table)[k][:, None, None, None] for table in (of_x, of_noise))
    return a * x_t - b * noise

  return clean


def ancestral_sample(
  schedule: NoiseSchedule,
  denoise_fn: DenoiseFn,
  x_t: Array,
  keys: Array,
  *,
  first_step: int | None = None,
) -> Array:
  """Ancestral sampling from x_t at the 0-based step `first_step` (default T-1) down to x_0.

  Args:
    schedule: the noise schedule that the model was trained on.
    denoise_fn: predicts x_start.
    x_t: [B, H, W, 1] noise, or images noised to `first_step`.
    keys: [B] PRNG keys.
    first_step: where to begin, in 0..T-1.
  """
  start = schedule.num_timesteps - 1 if first_step is None else first_step

  def step(k: Array, x: Array) -> Array:
    i = start - k
    mean, log_variance = p_mean_log_variance(schedule, denoise_fn, x, i)
    noise = normal_per_example(jax.vmap(jax.random.fold_in, (0, None))(keys, i), x.shape[1:])
    return mean + jnp.where(i > 0, jnp.exp(0.5 * log_variance), 0.0) * noise

  return jax.lax.fori_loop(0, start + 1, step, x_t)


def ddim_sample(
  schedule: NoiseSchedule,
  denoise_fn: DenoiseFn,
  x_t: Array,
  *,
  num_steps: int,
  first_step: int | None = None,
) -> Array:
  """Deterministic DDIM sampling (Song et al. 2021, arXiv 2010.02502, eta = 0).

  Takes what `ancestral_sample` takes but keys, and `num_steps` model evaluations, in
  1..first_step + 1, that are spread evenly over 0..first_step.

  Raises:
    ValueError: more evaluations than steps.
  """
  start = schedule.num_timesteps - 1 if first_step is None else first_step
  if not 1 <= num_steps <= start + 1:
    raise ValueError(f"num_steps must be in 1..{start + 1}, got {num_steps}")
  # Indices into noise_levels, from x_t's down to 0, where the noise level is 1 (no noise).
  times = jnp.asarray(np.round(np.linspace(start + 1, 0, num_steps + 1)).astype(np.int32))
  levels = schedule.noise_levels[times]

  def predict(x: Array, k: Array) -> Array:
    return denoise_fn(x, levels[k])

  return ddim_steps(predict, x_t, levels, jnp.sqrt(1 - levels**2))[0]


def ddim_steps(
  predict: Callable[[Array, Array], Array],
  x_t: Array,
  signal: Any,
  spread: Any,
  *,
  eta: float = 0.0,
  keys: Any = None,
  rectify: Callable[[Array, Any], tuple[Array, Any]] = lambda x_start, state: (x_start, state),
  state: Any = None,
) -> tuple[Array, Any]:
  """DDIM along any steps, with a hook that corrects the predicted clean images.

  Args:
    predict: images x_t and the step's number k [B] to clean images, which are clipped to [-1, 1].
    x_t: [B, H, W, C].
    signal: [N + 1] sqrt(alpha_bar) of x_t, and after each of the N steps.
    spread: [N + 1] sqrt(1 - alpha_bar); of its own, as it is small where the signal is near 1.
    eta: 0 draws nothing, 1 is ancestral sampling (Song et al. 2021, equation 16).
    keys: [B] PRNG keys, where eta is not 0; folded with the step's number.
    rectify: clean images and a state to other clean images, which the step goes on with, and the
      next state.
    state: before the first step.

  Returns:
    The images after the last step, and the last state.
  """
  ratio = signal[:-1] / signal[1:]
  sigma = eta * spread[1:] / spread[:-1] * (1 - ratio**2) ** 0.5
  along = (spread[1:] ** 2 - sigma**2) ** 0.5
  signal, spread, sigma, along = (
    jnp.asarray(table, jnp.float32) for table in (signal, spread, sigma, along)
  )

  def step(k: Array, carried: tuple[Array, Any]) -> tuple[Array, Any]:
    x, state = carried
    x_start = jnp.clip(predict(x, jnp.full(x.shape[:1], k)), -1, 1)
    x_start, state = rectify(x_start, state)
    noise = (x - signal[k] * x_start) / spread[k]
    x = signal[k + 1] * x_start + along[k] * noise
    if eta:
      drawn = normal_per_example(jax.vmap(jax.random.fold_in, (0, None))(keys, k), x.shape[1:])
      x = x + sigma[k] * drawn
    return x, state

  return jax.lax.fori_loop(0, len(signal) - 1, step, (x_t, state))
