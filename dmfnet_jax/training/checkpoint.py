"""Checkpoints of a training run, through Orbax.

A checkpoint holds the training state, the data position and the config. Stage II's frozen UNet
never changes, so it is written once, as a model file beside the checkpoints: a Stage II workdir
can be resumed, used and moved without its Stage I workdir.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from dmfnet_jax import weights
from dmfnet_jax.errors import UserError
from dmfnet_jax.training.state import TrainState

STAGE1_FILE = "stage1.safetensors"
_CHECKPOINTS = "checkpoints"


class Checkpointer:
  """Saves (asynchronously) and restores a run; keeps the newest few and the best.

  Args:
    workdir: the run's folder.
    config: the run's config, saved with every checkpoint.
    keep: how many of the newest checkpoints are kept, besides the one of least validation loss.
  """

  def __init__(self, workdir: epath.Path, config: ml_collections.ConfigDict, keep: int):
    self._config = json.loads(config.to_json())
    policies = checkpoint_managers
    options = ocp.CheckpointManagerOptions(
      best_fn=lambda metrics: metrics["loss"],
      best_mode="min",
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
    self._manager = ocp.CheckpointManager(_checkpoints(workdir), options=options)

  def save(
    self, state: TrainState, data_position: Mapping[str, Any], metrics: Mapping[str, float] | None
  ) -> None:
    """Starts to save; `state` is on the host and its frozen parameters are left out.

    Args:
      state: the state, host arrays.
      data_position: the data pipeline's position, JSON-able.
      metrics: validation means with "loss", by which the best is kept; None where not evaluated.
    """
    self._manager.save(
      int(state.step),
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state.replace(frozen_params=None)),
        data=ocp.args.JsonSave(dict(data_position)),
        config=ocp.args.JsonSave(self._config),
      ),
      metrics=None if metrics is None else {k: float(v) for k, v in metrics.items()},
    )

  def latest_step(self) -> int | None:
    """The newest checkpoint's step, or None before the first."""
    return self._manager.latest_step()

  def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Restores the newest checkpoint.

    Args:
      state: a state of the right structure, on the host; its frozen parameters are kept.

    Returns:
      The state (host arrays) and the data position.

    Raises:
      UserError: the checkpoint is of another model or optimizer.
    """
    step = self._manager.latest_step()
    saved = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
    ours, theirs = _structure(self._config), _structure(saved["config"])
    for field, value in ours.items():
      if theirs[field] != value:
        raise UserError(
          f"cannot resume: the checkpoint has config.{field} = {theirs[field]}, this run has "
          f"{value}; use the same, or start a new workdir"
        )
    template = state.replace(frozen_params=None)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(template), data=ocp.args.JsonRestore()
      ),
    )
    return restored["state"].replace(frozen_params=state.frozen_params), restored["data"]

  def wait(self) -> None:
    """Waits until everything that was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for pending saves and ends."""
    self._manager.close()


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
  """Loads the best checkpoint of a training workdir (of least validation loss).

  Args:
    workdir: a workdir of Stage I or Stage II.

  Returns:
    The parameters, {"unet"} or {"unet", "fusion_head"} (the moving average where the run kept
    one), and the model config.

  Raises:
    UserError: the folder holds no checkpoint.
  """
  directory = _checkpoints(workdir)
  manager = None
  if directory.is_dir():
    options = ocp.CheckpointManagerOptions(
      best_fn=lambda metrics: metrics["loss"], best_mode="min", read_only=True
    )
    manager = ocp.CheckpointManager(directory, options=options)
  step = manager.best_step() if manager else None
  if manager is None or step is None:
    raise UserError(f"no checkpoint in {workdir}: give the --workdir of a training run")
  restored = manager.restore(
    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(), config=ocp.args.JsonRestore())
  )
  state, config = restored["state"], restored["config"]
  trained = state.get("ema_params") or state["params"]
  trained = jax.tree.map(np.asarray, trained)
  if config["stage"] == 1:
    return {"unet": trained}, model_config(config)
  frozen, stage1_config = weights.read_weights(workdir / STAGE1_FILE)
  params = {"unet": frozen["unet"], "fusion_head": trained}
  return params, {**model_config(config), "unet": stage1_config["unet"]}


def _structure(config: Mapping[str, Any]) -> dict[str, Any]:
  """What a training state's arrays follow from; all else may change when a run is resumed."""
  sections = ("stage", "unet", "fusion_head", "features")
  return {key: config.get(key) for key in sections} | {
    "optimizer.name": config["optimizer"]["name"],
    "optimizer.clip_norm > 0": config["optimizer"]["clip_norm"] > 0,
    "ema_decay > 0": config["ema_decay"] > 0,
  }


def _checkpoints(workdir: epath.Path) -> epath.Path:
  """The folder of a run's checkpoints; absolute, as Orbax wants it (`gs://` addresses are)."""
  folder = workdir / _CHECKPOINTS
  return folder if folder.is_absolute() else folder.absolute()
