"""One step: whose randomness it uses, what it averages, clips and reports."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from dmfnet_jax.diffusion.schedule import make_schedule
from dmfnet_jax.training import stages, steps
from dmfnet_jax.training.state import create_train_state, make_optimizer


def make_batch(count, size=16, seed=0):
  a, b = np.random.default_rng(seed).uniform(-1, 1, (2, count, size, size, 1)).astype(np.float32)
  return {"a": a, "b": b, "index": np.arange(count, dtype=np.int32)}


def run_toy(num_steps, *, seed=0, ema_decay=0.0, clip_norm=0.0, learning_rate=0.01):
  """Trains the toy on one device; returns the states (the first included) and the metrics."""
  config = tiny.config(2, optimizer__clip_norm=clip_norm).optimizer
  schedule = optax.linear_schedule(learning_rate, 0.0, 10)
  optimizer = make_optimizer(config, schedule)
  step = jax.pmap(
    steps.make_train_step(tiny.toy_loss, optimizer, schedule, seed=seed, ema_decay=ema_decay),
    axis_name=steps.AXIS,
  )
  state = create_train_state(tiny.TOY_PARAMS, optimizer, ema=ema_decay > 0)
  state = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
  states, metrics = [state], []
  for i in range(num_steps):
    batch = jax.tree.map(lambda x: x[None], make_batch(4, seed=i))
    state, metric = step(state, batch)
    states.append(state)
    metrics.append(metric)
  return [jax.tree.map(lambda x: np.asarray(x[0]), tree) for tree in (states, metrics)]


def test_moving_average_is_the_hand_computed_one():
  states, _ = run_toy(3, ema_decay=0.9)
  average = jax.tree.map(np.float64, states[0].params)
  for state in states[1:]:
    average = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, average, state.params)
    jax.tree.map(
      lambda computed, expected: np.testing.assert_allclose(computed, expected, rtol=1e-6),
      state.ema_params,
      average,
    )
  assert abs(states[-1].params["c"] - states[-1].ema_params["c"]) > 1e-3  # it lags behind


def test_step_reports_its_means():
  states, metrics = run_toy(2)
  keys = steps.example_keys(0, 1, np.arange(4))
  loss, grads = jax.value_and_grad(
    lambda p: tiny.toy_loss(p, None, make_batch(4, seed=1), keys, True)[0].mean()
  )(states[1].params)
  expected = {
    "loss": loss,
    "twice": 2 * loss,
    "grad_norm": optax.global_norm(grads),
    "learning_rate": 0.009,
  }
  assert metrics[1] == pytest.approx(jax.tree.map(float, expected), rel=1e-5)
  assert [int(state.step) for state in states] == [0, 1, 2]


def test_clipping_is_part_of_the_step_but_not_of_the_report():
  _, free = run_toy(1)
  clipped, report = run_toy(1, clip_norm=0.01)
  assert free[0]["grad_norm"] > 0.1
  assert report[0]["grad_norm"] == free[0]["grad_norm"]
  moment = optax.tree.get(clipped[1].opt_state, "mu")
  assert float(optax.global_norm(moment)) == pytest.approx(0.1 * 0.01, rel=1e-4)


def test_same_seed_same_state_other_seed_other_state():
  first, again, other = (run_toy(3, seed=seed)[0][-1] for seed in (0, 0, 1))
  tiny.assert_same(first, again)
  for path, leaf in tiny.leaves(first.params).items():
    assert (leaf != tiny.leaves(other.params)[path]).all(), path


def test_keys_belong_to_seed_step_and_index():
  def data(seed, step, index):
    return np.asarray(jax.random.key_data(steps.example_keys(seed, step, np.array(index))))

  together = data(0, 3, [0, 1, 2])
  np.testing.assert_array_equal(data(0, 3, [2, 7, 0])[[2, 0]], together[[0, 2]])
  drawn = np.concatenate([data(s, t, [0, 1, 2]) for s in (0, 1) for t in (0, 3)])
  assert len(np.unique(drawn, axis=0)) == len(drawn)


def test_evaluation_sums_what_is_not_padding():
  """Means over the examples, whatever stands in the padding, with the averaged parameters."""
  evaluate = jax.pmap(steps.make_eval_step(tiny.toy_loss, seed=0), axis_name=steps.AXIS)
  optimizer = optax.sgd(0.1)
  other = jax.tree.map(lambda x: x + 1, tiny.TOY_PARAMS)
  state = create_train_state(other, optimizer).replace(ema_params=tiny.TOY_PARAMS)
  batch = make_batch(4) | {"record": np.array([7, 8, 9, 7], np.int32)}
  batch["mask"] = np.array([1, 1, 1, 0], np.float32)

  def sums(state, batch):
    state, batch = jax.tree.map(lambda x: jnp.asarray(x)[None], (state, batch))
    return {name: float(value[0]) for name, value in evaluate(state, batch).items()}

  keys = steps.example_keys(0, 0, batch["record"])
  loss, _ = tiny.toy_loss(tiny.TOY_PARAMS, None, batch, keys, False)
  expected = {"loss": float(loss[:3].sum()), "twice": 2 * float(loss[:3].sum()), "count": 3.0}
  assert sums(state, batch) == pytest.approx(expected, rel=1e-5)

  # Another padding, another step, other places in the batch: the same sums.
  changed = {name: np.concatenate([x[[2, 0, 1]], x[:1]]) for name, x in batch.items()}
  changed["mask"] = batch["mask"]
  assert sums(state.replace(step=jnp.int32(5)), changed) == pytest.approx(expected, rel=1e-5)


class Echo:
  """Stands for the UNet: predicts the noise level, or the noisy image itself."""

  def __init__(self, predict):
    self.predict = predict
    self.dropout_keys = "not called"

  def apply(self, variables, x_noisy, noise_level, dropout_keys):
    self.dropout_keys = dropout_keys
    level = jnp.broadcast_to(noise_level[:, None, None, None], x_noisy.shape)
    return (level if self.predict == "level" else x_noisy), {}


def black(count):
  batch = make_batch(count, size=4)
  return batch | {"a": np.zeros_like(batch["a"]), "b": np.zeros_like(batch["b"])}


def test_stage1_draws_steps_of_the_range_for_each_image():
  """On black images the loss of predicting the noise level is its square."""
  schedule = make_schedule("cosine", 100)
  loss_fn = steps.make_stage1_loss(Echo("level"), schedule, (21, 60))
  _, terms = loss_fn({}, None, black(2000), steps.example_keys(0, 0, np.arange(2000)), True)
  a, b = np.sqrt(terms["mse_a"]), np.sqrt(terms["mse_b"])
  g = np.asarray(schedule.noise_levels)
  for levels in (a, b):
    # A level in G[t]..G[t - 1] belongs to step t; the 40 steps are hit 50 times each, +- 7.
    drawn = np.searchsorted(-g, -levels, side="left")
    counts = np.bincount(drawn, minlength=101)
    assert counts[:21].sum() == counts[61:].sum() == 0
    assert counts[21:61].min() > 15
    assert counts[21:61].max() < 100
  assert abs(np.corrcoef(a, b)[0, 1]) < 0.1  # each image its own


def test_stage1_noise_is_the_images_own():
  """With no signal the noisy image is noise of a known variance, other for A and for B."""
  schedule = make_schedule("cosine", 100)
  loss_fn = steps.make_stage1_loss(Echo("noisy"), schedule, (100, 100))
  loss, terms = loss_fn({}, None, black(500), steps.example_keys(0, 0, np.arange(500)), True)
  np.testing.assert_allclose(terms["mse_a"].mean(), 1, atol=0.06)  # of 8,000 values: 0.016
  np.testing.assert_allclose(terms["mse_b"].mean(), 1, atol=0.06)
  assert abs(np.corrcoef(terms["mse_a"], terms["mse_b"])[0, 1]) < 0.2
  np.testing.assert_allclose(loss, (terms["mse_a"] + terms["mse_b"]) / 2, rtol=1e-6)


def test_dropout_is_for_training():
  unet = Echo("noisy")
  loss_fn = steps.make_stage1_loss(unet, make_schedule("cosine", 100), (1, 100))
  keys = steps.example_keys(0, 0, np.arange(3))
  loss_fn({}, None, black(3), keys, False)
  assert unet.dropout_keys is None
  loss_fn({}, None, black(3), keys, True)
  data = np.asarray(jax.random.key_data(unet.dropout_keys))
  assert len(np.unique(data, axis=0)) == 6  # one for each image


@pytest.fixture(scope="module")
def losses():
  """Both stages' losses of the tiny networks, jitted: f(batch, keys) -> [b]."""
  stage1, stage2 = tiny.config(1), tiny.stage2_config()
  params, _ = tiny.model()
  jitted = {}
  for config, trained in ((stage1, params["unet"]), (stage2, params["fusion_head"])):
    loss_fn = stages.make_loss(config)
    frozen = params["unet"] if config.stage == 2 else None

    @jax.jit
    def loss(batch, keys, loss_fn=loss_fn, trained=trained, frozen=frozen):
      return loss_fn(trained, frozen, batch, keys, True)[0]

    jitted[config.stage] = loss
  return types.MappingProxyType(jitted)


