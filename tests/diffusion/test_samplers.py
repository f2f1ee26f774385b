"""The diffusion process: noising, the posterior, both samplers on problems with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import make_betas, make_schedule, sample_noise_level

SCHEDULE = make_schedule("cosine", 60)


def keys(count, seed=0):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_noise_has_the_moments_of_the_noise_level():
  x_start = np.full((3, 100, 100, 1), 0.5, np.float32)
  levels = np.array([0.99, 0.6, 0.1], np.float32)
  x_noisy = gaussian.q_sample(x_start, levels, draw(*x_start.shape))
  # Of 10,000 values: the mean's standard deviation is at most 0.01, the deviation's 0.007.
  np.testing.assert_allclose(x_noisy.mean((1, 2, 3)), 0.5 * levels, atol=0.04)
  np.testing.assert_allclose(x_noisy.std((1, 2, 3)), np.sqrt(1 - levels**2), atol=0.03)


def test_the_ends_of_noise():
  x_start, noise = draw(2, 4, 4, 1), draw(2, 4, 4, 1, seed=1)
  np.testing.assert_array_equal(gaussian.q_sample(x_start, np.ones(2, np.float32), noise), x_start)
  np.testing.assert_array_equal(gaussian.q_sample(x_start, np.zeros(2, np.float32), noise), noise)


def test_each_image_has_its_own_noise_level():
  x_start, noise = draw(2, 4, 4, 1), draw(2, 4, 4, 1, seed=1)
  both = gaussian.q_sample(x_start, np.array([1, 0], np.float32), noise)
  np.testing.assert_array_equal(both, np.stack([x_start[0], noise[1]]))


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_noise_level_of_a_step_lies_between_its_ends(name):
  """Uniform in G[t]..G[t - 1]; the first step reaches up to no noise at all."""
  schedule = make_schedule(name, 60)
  g = np.asarray(schedule.noise_levels)
  assert g[0] == 1
  assert (np.diff(g) < 0).all()
  steps = np.arange(1, 61)
  levels = np.asarray(jax.vmap(sample_noise_level, (None, 0, None))(schedule, keys(1000), steps))
  assert (levels >= g[steps]).all()
  assert (levels <= g[steps - 1]).all()
  share = (levels - g[steps]) / (g[steps - 1] - g[steps])
  np.testing.assert_allclose(share.mean(0), 0.5, atol=0.06)  # standard deviation 0.009
  np.testing.assert_allclose(share.std(0), np.sqrt(1 / 12), atol=0.04)


@pytest.mark.parametrize("name", ["cosine", "linear", "quad", "jsd"])
def test_posterior_is_bayes_rule(name):
  """The product of N(x_{i-1}; sqrt(abar') x0, 1 - abar') and N(x_i; sqrt(alpha) x_{i-1}, beta)."""
  betas = make_betas(name, 60)
  schedule = make_schedule(name, 60)
  x_start, x_t = draw(2, 1, 4, 4, 1)
  alpha_bar = np.cumprod(1 - betas)
  for i in range(1, 60):
    prior_mean, prior_variance = np.sqrt(alpha_bar[i - 1]) * x_start, 1 - alpha_bar[i - 1]
    variance = 1 / (1 / prior_variance + (1 - betas[i]) / betas[i])
    expected = variance * (prior_mean / prior_variance + np.sqrt(1 - betas[i]) / betas[i] * x_t)
    mean, log_variance = gaussian.q_posterior(schedule, x_start, x_t, i)
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-5)
    # jsd ends in beta = 1, where nothing of x_t is left and the variance is the prior's.
    np.testing.assert_allclose(log_variance, np.log(max(variance, 1e-20)), rtol=1e-5, atol=1e-5)


def test_posterior_of_the_first_step_is_the_clean_image():
  x_start, x_t = draw(2, 1, 4, 4, 1)
  mean, log_variance = gaussian.q_posterior(SCHEDULE, x_start, x_t, 0)
  np.testing.assert_allclose(mean, x_start, rtol=1e-6)
  np.testing.assert_allclose(log_variance, np.log(1e-20), rtol=1e-6)


def ancestral(denoise_fn, x_t, *, schedule=SCHEDULE, first_step=None):
  return gaussian.ancestral_sample(schedule, denoise_fn, x_t, keys(len(x_t)), first_step=first_step)


def ddim(denoise_fn, x_t, *, schedule=SCHEDULE, first_step=None):
  steps = schedule.num_timesteps if first_step is None else first_step + 1
  return gaussian.ddim_sample(
    schedule, denoise_fn, x_t, num_steps=-(-steps // 3), first_step=first_step
  )


both_samplers = pytest.mark.parametrize("sample", [ancestral, ddim])


@pytest.mark.parametrize("first_step", [None, 0, 17])
@both_samplers
def test_an_oracle_is_believed(sample, first_step):
  """From any step the clean image that the denoiser knows comes out, without a rest of noise."""
  x_start = np.tanh(draw(2, 4, 4, 1))
  x_t = draw(2, 4, 4, 1, seed=1)
  result = sample(lambda x, level: x_start, x_t, first_step=first_step)
  np.testing.assert_allclose(result, x_start, atol=1e-6)


@both_samplers
def test_prediction_is_clipped(sample):
  result = sample(lambda x, level: jnp.full_like(x, 3.0), draw(1, 4, 4, 1))
  np.testing.assert_allclose(result, 1.0, atol=1e-6)


@pytest.mark.parametrize("num_steps", [0, 12])
def test_more_evaluations_than_steps_are_refused(num_steps):
  x_t = draw(1, 4, 4, 1)
  with pytest.raises(ValueError, match=r"num_steps must be in 1\.\.11"):
    gaussian.ddim_sample(SCHEDULE, lambda x, level: x, x_t, num_steps=num_steps, first_step=10)


@both_samplers
def test_gaussian_data_are_sampled(sample):
  """For N(m, s^2) pixels the best denoiser is known; its samples must have that mean and s."""
  m, s = 0.3, 0.1

  def best_denoiser(x_t, level):
    g = level[:, None, None, None]
    return m + g * s**2 / (g**2 * s**2 + 1 - g**2) * (x_t - g * m)

  x_t = draw(4, 50, 50, 1, seed=2)
  fine = make_schedule("cosine", 1000)
  result = jax.jit(lambda x: sample(best_denoiser, x, schedule=fine))(x_t)
  np.testing.assert_allclose(result.mean(), m, atol=0.01)  # 10,000 values
  np.testing.assert_allclose(result.std(), s, rtol=0.05)  # finite steps lose 3 % of it


def levels_told(sample, first_step):
  """The noise levels at which a sampler calls its model."""
  told = []

  def record(x_t, level):
    jax.debug.callback(lambda level: told.append(level), level, ordered=True)
    return x_t

  sample(record, draw(2, 4, 4, 1), first_step=first_step)
  jax.effects_barrier()
  return np.array(told)


def test_the_model_is_told_the_noise_level_of_its_input():
  """At the 0-based step i that is G[i + 1]; DDIM's twelve of 36 steps are every third."""
  g = np.asarray(SCHEDULE.noise_levels)
  for sample, expected in ((ancestral, g[36:0:-1]), (ddim, g[36:0:-3])):
    told = levels_told(sample, 35)
    assert told.shape == (len(expected), 2)
    np.testing.assert_array_equal(told[:, 0], expected)
    np.testing.assert_array_equal(told[:, 1], expected)


def test_ddim_keeps_a_trajectory_without_noise():
  """Where x_t = g x_start and the model divides by g, every step stays on that line."""
  x_start = 0.9 * np.tanh(draw(1, 4, 4, 1))

  def divide(x_t, level):
    return x_t / level[:, None, None, None]

  result = ddim(divide, SCHEDULE.noise_levels[31] * x_start, first_step=30)
  np.testing.assert_allclose(result, x_start, atol=1e-5)


def test_last_ancestral_step_adds_no_noise():
  x_t = draw(2, 4, 4, 1)

  def halve(x_t, level):
    return jnp.clip(x_t, -1, 1) / 2

  first, second = (
    gaussian.ancestral_sample(SCHEDULE, halve, x_t, keys(2, seed), first_step=0) for seed in (0, 1)
  )
  np.testing.assert_array_equal(first, second)
  earlier, later = (
    gaussian.ancestral_sample(SCHEDULE, halve, x_t, keys(2, seed), first_step=1) for seed in (0, 1)
  )
  assert (earlier != later).any(axis=(1, 2, 3)).all()


def test_a_sample_does_not_depend_on_its_batch():
  def shrink(x_t, level):
    return 0.5 * x_t

  x_t = draw(3, 4, 4, 1)
  together = gaussian.ancestral_sample(SCHEDULE, shrink, x_t, keys(3))
  alone = gaussian.ancestral_sample(SCHEDULE, shrink, x_t[2:], keys(3)[2:])
  np.testing.assert_array_equal(alone[0], together[2])
  same_start = gaussian.ancestral_sample(SCHEDULE, shrink, np.stack([x_t[0]] * 2), keys(2))
  assert (same_start[0] != same_start[1]).any()
