"""Checkpoints of a training run, through Orbax.

A checkpoint holds the training state, the data position and the config. Networks that a stage
keeps as they are never change, so they are written once, as a model file beside the checkpoints: a
workdir can be resumed, used and moved without that of the earlier stage.
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental.multihost_utils import sync_global_devices
from orbax.checkpoint import checkpoint_managers as policies

from dmfnet_jax import methods
from dmfnet_jax.errors import UserError, one_line
from dmfnet_jax.io import paths
from dmfnet_jax.methods.method import select
from dmfnet_jax.training import distributed, resumption
from dmfnet_jax.training.progress import say
from dmfnet_jax.training.state import TrainState
from dmfnet_jax.weights import files, workdir

# What cannot be read is moved here, out of the way of a new checkpoint of the same step.
_DAMAGED = "damaged_checkpoints"


class Checkpointer:
  """Saves (asynchronously) and restores a run; keeps the newest `keep` and the best.

  Every process has one and calls it in the same order; process 0 writes. The config is saved with
  every checkpoint.
  """

  def __init__(self, run_folder: epath.Path, config: ml_collections.ConfigDict, keep: int):
    self._workdir = run_folder
    self._folder = workdir.checkpoints(run_folder)
    self._config = json.loads(config.to_json())
    options = ocp.CheckpointManagerOptions(
      best_fn=lambda metrics: metrics["loss"],
      best_mode="min",
      cleanup_tmp_directories=True,  # what a killed run was writing; process 0 removes it
      preservation_policy=policies.AnyPreservationPolicy(
        [
          policies.LatestN(keep),
          policies.BestN(
            get_metric_fn=lambda metrics: -metrics["loss"],
            n=1,
            keep_checkpoints_without_metrics=False,
          ),
        ]
      ),
    )
    with self._writing():
      self._put_aside_damaged_metrics()
      self._manager = ocp.CheckpointManager(self._folder, options=options)

  def save(
    self, state: TrainState, data_position: Mapping[str, Any], metrics: Mapping[str, float] | None
  ) -> None:
    """Starts to save what is on the host.

    Args:
      state: the state; its frozen networks are left out.
      data_position: the data pipeline's, JSON-able.
      metrics: validation means with "loss", by which the best is kept; None where not evaluated.

    Raises:
      UserError: this or the checkpoint before cannot be written.
    """
    with self._writing():
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state.replace(frozen={})),
          data=ocp.args.JsonSave(dict(data_position)),
          config=ocp.args.JsonSave(self._config),
        ),
        metrics=None if metrics is None else {k: float(v) for k, v in metrics.items()},
        force=True,  # the loop decides when
      )

  def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """Restores the newest checkpoint that can be read; says which ones cannot.

    Newer ones are moved aside, but only then: where none can be read, the cause may be passing.
    The frozen networks are the given state's, and so is the structure.

    Returns:
      The state, on the host, and the data position; None where there is no checkpoint.

    Raises:
      UserError: the checkpoint is of another config, or none of those that are there can be read.
    """
    steps = distributed.values_of_process_0(sorted(self._manager.all_steps(), reverse=True))
    for index, step in enumerate(steps):
      restored = self._read(step, state)
      if restored is not None:
        if index:
          self._put_aside(steps[:index])
        return restored
    if steps:
      raise UserError(
        f"none of the checkpoints in {self._folder} can be read: try again, or "
        "move this folder away to start anew"
      )
    return None

  def _read(self, step: int, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """Reads a checkpoint; None where it is damaged, for any process."""
    read = functools.partial(
      workdir.read_checkpoint, self._workdir, step, "the one before it", distributed.all_agree
    )
    config = read(config=ocp.args.JsonRestore())
    if config is None:
      return None
    theirs = config["config"]
    resumption.refuse_other_config(self._config, theirs)
    template = state.replace(frozen={})
    is_old = "method" not in theirs
    how = ocp.args.StandardRestore(None if is_old else template)
    restored = read(state=how, data=ocp.args.JsonRestore())
    if restored is None:
      return None
    found = restored["state"]
    if is_old:
      found = _from_first_version(workdir.by_network(found, dict(theirs)), template)
    return found.replace(frozen=state.frozen), restored["data"]

  def _put_aside(self, steps: Sequence[int]) -> None:
    if jax.process_index() == 0:
      with self._writing():
        for step in steps:
          self._move_to_damaged(self._folder / str(step), str(step))
    sync_global_devices(_DAMAGED)
    self._manager.reload()

  def _put_aside_damaged_metrics(self) -> None:
    """Moves metrics that cannot be read out of Orbax's way: it would read them all, or nothing."""
    folder = self._folder
    if jax.process_index() == 0 and folder.is_dir():
      for path in folder.iterdir():
        try:
          workdir.read_metrics(path)
        except ValueError as error:
          say(f"warning: cannot read the metrics of the checkpoint {path} ({error}): left out")
          self._move_to_damaged(path / workdir.METRICS, f"{path.name}_{workdir.METRICS}")
    sync_global_devices(workdir.METRICS)

  def _move_to_damaged(self, path: epath.Path, name: str) -> None:
    folder = self._workdir / _DAMAGED
    folder.mkdir(parents=True, exist_ok=True)
    paths.move_folder(path, folder / f"{name}_{sum(1 for _ in folder.iterdir())}")

  def check(self) -> None:
    """Raises a `UserError` where a save that was under way has failed; does not wait for it."""
    if not self._manager.is_saving_in_progress():
      with self._writing():
        self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for pending saves and ends; a `UserError` where they cannot be written."""
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except jax.errors.JaxRuntimeError:  # another process is lost: that is no matter of writing
      raise
    # TensorStore reports a full disk as a ValueError, Orbax's threads as a RuntimeError.
    except (OSError, ValueError, RuntimeError) as error:
      reason = one_line(error)[:300]
      raise UserError(
        f"cannot write a checkpoint to {self._workdir}: {reason}. The checkpoints written before "
        "are intact: make room, and the same command goes on from there"
      ) from error


def to_host(state: TrainState) -> TrainState:
  """Takes the first replica of a pmapped state to host arrays.

  Every process holds a whole replica, so no communication is needed.
  """
  return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], state)


def write_model(run_folder: epath.Path, trained_on: Sequence[str]) -> None:
  """Writes a run's best checkpoint as `model.safetensors`, in half precision, where it can fuse.

  The file says what kinds of pairs the model was `trained_on`, see `weights.files`. Every process
  calls it, since they read together; process 0 writes.

  Raises:
    UserError: there is no checkpoint, or the file cannot be written.
  """
  best = distributed.values_of_process_0(workdir.best_first(run_folder))
  params, config = workdir.load_trained(run_folder, best, distributed.all_agree)
  networks = methods.get(config["method"]).networks
  if any(name not in params for name in networks):
    return
  path = run_folder / workdir.MODEL_FILE
  if jax.process_index() == 0:
    networks_to_fuse = select(params, networks)
    files.save_weights(path, networks_to_fuse, config, np.float16, trained_on=trained_on)
    say(f"the model of least validation loss: {path}")
  sync_global_devices(workdir.MODEL_FILE)


def _from_first_version(found: Mapping[str, Any], template: TrainState) -> TrainState:
  """A state as states are now: one network's trees are one level deeper, in the same order."""
  fields = {}
  for name in ("step", "params", "opt_state", "ema_params"):
    if found.get(name) is not None:
      structure = jax.tree.structure(getattr(template, name))
      fields[name] = jax.tree.unflatten(structure, jax.tree.leaves(found[name]))
  return template.replace(**fields)
