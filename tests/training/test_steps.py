"""One step: whose randomness it uses, what it averages, clips and reports."""

import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import toy

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import make_schedule
from dmfnet_jax.methods.dmfnet import METHOD
from dmfnet_jax.methods.dmfnet.unet import UNet
from dmfnet_jax.methods.method import Context
from dmfnet_jax.training import setup, steps
from dmfnet_jax.training.state import Optimizers, create_train_state


def make_batch(count, size=16, seed=0):
  a, b = np.random.default_rng(seed).uniform(-1, 1, (2, count, size, size, 1)).astype(np.float32)
  return {"a": a, "b": b, "index": np.arange(count, dtype=np.int32)}


def context(keys, *, train=True):
  return Context(keys, train, jnp.float32(0.5))


def toy_step(config, **options):
  """The toy's step, which leaves its state alone, and the state before the first one."""
  run = setup.set_up(config, pathlib.Path("no workdir"))
  step = steps.make_train_step(
    run.stage,
    Optimizers(config, ["toy"]),
    seed=config.seed,
    num_train_steps=config.num_train_steps,
    ema_decay=config.ema_decay,
    **options,
  )
  return jax.pmap(step, axis_name=steps.AXIS), setup.init_state(run)


def run_toy(num_steps, *, seed=0, ema_decay=0.0, clip_norm=0.0, learning_rate=0.01):
  """Trains the toy on one device; returns the states (the first included) and the metrics."""
  config = tiny.toy_config(
    seed=seed,
    ema_decay=ema_decay,
    num_train_steps=10,
    optimizer__clip_norm=clip_norm,
    optimizer__name="adam",
    optimizer__learning_rate=learning_rate,
    optimizer__decay="cosine",
  )
  step, state = toy_step(config)
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
  assert (
    abs(states[-1].params["toy"]["c"] - states[-1].ema_params["toy"]["c"]) > 1e-3
  )  # it lags behind


