"""The wavelet autoencoder, for which no other program has numbers: what must hold of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dmfnet_jax import losses
from dmfnet_jax.configs import waveae as recipe
from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.method import Context
from dmfnet_jax.methods.waveae import METHOD, check, stages
from dmfnet_jax.methods.waveae.networks import AttentionPool
from dmfnet_jax.training.state import Optimizers


def smooth(rng, count, size):
  x = ndimage.gaussian_filter(rng.standard_normal((count, size, size, 1)), (0, 2, 2, 0))
  return (x / np.abs(x).max()).astype(np.float32)


def test_without_attention_the_smooth_band_is_mean_pooling():
  """Where the mixture takes half of LL and nothing else."""
  x = np.random.default_rng(0).standard_normal((2, 6, 8, 5)).astype(np.float32)
  pool = AttentionPool(attention=False)
  params = pool.init(jax.random.key(0), x)["params"]["mix"]
  kernel = np.zeros(params["kernel"].shape, np.float32)
  kernel[0, 0, :5] = np.eye(5) / 2
  params = {"mix": {"kernel": kernel, "bias": np.zeros(5, np.float32)}}
  expected = x.reshape(2, 3, 2, 4, 2, 5).mean((2, 4))
  np.testing.assert_allclose(pool.apply({"params": params}, x), expected, atol=1e-6)


@pytest.mark.parametrize("pool", ["LL", "mean", "max"])
def test_other_pools_have_the_same_shape(pool):
  x = jax.ShapeDtypeStruct((2, 6, 8, 16), jnp.float32)
  made = lambda x: AttentionPool(pool).init_with_output(jax.random.key(0), x)  # noqa: E731
  pooled, variables = jax.eval_shape(made, x)
  assert pooled.shape == (2, 3, 4, 16)
  assert variables["params"]["mix"]["kernel"].shape == (1, 1, 16, 16)


def test_edges_of_the_stronger_source_cost_nothing():
  a, b = (smooth(np.random.default_rng(i), 2, 16) for i in (0, 1))
  np.testing.assert_allclose(stages.edge_loss(a, a, 0.5 * a), 0, atol=1e-7)
  assert (np.asarray(stages.edge_loss(b, a, 0.5 * a)) > 0.01).all()
  assert (np.asarray(stages.edge_loss(-a, a, 0.5 * a)) > 0.01).all()  # the sign counts


def test_a_rebuilt_picture_that_is_the_picture_costs_nothing():
  a = smooth(np.random.default_rng(0), 2, 16)
  for term in stages.rebuilding_loss(a, a):
    np.testing.assert_allclose(term, 0, atol=1e-6)
  assert all((np.asarray(term) > 0.01).all() for term in stages.rebuilding_loss(a, -a))


def test_a_short_run_beats_the_mean_of_the_pair():
  config = recipe.get_config("size=tiny")
  config.network.update(growth=4, convs=1, levels=1)
  stage = METHOD.stages[1](config)
  rng = np.random.default_rng(0)
  batch = {"a": smooth(rng, 2, 16), "b": smooth(rng, 2, 16)}
  context = Context(jax.random.split(jax.random.key(0), 2), True, jnp.float32(0))
  (update,) = stage.updates
  config.optimizer.update(learning_rate=1e-2, decay="constant", warmup_steps=0)
  optimizers = Optimizers(config, update.networks)

  def loss(params):
    return jnp.mean(update.loss(params, batch, context).value)

  @jax.jit
  def run(params):
    def step(carry, _):
      params, state = carry
      value, gradient = jax.value_and_grad(loss)(params)
      return optimizers.update(gradient, state, params), value

    _, values = jax.lax.scan(step, (params, optimizers.init(params)), length=100)
    return values

  values = run(stage.init(jax.random.key(0)))
  mean = (batch["a"] + batch["b"]) / 2
  of_mean = jnp.mean(losses.fusion_loss(mean, batch["a"], batch["b"])[0])
  assert values[-1] < 0.9 * of_mean < values[0]


def test_rebuilding_is_judged_by_each_source():
  config = recipe.get_config("size=tiny")
  config.loss.objective = "rebuild"
  stage = METHOD.stages[1](config)
  params = jax.eval_shape(stage.init, jax.random.key(0))
  picture = jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32)
  loss = jax.eval_shape(
    lambda params, batch: stage.updates[0].loss(params, batch, None),
    params,
    {"a": picture, "b": picture},
  )
  assert sorted(loss.terms) == ["dssim_a", "dssim_b", "mse_a", "mse_b"]
  assert loss.value.shape == (2,)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"crop_size": 24}, "crop_size=24 must be a multiple of 16"),
    ({"network": {"pool": "median"}}, "network.pool is one of"),
    ({"network": {"levels": 0}}, "network.levels=0 must be at least 1"),
    ({"loss": {"objective": "both"}}, "loss.objective is one of"),
  ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
  config = recipe.get_config("size=tiny")
  config.update(changes)
  with pytest.raises(UserError, match=message):
    check(config)