@pytest.mark.parametrize("stage", [1, 2])
def test_an_examples_loss_is_its_own(losses, stage):
  """It depends on the example and on (seed, step, index), not on neighbours or places."""
  batch, strangers = make_batch(4), make_batch(4, seed=1)
  moved = {name: strangers[name].copy() for name in batch}
  for place, source in ((0, 3), (2, 1)):
    for name in moved:
      moved[name][place] = batch[name][source]
  moved["index"][[1, 3]] = [17, 18]

  def run(batch, seed=0, step=3):
    return np.asarray(losses[stage](batch, steps.example_keys(seed, step, batch["index"])))

  expected = run(batch)
  np.testing.assert_allclose(run(moved)[[0, 2]], expected[[3, 1]], rtol=1e-5)
  for other in (
    run(batch, seed=1),
    run(batch, step=4),
    run(batch | {"index": batch["index"] + 1}),
  ):
    assert (np.abs(other / expected - 1) > 1e-4).all()


@pytest.fixture(scope="module")
def first_steps():
  """One step of each stage in each compute dtype, on networks of one level: state and loss."""
  unet = {"multipliers": (1,), "dropout": 0.0}
  configs = {
    1: tiny.config(1, **{f"unet__{name}": value for name, value in unet.items()}),
    2: tiny.stage2_config(unet),
  }
  params = {stage: tiny.draw_params(config) for stage, config in configs.items()}
  batch = jax.tree.map(lambda x: x[None], make_batch(2))

  def first_step(stage, dtype):
    config = configs[stage].copy_and_resolve_references()
    config.compute_dtype = dtype
    schedule = optax.constant_schedule(1e-3)
    optimizer = make_optimizer(config.optimizer, schedule)
    step = steps.make_train_step(stages.make_loss(config), optimizer, schedule, seed=0)
    state = create_train_state(
      params[stage], optimizer, frozen_params=params[1] if stage == 2 else None
    )
    state = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
    return jax.pmap(step, axis_name=steps.AXIS)(state, batch)

  return first_step


