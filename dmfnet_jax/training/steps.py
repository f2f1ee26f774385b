"""Train and evaluation steps of any stage: pure functions, to be pmapped over `AXIS`.

A batch is a dict of arrays, on each device: the stage's fields (`methods.method.batch_fields`)
[b, H, W, C] float32 in [-1, 1], and `index` [b] int32, each example's position in the *global*
batch. All randomness is folded from (seed, step, index), so it belongs to the example: the same
model is trained on any number of devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.methods.method import STATS, Context, Params, Stage, join
from dmfnet_jax.training.state import Optimizers, TrainState

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[TrainState, Batch], Metrics]

AXIS = "data"


def example_keys(seed: int, step: Array | int, index: Array) -> Array:
  """One PRNG key per example, folded from (seed, step, position in the global batch)."""
  key = jax.random.fold_in(gaussian.make_key(seed), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def make_train_step(
  stage: Stage,
  optimizers: Optimizers,
  *,
  seed: int,
  num_train_steps: int,
  ema_decay: float = 0.0,
  skip_nonfinite: bool = False,
) -> TrainStep:
  """Returns `train_step(state, batch) -> (state, metrics)`, to be pmapped over `AXIS`.

  The seed is that of noise and dropout; losses may follow the progress through `num_train_steps`.
  With `skip_nonfinite` a step whose loss or gradient is not finite leaves all but its number as it
  was; the metrics tell.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    keys = example_keys(seed, state.step, batch["index"])
    progress = state.step.astype(jnp.float32) / num_train_steps
    context = Context(keys, train=True, progress=progress, axis=AXIS)

    stats = state.stats
    grads: Params = {}
    means: Metrics = {}
    for update in stage.updates:

      def mean_loss(moved: Params, update=update, stats=stats):
        params = join(state.frozen, {**state.params, **moved, STATS: stats})
        loss = update.loss(params, batch, context)
        terms = {name: jnp.mean(term) for name, term in loss.terms.items()}
        return jnp.mean(loss.value), (terms, {**stats, **loss.stats})

      moved = {name: state.params[name] for name in update.networks}
      (value, (terms, stats)), of_loss = jax.value_and_grad(mean_loss, has_aux=True)(moved)
      grads |= of_loss
      means = {"loss": value, **terms} | means  # "loss" is the first update's

    # One average of everything, so that XLA can combine it into few collectives.
    grads, means, stats = jax.lax.pmean((grads, means, stats), AXIS)
    params, opt_state = optimizers.update(grads, state.opt_state, state.params)
    ema_params = state.ema_params
    if ema_params is not None:
      ema_params = optax.incremental_update(params, ema_params, 1 - ema_decay)
    metrics = {
      **means,
      "grad_norm": optax.global_norm(grads),
      "learning_rate": optimizers.rate(state.opt_state),
    }
    new = {"params": params, "opt_state": opt_state, "stats": stats, "ema_params": ema_params}
    if skip_nonfinite:
      finite = jnp.isfinite(means["loss"]) & jnp.isfinite(metrics["grad_norm"])
      old = {name: getattr(state, name) for name in new}
      new = jax.tree.map(lambda ours, theirs: jnp.where(finite, ours, theirs), new, old)
    return state.replace(step=state.step + 1, **new), metrics

  return train_step


def make_eval_step(stage: Stage, *, seed: int, num_train_steps: int) -> EvalStep:
  """Returns `eval_step(state, batch) -> sums`, to be pmapped over `AXIS`.

  The batch's `mask` [b] is 0 for padding, and its `record` [b] the pairs' places in the dataset.
  The sums are over all devices and include "count", so that the means over a whole split are exact.
  Noise is folded from (seed, record): every evaluation sees the same, in batches of any size.
  """

  def eval_step(state: TrainState, batch: Batch) -> Metrics:
    keys = example_keys(seed, 0, batch["record"])
    progress = state.step.astype(jnp.float32) / num_train_steps
    loss = stage.updates[0].loss(
      state.eval_params, batch, Context(keys, train=False, progress=progress)
    )
    values = {"loss": loss.value, **loss.terms}
    sums = {name: jnp.sum(v * batch["mask"]) for name, v in values.items()}
    return jax.lax.psum({**sums, "count": jnp.sum(batch["mask"])}, AXIS)

  return eval_step
