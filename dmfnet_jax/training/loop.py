"""The train loop of both stages: `train_and_evaluate` reads from top to bottom."""

import collections
import contextlib
from collections.abc import Callable, Iterable, Mapping

import flax.jax_utils
import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from etils import epath

from dmfnet_jax.data import builders, images, pipeline
from dmfnet_jax.training import pictures, stages, steps
from dmfnet_jax.training.checkpoint import Checkpointer, to_host
from dmfnet_jax.training.metric_writer import MetricWriter
from dmfnet_jax.training.progress import Report, say
from dmfnet_jax.training.state import (
  TrainState,
  create_train_state,
  make_learning_rate,
  make_optimizer,
)

Array = jax.Array


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | epath.Path) -> TrainState:
  """Trains a stage to `config.num_train_steps`, from the newest checkpoint where there is one.

  Args:
    config: a config as those in `configs/`.
    workdir: the folder for checkpoints, metrics and pictures; it names the run: the same folder
      resumes the same run.

  Returns:
    The final state, on the host.

  Raises:
    UserError: a config that cannot be trained, a missing dataset or Stage I model, or a loss that
      is not finite (with the step and the records of its batch).
  """
  workdir = epath.Path(workdir)
  stages.check_config(config)
  train_source = builders.open_source(config.dataset, config.data_dir, "train")
  eval_source = builders.open_source(config.dataset, config.data_dir, "validation")
  images.make_folder(workdir)

  frozen_params = None
  if config.stage == 2:
    config, frozen_params = stages.load_stage1(config, workdir)
  loss_fn = stages.make_loss(config)
  learning_rate = make_learning_rate(config.optimizer, config.num_train_steps)
  optimizer = make_optimizer(config.optimizer, learning_rate)
  params = stages.init_params(config)
  state = create_train_state(
    params, optimizer, ema=config.ema_decay > 0, frozen_params=frozen_params
  )
  say(f"stage {config.stage}: {parameter_overview.count_parameters(params):,} parameters to train")
  if jax.process_index() == 0:
    overview = parameter_overview.get_parameter_overview(params)
    (workdir / "parameters.txt").write_text(overview + "\n")

  checkpointer = Checkpointer(workdir, config, config.keep_checkpoints)
  data_position = None
  if checkpointer.latest_step() is not None:
    state, data_position = checkpointer.restore(jax.tree.map(np.asarray, state))
  first_step = int(state.step)
  if first_step >= config.num_train_steps:
    say(f"{workdir} is trained already: step {first_step} of {config.num_train_steps}")
    checkpointer.close()
    return state
  if first_step:
    say(f"resuming {workdir} at step {first_step}")

  train_iterator = pipeline.make_train_dataset(
    train_source,
    crop_size=config.crop_size,
    batch_size=config.batch_size,
    seed=config.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    num_workers=config.num_workers,
  )
  if data_position is not None:
    train_iterator.set_state(data_position)
  eval_batches = pipeline.make_eval_batches(
    eval_source,
    batch_size=_round_up(config.eval_batch_size, jax.device_count()),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    crop_size=config.crop_size,
  )

  train_step = jax.pmap(
    steps.make_train_step(
      loss_fn, optimizer, learning_rate, seed=config.seed, ema_decay=config.ema_decay
    ),
    axis_name=steps.AXIS,
    donate_argnums=0,
  )
  eval_step = jax.pmap(steps.make_eval_step(loss_fn, seed=config.seed), axis_name=steps.AXIS)
  draw_samples = pictures.make_sampler(config)
  writer = MetricWriter(workdir, first_step)
  report = Report(config, first_step)
  # Named as the steps' axis, or the second step would be compiled anew for the first one's output.
  state = flax.jax_utils.replicate(state, axis_name=steps.AXIS)

  def due(every: int, step: int) -> bool:
    return step == config.num_train_steps or (every > 0 and step % every == 0)

  say("compiling the step: the first one takes a while")
  # Closed also where a step is refused or interrupted: a checkpoint under way gets written.
  with contextlib.closing(checkpointer), contextlib.closing(report), contextlib.closing(writer):
    pending: tuple[int, Mapping[str, Array], np.ndarray] | None = None
    for step in range(first_step + 1, config.num_train_steps + 1):
      with report.waiting():
        batch = next(train_iterator)
      records = batch.pop("record")
      state, metrics = train_step(state, shard(batch))
      # The step before is looked at while this one computes, so that the device never waits.
      if pending is not None:
        report.add(*pending)
      pending = (step, metrics, records)

      save = due(config.checkpoint_every_steps, step)
      evaluate_now = save or due(config.eval_every_steps, step)
      sample = due(config.sample_every_steps, step)
      if evaluate_now or sample or due(config.log_every_steps, step):
        report.add(step, metrics, records)
        pending = None
      if due(config.log_every_steps, step):
        writer.write_scalars(step, report.summary(step))
      evaluated = None
      if evaluate_now:
        evaluated = evaluate(eval_step, state, eval_batches)
        writer.write_scalars(step, {f"validation/{k}": v for k, v in evaluated.items()})
        report.add_validation(step, evaluated)
      if not (sample or save):
        continue
      host_state = to_host(state)
      if sample and jax.process_index() == 0:
        path = workdir / "samples" / f"step_{step:08d}.png"
        image = draw_samples(host_state, eval_source, path)
        writer.write_image(step, "samples", image)
      if save:
        checkpointer.save(host_state, train_iterator.get_state(), evaluated)
  return to_host(state)


def shard(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Splits a process's batch [b, ...] over its devices: [devices, b / devices, ...]."""
  devices = jax.local_device_count()
  return {k: np.reshape(v, (devices, -1, *v.shape[1:])) for k, v in batch.items()}


def evaluate(
  eval_step: Callable[..., Mapping[str, Array]],
  state: TrainState,
  batches: Iterable[Mapping[str, np.ndarray]],
) -> dict[str, float]:
  """Means of the loss and its terms over all validation pairs, on all processes."""
  totals: collections.Counter[str] = collections.Counter()
  for batch in batches:
    sums = eval_step(state, shard(batch))
    totals.update({k: float(np.asarray(v.addressable_shards[0].data)[0]) for k, v in sums.items()})
  count = totals.pop("count")
  return {name: total / count for name, total in totals.items()}


def _round_up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
