"""The learning-rate schedule, the optimizer and the state before the first step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from dmfnet_jax.errors import UserError
from dmfnet_jax.training.state import (
  Optimizers,
  continue_from,
  create_train_state,
  make_learning_rate,
  make_optimizer,
  optimizer_of,
)


def optimizer_config(**changes):
  config = tiny.toy_config(**{f"optimizer__{k}": v for k, v in changes.items()})
  return optimizer_of(config, "toy")


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, {0: 0.5, 7: 0.5, 100: 0.5}),
    ({"warmup_steps": 10}, {0: 0.0, 5: 0.25, 10: 0.5, 100: 0.5}),
    ({"decay": "cosine"}, {0: 0.5, 50: 0.25, 75: 0.5 * (1 - np.sqrt(0.5)) / 2, 100: 0.0}),
    (
      {"decay": "cosine", "warmup_steps": 20},
      {0: 0.0, 10: 0.25, 20: 0.5, 60: 0.25, 100: 0.0},
    ),
    (
      {"decay": "step", "decay_every_steps": 20, "decay_rate": 0.5},
      {0: 0.5, 19: 0.5, 20: 0.25, 39: 0.25, 40: 0.125, 99: 0.5 / 16},
    ),
    # Constant, then falling on a line; and a power of the share that is left.
    ({"decay": "polynomial", "decay_after_steps": 60}, {0: 0.5, 60: 0.5, 70: 0.375, 100: 0.0}),
    (
      {"decay": "polynomial", "decay_power": 0.9},
      {0: 0.5, 50: 0.5 * 0.5**0.9, 99: 0.5 * 0.01**0.9},
    ),
    # By the epoch; epochs are counted from the run's start, whatever the warm-up.
    (
      {"decay": "polynomial", "decay_every_steps": 10, "warmup_steps": 5},
      {0: 0.0, 4: 0.4, 5: 0.5, 9: 0.5, 10: 0.45, 19: 0.45, 99: 0.05},
    ),
  ],
)
def test_learning_rate(changes, expected):
  schedule = make_learning_rate(optimizer_config(learning_rate=0.5, **changes), 100)
  computed = {step: float(schedule(step)) for step in expected}
  assert computed == pytest.approx(expected, abs=1e-6)


def test_unknown_names_are_refused():
  with pytest.raises(
    UserError, match=r"optimizer\.decay is 'constant', 'cosine', 'polynomial' or 'step', not 'lin"
  ):
    make_learning_rate(optimizer_config(decay="linear"), 100)
  with pytest.raises(UserError, match=r"decay_after_steps=100 must be below num_train_steps=100"):
    make_learning_rate(optimizer_config(decay="polynomial", decay_after_steps=100), 100)
  with pytest.raises(UserError, match=r"optimizer\.name is 'adam' or 'adamw', not 'sgd'"):
    make_optimizer(optimizer_config(name="sgd"), optax.constant_schedule(0.1))


@pytest.mark.parametrize(("gradient", "norm"), [([30.0, 40.0], 2.0), ([0.3, 0.4], 0.5)])
def test_clipping_bounds_the_global_norm(gradient, norm):
  """Adam's step does not show the gradient's size; its first moment is a tenth of it."""
  params = {"x": jnp.zeros(1), "y": jnp.zeros(1)}
  grads = {"x": jnp.array(gradient[:1]), "y": jnp.array(gradient[1:])}
  optimizer = make_optimizer(optimizer_config(clip_norm=2.0), optax.constant_schedule(0.1))
  _, state = optimizer.update(grads, optimizer.init(params), params)
  moment = optax.tree.get(state, "mu")
  assert float(optax.global_norm(moment)) == pytest.approx(0.1 * norm, rel=1e-5)
  assert float(moment["y"][0] / moment["x"][0]) == pytest.approx(4 / 3, rel=1e-5)


@pytest.mark.parametrize(("name", "kept"), [("adamw", 1 - 0.1 * 0.01), ("adam", 1.0)])
def test_only_adamw_decays_weights(name, kept):
  params = {"x": jnp.array([2.0, -3.0])}
  config = optimizer_config(name=name, weight_decay=0.01)
  optimizer = make_optimizer(config, optax.constant_schedule(0.1))
  updates, _ = optimizer.update({"x": jnp.zeros(2)}, optimizer.init(params), params)
  np.testing.assert_allclose(
    optax.apply_updates(params, updates)["x"], kept * params["x"], rtol=1e-6
  )


def test_state_before_the_first_step():
  params = {"toy": {"x": jnp.array([2.0, -3.0])}}
  optimizers = Optimizers(tiny.toy_config(), params)
  state = create_train_state(params, optimizers)
  assert (int(state.step), state.step.dtype) == (0, jnp.int32)
  assert state.ema_params is None
  tiny.assert_same(state.eval_params, params)

  averaged = create_train_state(params, optimizers, ema=True)
  tiny.assert_same(averaged.ema_params, params)
  other = averaged.replace(ema_params={"toy": {"x": jnp.zeros(2)}})
  tiny.assert_same(other.eval_params, other.ema_params)
  # The step donates its state: one buffer in two places would be freed twice.
  assert averaged.ema_params["toy"]["x"] is not params["toy"]["x"]


def two_networks(**networks):
  config = tiny.toy_config()
  with config.unlocked():
    config.optimizer.networks = networks
  params = {name: {"x": jnp.array([1.0, 2.0])} for name in ("one", "two")}
  return params, Optimizers(config, params)


def test_each_network_has_an_optimizer_of_its_own():
  """Its own rate, and clipped by its own norm."""
  params, optimizers = two_networks(two={"learning_rate": 0.5, "clip_norm": 1e-3})
  grads = {name: {"x": jnp.array([30.0, 40.0])} for name in params}
  moved, state = optimizers.update(grads, optimizers.init(params), params)
  steps = {name: float(params[name]["x"][0] - moved[name]["x"][0]) for name in params}
  assert steps == pytest.approx({"one": 1e-3, "two": 0.5}, rel=0.02)
  norms = {name: float(optax.global_norm(optax.tree.get(state[name], "mu"))) for name in params}
  assert norms == pytest.approx({"one": 5.0, "two": 1e-4}, rel=1e-3)


def test_optimizers_of_what_is_not_trained_are_refused():
  with pytest.raises(UserError, match=r"networks names 'three'; this stage trains one, two"):
    two_networks(three={"learning_rate": 0.5})
  with pytest.raises(UserError, match=r"networks\.two has no field 'rate'"):
    two_networks(two={"rate": 0.5})


def test_a_stage_goes_on_with_networks_and_moments_of_the_one_before():
  params, optimizers = two_networks()
  grads = {name: {"x": jnp.array([3.0, 4.0])} for name in params}
  moved, moments = optimizers.update(grads, optimizers.init(params), params)
  fresh = create_train_state(params, optimizers, ema=True)
  state = continue_from(fresh, moved, moments, ["one"])
  tiny.assert_same(state.params, {"one": moved["one"], "two": params["two"]})
  tiny.assert_same(state.ema_params, state.params)
  for part in ("mu", "nu"):
    ours, theirs = (optax.tree.get(x["one"], part) for x in (state.opt_state, moments))
    tiny.assert_same(ours, theirs)
  # The learning rate begins anew: one that has decayed to nothing would train nothing.
  is_clock = lambda x: isinstance(x, optax.ScaleByScheduleState)  # noqa: E731
  for opt_state, count in ((moments, 1), (state.opt_state, 0)):
    parts = jax.tree.leaves(opt_state["one"], is_leaf=is_clock)
    assert [int(part.count) for part in parts if is_clock(part)] == [count]
  tiny.assert_same(state.opt_state["two"], fresh.opt_state["two"])
  # A model file has no moments: they begin anew.
  tiny.assert_same(continue_from(fresh, moved, {}, ["one"]).opt_state, fresh.opt_state)
  with pytest.raises(UserError, match=r"config\.start has no one"):
    continue_from(fresh, {"two": moved["two"]}, {}, ["one"])
  with pytest.raises(UserError, match=r"config\.start has another one"):
    continue_from(fresh, {"one": {"x": jnp.zeros(3)}}, {}, ["one"])