def test_step_reports_its_means():
  states, metrics = run_toy(2)
  keys = steps.example_keys(0, 1, np.arange(4))
  loss, grads = jax.value_and_grad(
    lambda p: toy.loss(p, make_batch(4, seed=1), context(keys)).value.mean()
  )(states[1].params)
  expected = {
    "loss": loss,
    "twice": 2 * loss,
    "grad_norm": optax.global_norm(grads),
    "learning_rate": 0.01 * (1 + np.cos(np.pi / 10)) / 2,
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
  config = tiny.toy_config()
  evaluate = jax.pmap(
    steps.make_eval_step(toy.stage(config), seed=0, num_train_steps=10), axis_name=steps.AXIS
  )
  other = {"toy": jax.tree.map(lambda x: x + 1, toy.PARAMS)}
  state = create_train_state(other, Optimizers(config, other))
  state = state.replace(ema_params={"toy": toy.PARAMS})
  batch = make_batch(4) | {"record": np.array([7, 8, 9, 7], np.int32)}
  batch["mask"] = np.array([1, 1, 1, 0], np.float32)

  def sums(state, batch):
    state, batch = jax.tree.map(lambda x: jnp.asarray(x)[None], (state, batch))
    return {name: float(value[0]) for name, value in evaluate(state, batch).items()}

  keys = steps.example_keys(0, 0, batch["record"])
  loss = toy.loss({"toy": toy.PARAMS}, batch, context(keys, train=False)).value
  expected = {"loss": float(loss[:3].sum()), "twice": 2 * float(loss[:3].sum()), "count": 3.0}
  assert sums(state, batch) == pytest.approx(expected, rel=1e-5)

  # Another padding, another step, other places in the batch: the same sums.
  changed = {name: np.concatenate([x[[2, 0, 1]], x[:1]]) for name, x in batch.items()}
  changed["mask"] = batch["mask"]
  assert sums(state.replace(step=jnp.int32(5)), changed) == pytest.approx(expected, rel=1e-5)


def black(count):
  batch = make_batch(count, size=16)
  return batch | {"a": np.zeros_like(batch["a"]), "b": np.zeros_like(batch["b"])}


def denoising(first, last, monkeypatch, predict):
  """Stage I's loss with a stand-in for the UNet: f(batch, keys, train), and what it was given.

  Args:
    first: the first step of the range.
    last: the last one.
    monkeypatch: pytest's.
    predict: noisy images and their levels to what the stand-in predicts.
  """
  given = []

  def apply(self, variables, x_noisy, noise_level, dropout_keys):
    given.append(dropout_keys)
    return predict(x_noisy, noise_level), {}

  monkeypatch.setattr(UNet, "apply", apply)
  config = tiny.config(1, schedule__num_timesteps=100, timestep_range=(first, last))
  (update,) = METHOD.stages[1](config).updates

  def loss(batch, keys, train=True):
    return update.loss({"unet": {}}, batch, context(keys, train=train))

  return loss, given


def level_everywhere(x_noisy, noise_level):
  return jnp.broadcast_to(noise_level[:, None, None, None], x_noisy.shape)


def test_stage1_draws_steps_of_the_range_for_each_image(monkeypatch):
  """On black images the loss of predicting the noise level is its square."""
  loss, _ = denoising(21, 60, monkeypatch, level_everywhere)
  terms = loss(black(2000), steps.example_keys(0, 0, np.arange(2000))).terms
  a, b = np.sqrt(terms["mse_a"]), np.sqrt(terms["mse_b"])
  g = np.asarray(make_schedule("cosine", 100).noise_levels)
  for levels in (a, b):
    # A level in G[t]..G[t - 1] belongs to step t; the 40 steps are hit 50 times each, +- 7.
    drawn = np.searchsorted(-g, -levels, side="left")
    counts = np.bincount(drawn, minlength=101)
    assert counts[:21].sum() == counts[61:].sum() == 0
    assert counts[21:61].min() > 15
    assert counts[21:61].max() < 100
  assert abs(np.corrcoef(a, b)[0, 1]) < 0.1  # each image its own


def test_stage1_noise_is_the_images_own(monkeypatch):
  """With no signal the noisy image is noise of a known variance, other for A and for B."""
  loss, _ = denoising(100, 100, monkeypatch, lambda x_noisy, noise_level: x_noisy)
  value, terms, _ = loss(black(500), steps.example_keys(0, 0, np.arange(500)))
  np.testing.assert_allclose(terms["mse_a"].mean(), 1, atol=0.06)  # of 128,000 values: 0.004
  np.testing.assert_allclose(terms["mse_b"].mean(), 1, atol=0.06)
  assert abs(np.corrcoef(terms["mse_a"], terms["mse_b"])[0, 1]) < 0.2
  np.testing.assert_allclose(value, (terms["mse_a"] + terms["mse_b"]) / 2, rtol=1e-6)


def test_dropout_is_for_training(monkeypatch):
  loss, given = denoising(1, 100, monkeypatch, level_everywhere)
  keys = steps.example_keys(0, 0, np.arange(3))
  loss(black(3), keys, train=False)
  assert given == [None]
  loss(black(3), keys)
  data = np.asarray(jax.random.key_data(given[1]))
  assert len(np.unique(data, axis=0)) == 6  # one for each image


@pytest.fixture(scope="module")
def losses():
  """Both stages' losses of the tiny networks, jitted: f(batch, keys) -> [b]."""
  stage1, stage2 = tiny.config(1), tiny.stage2_config()
  params, _ = tiny.model()
  jitted = {}
  for config in (stage1, stage2):
    (update,) = METHOD.stages[config.stage](config).updates

    @jax.jit
    def loss(batch, keys, update=update):
      return update.loss(params, batch, context(keys)).value

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
    frozen = {"unet": params[1]} if stage == 2 else {}
    run = tiny.run_setup(config, frozen)
    (network,) = setup.trained_networks(run.stage)
    optimizers = Optimizers(config, [network])
    state = create_train_state({network: params[stage]}, optimizers, frozen=frozen)
    state = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
    with jax.numpy_dtype_promotion("standard"):  # the gradient of JAX's own attention relies on it
      return setup.pmap_train_step(run)(state, batch)

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
    stage = tiny.run_setup(config).stage
    params = jax.eval_shape(stage.init, gaussian.make_key(0))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))

    def loss(params, batch, keys, stage=stage):
      return jnp.mean(stage.updates[0].loss(params, batch, context(keys)).value)

    program = str(jax.make_jaxpr(jax.grad(loss))(params, make_batch(2), keys))
    assert ("remat" in program or "checkpoint" in program) == remat


def test_a_skipped_step_changes_nothing_but_its_number():
  """Parameters, moments and moving average: bit for bit as before it."""
  step, state = toy_step(tiny.toy_config(ema_decay=0.9), skip_nonfinite=True)
  state = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
  batch = jax.tree.map(lambda x: x[None], make_batch(4))
  before, _ = step(state, batch)
  after, metrics = step(before, batch | {"a": batch["a"] * np.nan})
  assert np.isnan(metrics["loss"]).all()
  assert (int(before.step[0]), int(after.step[0])) == (1, 2)
  tiny.assert_same(after.replace(step=before.step), before)


def test_the_learning_rate_is_that_of_the_step_that_was_taken():
  """Adam's first steps on a constant gradient are as long as its rate; a skipped one counts not."""
  changes = {"optimizer__warmup_steps": 10, "optimizer__weight_decay": 0.0}
  optimizers = Optimizers(tiny.toy_config(num_train_steps=100, **changes), ["weights"])
  params = {"weights": {"w": jnp.zeros(1)}}
  grads = {"weights": {"w": jnp.ones(1)}}
  opt_state = optimizers.init(params)
  for _ in range(3):
    rate = float(optimizers.rate(opt_state))
    new, opt_state = optimizers.update(grads, opt_state, params)
    np.testing.assert_allclose(params["weights"]["w"] - new["weights"]["w"], rate, rtol=1e-4)
    assert optimizers.rate(opt_state) > rate
    params = new
