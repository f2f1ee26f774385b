"""The learning-rate schedule, the optimizer and the state before the first step."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from dmfnet_jax.errors import UserError
from dmfnet_jax.training.state import create_train_state, make_learning_rate, make_optimizer


def optimizer_config(**changes):
  return tiny.config(2, **{f"optimizer__{k}": v for k, v in changes.items()}).optimizer


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
  ],
)
def test_learning_rate(changes, expected):
  schedule = make_learning_rate(optimizer_config(learning_rate=0.5, **changes), 100)
  computed = {step: float(schedule(step)) for step in expected}
  assert computed == pytest.approx(expected, abs=1e-6)


def test_unknown_names_are_refused():
  with pytest.raises(UserError, match=r"optimizer\.decay is 'constant' or 'cosine', not 'linear'"):
    make_learning_rate(optimizer_config(decay="linear"), 100)
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
  params = {"x": jnp.array([2.0, -3.0])}
  optimizer = make_optimizer(optimizer_config(), optax.constant_schedule(0.1))
  state = create_train_state(params, optimizer)
  assert (int(state.step), state.step.dtype) == (0, jnp.int32)
  assert state.ema_params is None
  assert state.eval_params is params

  averaged = create_train_state(params, optimizer, ema=True)
  tiny.assert_same(averaged.ema_params, params)
  assert averaged.eval_params is averaged.ema_params
  # The step donates its state: one buffer in two places would be freed twice.
  assert averaged.ema_params["x"] is not params["x"]
