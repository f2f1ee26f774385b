"""Schedules and reverse steps are the published program's."""

import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import TOLERANCE, nchw, nhwc, relative_error

from dmfnet_jax.diffusion import gaussian, schedule
from dmfnet_jax.methods.dmfnet.unet import UNet

SCHEDULES = ("linear", "quad", "const", "jsd", "warmup10", "warmup50", "cosine")


@pytest.fixture(scope="module")
def sampler():
  return golden_weights.load("sampler")


@pytest.mark.parametrize("num_timesteps", [2000, 100])
@pytest.mark.parametrize("name", SCHEDULES)
def test_betas_meet_golden(name, num_timesteps):
  betas = schedule.make_betas(name, num_timesteps)
  assert betas.dtype == np.float64
  expected = golden_weights.load("schedules")[f"{name}_{num_timesteps}"]
  # The cosine's small betas are what is left of 1 - 0.99998: 11 digits.
  np.testing.assert_allclose(betas, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_levels_follow_from_golden_betas(name):
  betas = golden_weights.load("schedules")[f"{name}_2000"]
  expected = np.sqrt(np.append(1.0, np.cumprod(1 - betas)))
  levels = schedule.make_schedule(name, 2000).noise_levels
  assert levels.dtype == jnp.float32
  np.testing.assert_allclose(levels, expected.astype(np.float32), rtol=1e-7)


@pytest.mark.parametrize("step", [0, 5, 1000, 1999])
def test_posterior_meets_golden(sampler, step):
  linear = schedule.make_schedule("linear", 2000)
  mean, log_variance = gaussian.q_posterior(linear, nhwc(sampler["x0"]), nhwc(sampler["x_t"]), step)
  assert relative_error(nchw(mean), sampler[f"posterior_mean_{step}"]) < TOLERANCE
  expected = sampler[f"posterior_log_variance_{step}"]
  assert relative_error(np.reshape(log_variance, 1), expected) < 1e-6


@pytest.fixture(scope="module")
def reverse_step():
  unet = UNet()

  def denoise(params, x_t, noise_level):
    return unet.apply({"params": params}, x_t, noise_level)[0]

  @jax.jit
  def step(params, x_t, i):
    linear = schedule.make_schedule("linear", 2000)
    return gaussian.p_mean_log_variance(linear, functools.partial(denoise, params), x_t, i)

  return functools.partial(step, golden_weights.reference_params()["unet"])


@pytest.mark.parametrize("i", [5, 1000])
def test_reverse_step_meets_golden(sampler, reverse_step, i):
  mean, log_variance = reverse_step(nhwc(sampler["x_t"]), i)
  assert relative_error(nchw(mean), sampler[f"p_mean_{i}"]) < TOLERANCE
  expected = sampler[f"posterior_log_variance_{i}"]
  assert relative_error(np.reshape(log_variance, 1), expected) < 1e-6


@pytest.mark.parametrize("timestep", [5, 10, 20])
@pytest.mark.parametrize("source", ["mri", "other"])
def test_noised_images_meet_golden(source, timestep):
  golden = golden_weights.load("fusion")
  noisy = gaussian.q_sample(
    nhwc(golden[source]),
    golden[f"noise_level_{timestep}"].reshape(1),
    nhwc(golden[f"noise_{source}_{timestep}"]),
  )
  assert relative_error(nchw(noisy), golden[f"noisy_{source}_{timestep}"]) < 1e-6


@pytest.mark.parametrize("timestep", [5, 10, 20])
def test_golden_noise_levels_lie_in_the_steps_of_the_linear_schedule(timestep):
  """The fusion's step t is G[t]..G[t - 1] of the *linear* schedule; the cosine's lies elsewhere."""
  level = float(golden_weights.load("fusion")[f"noise_level_{timestep}"])

  def within(name):
    levels = schedule.make_schedule(name, 2000).noise_levels
    return levels[timestep] <= level <= levels[timestep - 1]

  assert within("linear")
  assert not within("cosine")


@pytest.mark.parametrize("name", ["cosine", "quad", "jsd"])
def test_posterior_of_other_schedules_meets_torch(name):
  torch = pytest.importorskip("torch")
  import torch_reference

  rng = np.random.default_rng(0)
  x_start, x_t = rng.standard_normal((2, 1, 1, 8, 8)).astype(np.float32)
  betas = torch.from_numpy(golden_weights.load("schedules")[f"{name}_100"])
  ours = schedule.make_schedule(name, 100)
  for step in range(100):
    mean, log_variance = gaussian.q_posterior(ours, x_start, x_t, step)
    expected, expected_log_variance = torch_reference.posterior(
      betas, torch.from_numpy(x_start), torch.from_numpy(x_t), step
    )
    assert relative_error(mean, expected) < 1e-6
    assert abs(log_variance - float(expected_log_variance)) < 1e-5
