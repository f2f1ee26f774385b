"""Checkpoints of a training run, through Orbax.

A checkpoint holds the training state, the data position and the config. Stage II's frozen UNet
never changes, so it is written once, as a model file beside the checkpoints: a Stage II workdir
can be resumed, used and moved without its Stage I workdir.
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
from orbax.checkpoint import checkpoint_managers

from dmfnet_jax import weights
from dmfnet_jax.errors import UserError
from dmfnet_jax.training import distributed, resumption
from dmfnet_jax.training.progress import say
from dmfnet_jax.training.state import TrainState

STAGE1_FILE = "stage1.safetensors"
MODEL_FILE = "model.safetensors"
_CHECKPOINTS = "checkpoints"
_METRICS = "metrics"  # Orbax's names, of the item and of the file in it
# What cannot be read is moved here, out of the way of a new checkpoint of the same step.
_DAMAGED = "damaged_checkpoints"


class Checkpointer:
  """Saves (asynchronously) and restores a run; keeps the newest few and the best.

  Every process has one and calls it in the same order; process 0 writes.

  Args:
    workdir: the run's folder.
    config: the run's config, saved with every checkpoint.
    keep: how many of the newest checkpoints are kept, besides the one of least validation loss.
  """

  def __init__(self, workdir: epath.Path, config: ml_collections.ConfigDict, keep: int):
    self._workdir = workdir
    self._config = json.loads(config.to_json())
    policies = checkpoint_managers
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
      self._manager = ocp.CheckpointManager(_checkpoints(workdir), options=options)

  def save(
    self, state: TrainState, data_position: Mapping[str, Any], metrics: Mapping[str, float] | None
  ) -> None:
    """Starts to save; `state` is on the host and its frozen parameters are left out.

    Args:
      state: the state, host arrays.
      data_position: the data pipeline's position, JSON-able.
      metrics: validation means with "loss", by which the best is kept; None where not evaluated.

    Raises:
      UserError: this or the checkpoint before cannot be written.
    """
    with self._writing():
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state.replace(frozen_params=None)),
          data=ocp.args.JsonSave(dict(data_position)),
          config=ocp.args.JsonSave(self._config),
        ),
        metrics=None if metrics is None else {k: float(v) for k, v in metrics.items()},
        force=True,  # the loop decides when
      )

  def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """Restores the newest checkpoint that can be read; says which ones cannot.

    Newer ones are moved aside, but only then: where none can be read, the cause may be passing.

    Args:
      state: a state of the right structure, on the host; its frozen parameters are kept.

    Returns:
      The state (host arrays) and the data position; None where there is no checkpoint.

    Raises:
      UserError: the checkpoint is of another config, or none of those that are there can be read.
    """
    steps = distributed.same_everywhere(sorted(self._manager.all_steps(), reverse=True))
    for index, step in enumerate(steps):
      restored = self._read(step, state)
      if restored is not None:
        self._put_aside(steps[:index])
        return restored
    if steps:
      raise UserError(
        f"none of the checkpoints in {_checkpoints(self._workdir)} can be read: try again, or "
        "move this folder away to start anew"
      )
    return None

  def _read(self, step: int, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """Reads a checkpoint; None where it is damaged, for any process."""
    read = functools.partial(_read_items, _checkpoints(self._workdir), step, "the one before it")
    config = read(config=ocp.args.JsonRestore())
    if config is None:
      return None
    resumption.check_same(self._config, config["config"])
    template = state.replace(frozen_params=None)
    restored = read(state=ocp.args.StandardRestore(template), data=ocp.args.JsonRestore())
    if restored is None:
      return None
    return restored["state"].replace(frozen_params=state.frozen_params), restored["data"]

  def _put_aside(self, steps: Sequence[int]) -> None:
    if not steps:
      return
    if jax.process_index() == 0:
      with self._writing():
        for step in steps:
          self._move_to_damaged(_checkpoints(self._workdir) / str(step), str(step))
    distributed.wait_for_all(_DAMAGED)
    self._manager.reload()

  def _put_aside_damaged_metrics(self) -> None:
    """Moves metrics that cannot be read out of Orbax's way: it would read them all, or nothing."""
    folder = _checkpoints(self._workdir)
    if jax.process_index() == 0 and folder.is_dir():
      for path in folder.iterdir():
        try:
          _read_metrics(path)
        except ValueError as error:
          say(f"warning: cannot read the metrics of the checkpoint {path} ({error}): left out")
          self._move_to_damaged(path / _METRICS, f"{path.name}_{_METRICS}")
    distributed.wait_for_all(_METRICS)

  def _move_to_damaged(self, path: epath.Path, name: str) -> None:
    folder = self._workdir / _DAMAGED
    folder.mkdir(parents=True, exist_ok=True)
    path.rename(folder / f"{name}_{sum(1 for _ in folder.iterdir())}")

  def check(self) -> None:
    """Looks whether a save that was under way has failed, without waiting for it.

    Raises:
      UserError: it could not be written.
    """
    if not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Waits until everything that was saved is on disk.

    Raises:
      UserError: it cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for pending saves and ends.

    Raises:
      UserError: they cannot be written.
    """
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
      reason = " ".join(str(error).split())[:300]
      raise UserError(
        f"cannot write a checkpoint to {self._workdir}: {reason}. The checkpoints written before "
        "are intact: make room, and the same command goes on from there"
      ) from error


def to_host(state: TrainState) -> TrainState:
  """Takes the first replica of a pmapped state to host arrays.

  Every process holds a whole replica, so no communication is needed.
  """
  return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], state)


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a training config that a model file carries."""
  keys = ("unet", "fusion_head", "features")
  return {key: config[key] for key in keys if key in config}


