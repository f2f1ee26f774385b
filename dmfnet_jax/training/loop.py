"""The train loop of every stage: `train_and_evaluate` reads from top to bottom."""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import flax.jax_utils
import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from etils import epath
from jax.experimental.multihost_utils import sync_global_devices

from dmfnet_jax.data import mixture, pipeline
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths
from dmfnet_jax.methods.method import batch_fields
from dmfnet_jax.training import distributed, pictures, setup, steps
from dmfnet_jax.training.checkpoint import Checkpointer, to_host, write_model
from dmfnet_jax.training.metric_writer import MetricWriter
from dmfnet_jax.training.nonfinite import FiniteGuard, NonFiniteError
from dmfnet_jax.training.progress import Profiler, Report, say
from dmfnet_jax.training.state import TrainState

Array = jax.Array


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | epath.Path) -> TrainState:
  """Trains a stage to `config.num_train_steps`, from the newest checkpoint where there is one.

  Args:
    config: a config as those in `configs/`.
    workdir: the folder for checkpoints, metrics and pictures, by which a run is resumed.

  Returns:
    The final state, on the host.

  Raises:
    KeyboardInterrupt: Ctrl-C, at the first after the step was saved.
    UserError: a config that cannot be trained or differs from the checkpoint's, a missing dataset
      or earlier stage, a workdir that cannot be written, or a loss that is not finite (with the
      step and the records of its batch).
  """
  workdir = epath.Path(workdir)
  setup.check_config(config)
  train_source = mixture.open_source(config.dataset, config.data_dir, "train")
  eval_source = mixture.open_source(config.dataset, config.data_dir, "validation")
  paths.make_folder(workdir)

  run = setup.set_up(config, workdir)
  config = run.config
  if stored := run.stage.stored:
    train_source, eval_source = (mixture.renamed(x, stored) for x in (train_source, eval_source))
  state = setup.init_state(run)
  count = parameter_overview.count_parameters(state.params)
  say(f"stage {config.stage}: {count:,} parameters to train")
  _write_overview(workdir, state)

  checkpointer = Checkpointer(workdir, config, config.keep_checkpoints)
  restored = checkpointer.restore(jax.tree.map(np.asarray, state))
  if restored is not None:
    state, data_position = restored
  first_step = int(state.step)
  if first_step >= config.num_train_steps:
    say(f"{workdir} is trained already: step {first_step} of {config.num_train_steps}")
    checkpointer.close()
    write_model(workdir, mixture.kinds(config.dataset))
    return state
  if first_step:
    say(f"resuming {workdir} at step {first_step}")
  else:
    state = setup.begin(run, state)

  wanted = {
    "fields": {field.name: field.channels for field in batch_fields(run.method, run.stage)},
    "space": run.method.space,
    "size": run.method.size(config),
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
  }
  train_iterator = pipeline.make_train_dataset(
    train_source,
    crop_size=config.crop_size,
    batch_size=config.batch_size,
    seed=config.seed,
    flip=config.flip,
    num_workers=config.num_workers,
    **wanted,
  )
  if restored is not None:
    train_iterator.set_state(data_position)
  devices = setup.choose_devices(config.batch_size)
  if idle := setup.tell_idle(config.batch_size, devices):
    say(idle)
  eval_batches = {
    name: pipeline.make_eval_batches(
      part,
      batch_size=-(-config.eval_batch_size // len(devices)) * len(devices),  # rounded up
      crop_size=config.crop_size,
      **wanted,
    )
    for name, part in mixture.parts(eval_source).items()
  }

  train_step = setup.pmap_train_step(run, devices)
  eval_step = jax.pmap(
    steps.make_eval_step(run.stage, seed=config.seed, num_train_steps=config.num_train_steps),
    axis_name=steps.AXIS,
    devices=devices,
  )
  draw_samples = pictures.make_sampler(run)
  guard = FiniteGuard(config, workdir, train_source)
  # Named as the steps' axis, or the second step would be compiled anew for the first one's output.
  here = [device for device in devices if device.process_index == jax.process_index()]
  state = flax.jax_utils.replicate(state, here, axis_name=steps.AXIS)

  def due(every: int, step: int) -> bool:
    """Every `every` steps and at the last; zero: at the last only."""
    return step == config.num_train_steps or (every > 0 and step % every == 0)

  say("compiling the step: the first one takes a while")
  with (
    distributed.preemption() as preempted,  # first: a second signal finds it until all is written
    _closing_checkpoints(checkpointer),
    contextlib.closing(train_iterator),
    contextlib.closing(Report(config, first_step, guard.passes)) as report,
    contextlib.closing(MetricWriter(workdir, first_step)) as writer,
    contextlib.closing(Profiler(workdir, first_step, config.profile_steps)) as profiler,
  ):
    pending: tuple[int, Mapping[str, Array], np.ndarray] | None = None
    for step in range(first_step + 1, config.num_train_steps + 1):
      with report.waiting():
        batch = next(train_iterator)
      records = batch.pop("record")
      profiler.before(step)
      state, metrics = train_step(state, shard(batch, len(here)))
      # The step before is looked at while this one computes, so that the device never waits.
      if pending is not None:
        report.add(*pending)
      pending = (step, metrics, records)
      profiler.after(step, metrics)

      # The last step ends the run anyway, and with its evaluation.
      stop = preempted.reached() and step < config.num_train_steps
      save = due(config.checkpoint_every_steps, step) or stop
      # A machine that is being taken away has no time left for more than the checkpoint.
      evaluate_now = not stop and (save or due(config.eval_every_steps, step))
      sample = not stop and due(config.sample_every_steps, step)
      log = due(config.log_every_steps, step) or stop
      if save or evaluate_now or sample or log:
        report.add(step, metrics, records)
        pending = None
      if log:
        writer.write_scalars(step, report.summary(step))
        checkpointer.check()
      evaluated = None
      if evaluate_now:
        # The last evaluation decides which checkpoint is the model: it is not left out.
        may_stop = step < config.num_train_steps
        ask = preempted.reached if may_stop else lambda: False
        by_part = evaluate(eval_step, state, eval_batches, ask)
        if by_part is None:
          stop = save = True
          sample = False
          if not log:
            writer.write_scalars(step, report.summary(step))
        else:
          evaluated = mixture.mean(by_part, eval_source)
          guard.check_validation(step, evaluated)
          writer.write_scalars(step, {f"validation/{k}": v for k, v in evaluated.items()})
      if not (sample or save):
        continue
      host_state = to_host(state)
      if sample and jax.process_index() == 0:
        path = workdir / "samples" / f"step_{step:08d}.png"
        image = draw_samples(host_state, eval_source, path)
        if image is not None:
          writer.write_image(step, "samples", image)
      if save:
        writer.flush()
        checkpointer.save(host_state, train_iterator.get_state(), evaluated)
      if stop:
        say(f"told to stop: saved step {step}; the same command goes on from there")
        break
  if step == config.num_train_steps:
    write_model(workdir, mixture.kinds(config.dataset))
  elif preempted.by_ctrl_c():
    raise KeyboardInterrupt  # what was to come after the training must not
  return to_host(state)


@contextlib.contextmanager
def _closing_checkpoints(checkpointer: Checkpointer) -> Iterator[None]:
  """Gets a checkpoint that is under way written, also where the run ends by an error.

  But not where that error may be this process's alone: the others would not come to the save.
  """
  try:
    yield
  except OSError as error:
    if jax.process_count() == 1:
      with contextlib.suppress(UserError):  # most likely it has the same cause
        checkpointer.close()
    raise UserError(f"{error}; the checkpoints written before are intact") from error
  except BaseException as error:
    if jax.process_count() == 1 or isinstance(error, NonFiniteError):
      checkpointer.close()
    raise
  checkpointer.close()


def _write_overview(workdir: epath.Path, state: TrainState) -> None:
  """Lists the parameters in a file, by which every process also knows that it sees the workdir."""
  path = workdir / "parameters.txt"
  if jax.process_index() == 0:
    overview = parameter_overview.get_parameter_overview(state.params)
    paths.write_bytes(path, f"{overview}\n".encode())
  sync_global_devices("parameters.txt")
  if not distributed.all_agree(path.exists()):
    raise UserError(f"not every process sees {workdir}: give a folder that all hosts share")


def shard(batch: Mapping[str, np.ndarray], devices: int) -> dict[str, np.ndarray]:
  """Splits a process's batch [b, ...] over its devices: [devices, b / devices, ...]."""
  return {k: np.reshape(v, (devices, -1, *v.shape[1:])) for k, v in batch.items()}


def evaluate(
  eval_step: Callable[..., Mapping[str, Array]],
  state: TrainState,
  batches: Mapping[str, Iterable[Mapping[str, np.ndarray]]],
  stop: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, float]] | None:
  """Means of the loss and its terms over each dataset's validation pairs, on all processes.

  None where `stop`, which is asked before every batch, says so.
  """
  means = {}
  for dataset, its_batches in batches.items():
    totals: collections.Counter[str] = collections.Counter()
    for batch in its_batches:
      if stop():
        return None
      sums = eval_step(state, shard(batch, len(state.step.addressable_shards)))
      here = {k: float(np.asarray(v.addressable_shards[0].data)[0]) for k, v in sums.items()}
      totals.update(here)
    count = totals.pop("count")
    means[dataset] = {name: total / count for name, total in totals.items()}
  return means
