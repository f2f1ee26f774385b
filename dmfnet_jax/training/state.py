"""The training state and its optimizer."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dmfnet_jax.errors import UserError

Array = jax.Array
Params = Any


class TrainState(flax.struct.PyTreeNode):
  """Everything that changes in training, and the frozen UNet of Stage II; a pytree.

  Attributes:
    step: int32, steps done.
    params: the parameters that are trained: the UNet's (Stage I) or the head's (Stage II).
    opt_state: the optimizer's state.
    ema_params: exponential moving average of `params`, or None.
    frozen_params: Stage II's UNet, or None. It is not part of a checkpoint (see `loop`).
  """

  step: Array
  params: Params
  opt_state: optax.OptState
  ema_params: Params = None
  frozen_params: Params = None

  @property
  def eval_params(self) -> Params:
    """What is evaluated and released: the average where there is one."""
    return self.params if self.ema_params is None else self.ema_params


def make_learning_rate(config: Any, num_train_steps: int) -> optax.Schedule:
  """Linear warm-up from zero, then constant or a cosine to zero at the last step.

  Args:
    config: the config's `optimizer`: `learning_rate`, `warmup_steps`, `decay`.
    num_train_steps: the length of the run.

  Raises:
    UserError: an unknown `decay`.
  """
  warmup = config.warmup_steps
  if config.decay == "constant":
    after = optax.constant_schedule(config.learning_rate)
  elif config.decay == "cosine":
    after = optax.cosine_decay_schedule(config.learning_rate, max(num_train_steps - warmup, 1))
  else:
    raise UserError(f"config.optimizer.decay is 'constant' or 'cosine', not {config.decay!r}")
  if warmup == 0:
    return after
  rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
  return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: Any, learning_rate: optax.Schedule) -> optax.GradientTransformation:
  """Builds Adam or AdamW, behind clipping by the global norm where `clip_norm` is above zero.

  Raises:
    UserError: an unknown optimizer.
  """
  if config.name == "adam":
    optimizer = optax.adam(learning_rate)
  elif config.name == "adamw":
    optimizer = optax.adamw(learning_rate, weight_decay=config.weight_decay)
  else:
    raise UserError(f"config.optimizer.name is 'adam' or 'adamw', not {config.name!r}")
  if config.clip_norm > 0:
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
  return optimizer


def create_train_state(
  params: Params,
  optimizer: optax.GradientTransformation,
  *,
  ema: bool = False,
  frozen_params: Params = None,
) -> TrainState:
  """Returns the state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    # A copy: a donated buffer must not stand in the state twice.
    ema_params=jax.tree.map(jnp.array, params) if ema else None,
    frozen_params=frozen_params,
  )
