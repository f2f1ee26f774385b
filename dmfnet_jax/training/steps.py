"""Train and evaluation steps of both stages: pure functions, to be pmapped over `AXIS`.

A batch is a dict of arrays, on each device: `a` and `b` [b, H, W, 1] float32 in [-1, 1] and
`index` [b] int32, each pair's position in the *global* batch. All randomness is folded from (seed,
step, index), so it belongs to the example: the same model is trained on any number of devices.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from dmfnet_jax import losses
from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import NoiseSchedule, sample_noise_level
from dmfnet_jax.inference import features
from dmfnet_jax.models import FusionHead, UNet
from dmfnet_jax.training.state import Params, TrainState

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[TrainState, Batch], Metrics]
# (trained params, frozen params, batch, keys [b], train) -> (loss [b], terms {name: [b]})
LossFn = Callable[[Params, Params, Batch, Array, bool], tuple[Array, Metrics]]

AXIS = "data"


def example_keys(seed: int, step: Array | int, index: Array) -> Array:
  """One PRNG key an example, folded from (seed, step, position in the global batch)."""
  key = jax.random.fold_in(gaussian.make_key(seed), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def make_stage1_loss(unet: UNet, schedule: NoiseSchedule, timestep_range: Sequence[int]) -> LossFn:
  """Stage I: both images of a pair are noised, and the UNet predicts the clean ones.

  Args:
    unet: the UNet.
    schedule: the noise schedule of training.
    timestep_range: the first and the last step t, inclusive; t is drawn uniformly per image.
  """
  first, last = timestep_range

  def loss_fn(params, frozen_params, batch, keys, train):
    del frozen_params
    x_start = jnp.concatenate([batch["a"], batch["b"]])
    keys = jax.vmap(lambda key: jax.random.split(key, 2), out_axes=1)(keys).reshape(-1)
    t_keys, level_keys, noise_keys, dropout_keys = jax.vmap(
      lambda key: jax.random.split(key, 4), out_axes=1
    )(keys)
    t = jax.vmap(lambda key: jax.random.randint(key, (), first, last + 1))(t_keys)
    noise_level = jax.vmap(sample_noise_level, (None, 0, 0))(schedule, level_keys, t)
    noise = gaussian.normal_per_example(noise_keys, x_start.shape[1:])
    x_noisy = gaussian.q_sample(x_start, noise_level, noise)
    predicted, _ = unet.apply(
      {"params": params}, x_noisy, noise_level, dropout_keys if train else None
    )
    loss = losses.denoising_loss(x_start, predicted)
    loss_a, loss_b = jnp.split(loss, 2)
    return (loss_a + loss_b) / 2, {"mse_a": loss_a, "mse_b": loss_b}

  return loss_fn


def make_stage2_loss(
  unet: UNet,
  head: FusionHead,
  schedule: NoiseSchedule,
  timesteps: Sequence[int],
  source: str,
  noise: bool,
  weights: dict[str, float],
) -> LossFn:
  """Stage II: the head fuses the frozen UNet's features.

  Args:
    unet: the frozen UNet.
    head: the head that is trained.
    schedule: the noise schedule of the features (linear in the paper).
    timesteps: the steps whose features are used, ascending.
    source: "decoder" or "encoder" features.
    noise: whether the sources are noised, see `features.noise_sources`.
    weights: keyword arguments of `losses.fusion_loss`.
  """

  def loss_fn(params, frozen_params, batch, keys, train):
    del train  # the head has no dropout and the UNet is in eval mode
    noisy = features.noise_sources(schedule, timesteps, batch["a"], batch["b"], keys, noise=noise)
    features_a, features_b = jax.lax.stop_gradient(
      features.extract_features(unet, frozen_params, *noisy, source=source)
    )
    sources = batch["a"], batch["b"]
    fused = head.apply({"params": params}, features_a, features_b, sources)
    return losses.fusion_loss(fused, batch["a"], batch["b"], **weights)

  return loss_fn


def make_train_step(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  *,
  seed: int,
  ema_decay: float = 0.0,
  skip_nonfinite: bool = False,
) -> TrainStep:
  """Returns `train_step(state, batch) -> (state, metrics)`, to be pmapped over `AXIS`.

  Args:
    loss_fn: the loss of a stage.
    optimizer: what turns gradients into updates.
    learning_rate: of the step, for the metrics; the optimizer has its own.
    seed: of noise and dropout.
    ema_decay: of the moving average, where the state has one.
    skip_nonfinite: leave all but the step's number as it was where the loss or the gradient is not
      finite; the metrics tell.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    keys = example_keys(seed, state.step, batch["index"])

    def mean_loss(params: Params) -> tuple[Array, Metrics]:
      loss, terms = loss_fn(params, state.frozen_params, batch, keys, True)
      return jnp.mean(loss), {name: jnp.mean(term) for name, term in terms.items()}

    (loss, terms), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    # One average of everything, so that XLA can combine it into few collectives.
    grads, loss, terms = jax.lax.pmean((grads, loss, terms), AXIS)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
      ema_params = optax.incremental_update(params, ema_params, 1 - ema_decay)
    metrics = {
      "loss": loss,
      **terms,
      "grad_norm": optax.global_norm(grads),
      "learning_rate": learning_rate(state.step),
    }
    new = (params, opt_state, ema_params)
    if skip_nonfinite:
      finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
      old = (state.params, state.opt_state, state.ema_params)
      new = jax.tree.map(lambda ours, theirs: jnp.where(finite, ours, theirs), new, old)
    params, opt_state, ema_params = new
    new_state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema_params
    )
    return new_state, metrics

  return train_step


def make_eval_step(loss_fn: LossFn, *, seed: int) -> EvalStep:
  """Returns `eval_step(state, batch) -> sums`, to be pmapped over `AXIS`.

  The batch's `mask` [b] is 0 for padding, and its `record` [b] the pairs' places in the dataset.
  The sums are over all devices and include "count", so that the means over a whole split are exact.
  Noise is folded from (seed, record): every evaluation sees the same, in batches of any size.
  """

  def eval_step(state: TrainState, batch: Batch) -> Metrics:
    keys = example_keys(seed, 0, batch["record"])
    loss, terms = loss_fn(state.eval_params, state.frozen_params, batch, keys, False)
    sums = {name: jnp.sum(v * batch["mask"]) for name, v in {"loss": loss, **terms}.items()}
    return jax.lax.psum({**sums, "count": jnp.sum(batch["mask"])}, AXIS)

  return eval_step