def load_trained(workdir: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Loads the best checkpoint of a training workdir (of least validation loss) that can be read.

  In a run of several processes all of them must call it.

  Args:
    workdir: a workdir of Stage I or Stage II.

  Returns:
    The parameters, {"unet"} or {"unet", "fusion_head"} (the moving average where the run kept
    one), and the model config.

  Raises:
    UserError: the folder holds no checkpoint, or none that can be read.
  """
  folder = _checkpoints(workdir)
  steps = distributed.same_everywhere(_best_first(folder))
  if not steps:
    raise UserError(f"no checkpoint in {workdir}: give the --workdir of a training run")
  for step in steps:
    items = {"state": ocp.args.StandardRestore(), "config": ocp.args.JsonRestore()}
    restored = _read_items(folder, step, "another one", **items)
    if restored is not None:
      break
  else:
    raise UserError(f"none of the checkpoints in {folder} can be read")
  state, config = restored["state"], restored["config"]
  trained = state.get("ema_params") or state["params"]
  trained = jax.tree.map(np.asarray, trained)
  if config["stage"] == 1:
    return {"unet": trained}, model_config(config)
  frozen, stage1_config = weights.read_weights(workdir / STAGE1_FILE)
  params = {"unet": frozen["unet"], "fusion_head": trained}
  return params, {**model_config(config), "unet": stage1_config["unet"]}


def write_model(workdir: epath.Path) -> epath.Path:
  """Writes a Stage II run's best checkpoint as a model file, in half precision.

  Every process calls it, since Orbax's processes read together; process 0 writes.

  Args:
    workdir: a workdir of Stage II.

  Returns:
    The path of the file, `model.safetensors` in the workdir.

  Raises:
    UserError: there is no checkpoint, or the file cannot be written.
  """
  params, config = load_trained(workdir)
  if jax.process_index() == 0:
    weights.save_weights(workdir / MODEL_FILE, params, config, np.float16)
  distributed.wait_for_all(MODEL_FILE)
  return workdir / MODEL_FILE


def _read_items(folder: epath.Path, step: int, fallback: str, **items: Any) -> Any:
  """Reads a checkpoint's items; None where one is missing or damaged, for any process.

  Each process reads by itself, as if it were alone: where one of them cannot, it would leave the
  others waiting at a barrier of Orbax's.

  Args:
    folder: of the run's checkpoints.
    step: which one.
    fallback: what is tried next, for the warning.
    **items: what to read, and how.
  """
  here = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
  )
  restored, reason = None, ""
  try:
    handler = ocp.CompositeCheckpointHandler(
      composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
      restored = reader.restore(folder / str(step), args=ocp.args.Composite(**items))
    missing = [name for name in items if restored[name] is None]
    reason = f"it has no {missing[0]}" if missing else ""
  # Damage shows in as many ways as there are readers: JSON, Zarr, OCDBT, Orbax's own files.
  except Exception as error:
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
  if distributed.agree(not reason):
    return restored
  reason = reason or "another process cannot"
  say(f"warning: cannot read the checkpoint {folder / str(step)} ({reason}): trying {fallback}")
  return None


def _best_first(folder: epath.Path) -> list[int]:
  """The steps of a run's checkpoints: by validation loss, then the newest without one."""
  if not folder.is_dir():
    return []
  losses = {}
  for path in folder.iterdir():
    if path.name.isdecimal():  # others are being written
      losses[int(path.name)] = np.inf
      with contextlib.suppress(ValueError):
        losses[int(path.name)] = (_read_metrics(path) or {}).get("loss", np.inf)
  return sorted(losses, key=lambda step: (losses[step], -step))


def _read_metrics(checkpoint: epath.Path) -> dict[str, float] | None:
  """The validation means that were saved with a checkpoint; None where it was not evaluated.

  Raises:
    ValueError: they are damaged.
  """
  path = checkpoint / _METRICS / _METRICS
  return json.loads(path.read_text()) if path.exists() else None


def _checkpoints(workdir: epath.Path) -> epath.Path:
  """The folder of a run's checkpoints; absolute, as Orbax wants it (`gs://` addresses are)."""
  folder = workdir / _CHECKPOINTS
  return folder if folder.is_absolute() else folder.absolute()