@pytest.mark.parametrize("stage", [1, 2])
def test_bfloat16_computes_nearly_the_same(first_steps, stage):
  """Parameters, optimizer and losses stay float32, and the gradient points the same way."""
  (state, metrics), (exact_state, exact_metrics) = (
    first_steps(stage, dtype) for dtype in ("bfloat16", "float32")
  )
  for path, leaf in tiny.leaves((state.params, state.opt_state, metrics)).items():
    assert leaf.dtype in (np.float32, np.int32), path
    assert np.isfinite(leaf).all(), path
  loss, exact = float(metrics["loss"][0]), float(exact_metrics["loss"][0])
  assert loss == pytest.approx(exact, rel=0.02)
  assert loss != exact  # else nothing was computed in bfloat16
  moments, exact_moments = (
    np.concatenate([x.ravel() for x in tiny.leaves(optax.tree.get(s.opt_state, "mu")).values()])
    for s in (state, exact_state)
  )
  cosine = moments @ exact_moments / np.linalg.norm(moments) / np.linalg.norm(exact_moments)
  assert cosine > 0.99


def test_remat_computes_activations_again_in_the_backward_pass():
  for remat in (False, True):
    config = tiny.config(1, remat=remat)
    loss_fn = stages.make_loss(config)
    params = jax.eval_shape(lambda config=config: stages.init_params(config))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))

    def loss(params, batch, keys, loss_fn=loss_fn):
      return jnp.mean(loss_fn(params, None, batch, keys, True)[0])

    program = str(jax.make_jaxpr(jax.grad(loss))(params, make_batch(2), keys))
    assert ("remat" in program or "checkpoint" in program) == remat


def test_a_skipped_step_changes_nothing_but_its_number():
  """Parameters, moments and moving average: bit for bit as before it."""
  optimizer = optax.adam(0.1)
  step = jax.pmap(
    steps.make_train_step(
      tiny.toy_loss,
      optimizer,
      optax.constant_schedule(0.1),
      seed=0,
      ema_decay=0.9,
      skip_nonfinite=True,
    ),
    axis_name=steps.AXIS,
  )
  state = create_train_state(tiny.TOY_PARAMS, optimizer, ema=True)
  state = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
  batch = jax.tree.map(lambda x: x[None], make_batch(4))
  before, _ = step(state, batch)
  after, metrics = step(before, batch | {"a": batch["a"] * np.nan})
  assert np.isnan(metrics["loss"]).all()
  assert (int(before.step[0]), int(after.step[0])) == (1, 2)
  tiny.assert_same(after.replace(step=before.step), before)
