"""The training state and its optimizers."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.method import STATS, Params, join, select

Array = jax.Array


class TrainState(flax.struct.PyTreeNode):
  """Everything that changes in training, and the networks that do not; a pytree.

  Attributes:
    step: int32, steps done.
    params: the networks that are trained.
    opt_state: each network's optimizer state.
    stats: running statistics of the trained networks' batch norms, by network; may be empty.
    ema_params: exponential moving average of `params`, or None.
    frozen: networks that stay as they are, and their statistics. Not part of a checkpoint.
  """

  step: Array
  params: Params
  opt_state: dict[str, optax.OptState]
  stats: Params
  ema_params: Params | None = None
  frozen: Params = flax.struct.field(default_factory=dict)

  @property
  def trained(self) -> Params:
    """What is released of the trained networks: the average where there is one, and statistics."""
    params = self.params if self.ema_params is None else self.ema_params
    return {**params, STATS: self.stats}

  @property
  def eval_params(self) -> Params:
    """All networks, as they are evaluated."""
    return join(self.frozen, self.trained)


def optimizer_of(config: Any, network: str) -> Mapping[str, Any]:
  """The fields of a network's optimizer: the run's, and over them the network's own.

  Raises:
    UserError: `optimizer.networks` has a field that optimizers do not have.
  """
  common = {k: v for k, v in config.optimizer.items() if k != "networks"}
  own = dict(config.optimizer.networks.get(network, {}))
  unknown = sorted(own.keys() - common.keys())
  if unknown:
    raise UserError(f"config.optimizer.networks.{network} has no field {unknown[0]!r}")
  return common | own


def make_learning_rate(optimizer: Mapping[str, Any], num_train_steps: int) -> optax.Schedule:
  """Linear warm-up from zero, then constant, a cosine or polynomial to zero, or steps down.

  The fields are `defaults.optimizer_defaults`'s.

  Raises:
    UserError: an unknown `decay`, or one whose other fields do not fit.
  """
  rate, warmup = optimizer["learning_rate"], optimizer["warmup_steps"]
  if optimizer["decay"] == "constant":
    after = optax.constant_schedule(rate)
  elif optimizer["decay"] == "cosine":
    after = optax.cosine_decay_schedule(rate, max(num_train_steps - warmup, 1))
  elif optimizer["decay"] == "step":
    if optimizer["decay_every_steps"] < 1:
      raise UserError("config.optimizer.decay_every_steps must be at least 1 with decay='step'")
    every, factor = optimizer["decay_every_steps"], optimizer["decay_rate"]
    after = optax.exponential_decay(rate, every, factor, staircase=True)
  elif optimizer["decay"] == "polynomial":
    after = _polynomial(optimizer, num_train_steps)
  else:
    raise UserError(
      "config.optimizer.decay is 'constant', 'cosine', 'polynomial' or 'step', not "
      f"{optimizer['decay']!r}"
    )
  if warmup == 0:
    return after
  rise = optax.linear_schedule(0.0, rate, warmup)
  return optax.join_schedules([rise, after], [warmup])


def _polynomial(optimizer: Mapping[str, Any], num_train_steps: int) -> optax.Schedule:
  """The highest rate times (1 - (step - begin) / (last step - begin))^power, from `begin` on.

  Its steps are counted from the end of the warm-up, as `optax.join_schedules` does; the fields
  count them from the run's start.
  """
  warmup, begin = optimizer["warmup_steps"], optimizer["decay_after_steps"]
  power, every = optimizer["decay_power"], max(optimizer["decay_every_steps"], 1)
  if not 0 <= begin < num_train_steps or power <= 0:
    raise UserError(
      f"config.optimizer.decay_after_steps={begin} must be below num_train_steps="
      f"{num_train_steps}, and decay_power={power} positive"
    )
  rate, length = optimizer["learning_rate"], num_train_steps - begin
  fall = optax.polynomial_schedule(rate, 0.0, power, length, transition_begin=begin)
  return lambda step: fall((step + warmup) // every * every)


def make_optimizer(
  optimizer: Mapping[str, Any], learning_rate: optax.Schedule
) -> optax.GradientTransformation:
  """Builds Adam or AdamW, behind clipping by the network's own norm where that is asked for.

  Raises:
    UserError: an unknown optimizer.
  """
  betas = {"b1": optimizer["b1"], "b2": optimizer["b2"]}
  if optimizer["name"] == "adam":
    chosen = optax.adam(learning_rate, **betas)
  elif optimizer["name"] == "adamw":
    chosen = optax.adamw(learning_rate, weight_decay=optimizer["weight_decay"], **betas)
  else:
    raise UserError(f"config.optimizer.name is 'adam' or 'adamw', not {optimizer['name']!r}")
  if optimizer["clip_norm"] > 0:
    chosen = optax.chain(optax.clip_by_global_norm(optimizer["clip_norm"]), chosen)

  def update(grads: Params, state: optax.OptState, params: Params | None = None):
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
      return chosen.update(grads, state, params)

  return optax.GradientTransformation(chosen.init, update)


class Optimizers:
  """The optimizers and learning rates of the networks that a run trains.

  Raises:
    UserError: an optimizer that there is not, or one for a network that is not trained.
  """

  def __init__(self, config: Any, networks: Iterable[str]):
    fields = {name: optimizer_of(config, name) for name in networks}
    unknown = sorted(set(config.optimizer.networks) - fields.keys())
    if unknown:
      raise UserError(
        f"config.optimizer.networks names {unknown[0]!r}; this stage trains {', '.join(fields)}"
      )
    self._rates = {n: make_learning_rate(f, config.num_train_steps) for n, f in fields.items()}
    self._by_network = {n: make_optimizer(fields[n], rate) for n, rate in self._rates.items()}

  def init(self, params: Params) -> dict[str, optax.OptState]:
    """The state before the first step, by network."""
    return {name: optimizer.init(params[name]) for name, optimizer in self._by_network.items()}

  def update(
    self, grads: Params, opt_state: Mapping[str, optax.OptState], params: Params
  ) -> tuple[Params, dict[str, optax.OptState]]:
    """One step of every network: the new parameters and optimizer states."""
    new_params, new_state = {}, {}
    for name, optimizer in self._by_network.items():
      updates, new_state[name] = optimizer.update(grads[name], opt_state[name], params[name])
      new_params[name] = optax.apply_updates(params[name], updates)
    return new_params, new_state

  def rate(self, opt_state: Mapping[str, optax.OptState]) -> Array:
    """The first network's learning rate in the step that is taken from these states.

    It follows the steps that the optimizer has counted: those that were skipped are none.
    """
    name, schedule = next(iter(self._rates.items()))
    parts = jax.tree.leaves(opt_state[name], is_leaf=_is_clock)
    (clock,) = (part for part in parts if _is_clock(part))
    with jax.numpy_dtype_promotion("standard"):
      return jnp.asarray(schedule(clock.count), jnp.float32)


def create_train_state(
  params: Params, optimizers: Optimizers, *, ema: bool = False, frozen: Params | None = None
) -> TrainState:
  """The state before the first step; `params` has the trained networks and their `STATS`."""
  networks = {name: value for name, value in params.items() if name != STATS}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=networks,
    opt_state=optimizers.init(networks),
    stats=params.get(STATS, {}),
    # A copy: a donated buffer must not stand in the state twice.
    ema_params=jax.tree.map(jnp.array, networks) if ema else None,
    frozen=frozen or {},
  )


def continue_from(
  state: TrainState, params: Params, opt_state: Mapping[str, Any], networks: Iterable[str]
) -> TrainState:
  """Replaces networks of a new state by those of an earlier stage, whose `params` these are.

  And their optimizers' moments, where they are known. Learning rates follow the new run's steps.

  Raises:
    UserError: the earlier stage lacks one, or has it in another size.
  """
  chosen = select(params, networks)
  moments = dict(state.opt_state)
  for name in networks:
    if name not in chosen:
      raise UserError(f"config.start has no {name}: name a run of the earlier stage")
    ours, theirs = (jax.tree.map(jnp.shape, tree) for tree in (state.params[name], chosen[name]))
    if ours != theirs:
      raise UserError(f"config.start has another {name}: the stages' configs differ")
    leaves = jax.tree.leaves(opt_state.get(name))
    # Where the optimizer is another one, its state begins anew.
    if len(leaves) == len(jax.tree.leaves(moments[name])):
      earlier = jax.tree.unflatten(jax.tree.structure(moments[name]), leaves)
      moments[name] = jax.tree.map(
        lambda old, new: new if _is_clock(new) else old, earlier, moments[name], is_leaf=_is_clock
      )
  stats = state.stats | chosen.pop(STATS, {})
  new = state.params | chosen
  return state.replace(
    params=new,
    opt_state=moments,
    stats=stats,
    ema_params=None if state.ema_params is None else jax.tree.map(jnp.array, new),
  )


def _is_clock(state: Any) -> bool:
  """Whether a part of an optimizer's state counts the steps of its learning rate."""
  return isinstance(state, optax.ScaleByScheduleState)
