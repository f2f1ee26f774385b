"""What a training workdir holds, read without the training: checkpoints and frozen networks.

`training.checkpoint` writes it. A checkpoint has the items `state`, `data` and `config`; networks
that a stage keeps as they are never change and stand once beside the checkpoints, a model file for
each config field that they come from.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dmfnet_jax import methods
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths
from dmfnet_jax.messages import say
from dmfnet_jax.methods.method import STATS, Params, join
from dmfnet_jax.weights import files

MODEL_FILE = "model.safetensors"
_CHECKPOINTS = "checkpoints"
METRICS = "metrics"  # Orbax's name, of the item and of the file in it
LOG = "metrics.jsonl"
LOG_PARTS = "metrics_parts"  # what follows the file in an object store, which appends nothing
_FROZEN = "frozen_"
# The name of `start`'s copy in workdirs of the first version.
_OLD_START = "stage1.safetensors"


def checkpoints(workdir: Any) -> Any:
  """The folder of a run's checkpoints; absolute, as Orbax wants it (`gs://` addresses are)."""
  folder = workdir / _CHECKPOINTS
  return folder if folder.is_absolute() else folder.absolute()


def frozen_file(workdir: Any, field: str) -> Any:
  """Where the networks that a config field named are kept."""
  old = workdir / _OLD_START
  return old if field == "start" and old.exists() else workdir / f"{_FROZEN}{field}.safetensors"


def best_first(workdir: Any) -> list[int]:
  """The steps of a run's checkpoints: by validation loss, then the newest without one."""
  folder = checkpoints(workdir)
  if not folder.is_dir():
    return []
  losses = {}
  for path in folder.iterdir():
    if path.name.isdecimal():  # others are being written
      losses[int(path.name)] = math.inf
      with contextlib.suppress(ValueError):
        losses[int(path.name)] = (read_metrics(path) or {}).get("loss", math.inf)
  return sorted(losses, key=lambda step: (losses[step], -step))


def read_log(workdir: Any) -> list[str]:
  """The lines of a run's `metrics.jsonl`, and of the parts after it; none where there are none."""
  files = [workdir / LOG]
  if (parts := workdir / LOG_PARTS).is_dir():
    files += sorted(parts.iterdir(), key=lambda path: path.name)
  lines: list[str] = []
  for path in files:
    if path.exists():
      lines += paths.read_bytes(path).decode("utf-8", "replace").splitlines()
  return list(dict.fromkeys(lines))  # a run that was killed while it joined parts left some twice


def read_metrics(checkpoint: Any) -> dict[str, float] | None:
  """The validation means that were saved with a checkpoint; None where it was not evaluated.

  Raises:
    ValueError: they are damaged.
  """
  path = checkpoint / METRICS / METRICS
  return json.loads(path.read_text()) if path.exists() else None


def load_trained(
  workdir: Any,
  steps: Sequence[int] | None = None,
  agree: Callable[[bool], bool] = bool,
) -> tuple[Params, dict[str, Any]]:
  """Loads the best checkpoint of a training workdir (of least validation loss) that can be read.

  Several processes that load together are given the same `steps` to try, in this order, and an
  `agree`, see `read_checkpoint`.

  Returns:
    The networks that were trained (the moving average where the run kept one) and those that were
    kept, and the model config with its "method".

  Raises:
    UserError: the folder holds no checkpoint, or none that can be read.
  """
  state, config = read_first(workdir, best_first(workdir) if steps is None else steps, agree)
  trained = {**(state.get("ema_params") or state["params"]), STATS: state.get("stats") or {}}
  kept = read_together(lambda: read_frozen(workdir), agree).values()
  params = join(*(networks for networks, _ in kept), trained)
  return params, model_config(config, *(sections for _, sections in kept))


def read_together(read: Callable[[], Any], agree: Callable[[bool], bool]) -> Any:
  """What `read` returns; raises on all processes that read together where one of them cannot.

  Without it that one would leave the others waiting at their next common step.

  Raises:
    UserError: this process's own, or that another one has one.
  """
  error, found = None, None
  try:
    found = read()
  except UserError as reason:
    error = reason
  if not agree(error is None):
    raise error or UserError("another process cannot read what this run begins from: see its line")
  return found


def read_first(
  workdir: Any, steps: Iterable[int], agree: Callable[[bool], bool] = bool
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads the first of some checkpoints that can be read: its state, by network, and its config.

  Raises:
    UserError: there is none, or none that can be read.
  """
  items = {"state": ocp.args.StandardRestore(), "config": ocp.args.JsonRestore()}
  step = None
  for step in steps:
    restored = read_checkpoint(workdir, step, "another one", agree, **items)
    if restored is not None:
      config = dict(restored["config"])
      state = jax.tree.map(np.asarray, restored["state"])
      return by_network(state, config), config
  if step is None:
    raise UserError(f"no checkpoint in {workdir}: give the --workdir of a training run")
  raise UserError(f"none of the checkpoints in {checkpoints(workdir)} can be read")


def by_network(state: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
  """A checkpoint's state as states are now: those of the first version trained one network.

  It had no name there; `config` is given that of its method.
  """
  if "method" in config:
    return state
  config["method"] = methods.OLDEST
  network = methods.get(methods.OLDEST).networks[config["stage"] - 1]
  named = {k: {network: state[k]} for k in ("params", "ema_params", "opt_state") if state.get(k)}
  return {**state, **named}


def read_frozen(workdir: Any) -> dict[str, tuple[Params, dict[str, Any]]]:
  """The networks that a stage keeps, and the model config they came with, by config field."""
  there = {p.stem.removeprefix(_FROZEN): p for p in workdir.glob(f"{_FROZEN}*.safetensors")}
  if (old := workdir / _OLD_START).exists():
    there["start"] = old
  return {field: files.read_weights(path) for field, path in there.items()}


def model_config(config: Mapping[str, Any], *earlier: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a training config that a model file carries.

  Sections that it lacks are taken from `earlier`, the model configs of what the run began from.
  """
  method = methods.get(config["method"])
  sections: dict[str, Any] = {}
  for source in (config, *earlier):
    sections |= {k: source[k] for k in method.model if k in source and k not in sections}
  return files.complete({"method": config["method"], **sections})


def read_checkpoint(
  workdir: Any, step: int, fallback: str, agree: Callable[[bool], bool] = bool, **items: Any
) -> Any:
  """Reads a checkpoint's items; None where one is missing or damaged, for any process.

  Each process reads by itself, as if it were alone: where one of them cannot, it would leave the
  others waiting at a barrier of Orbax's. `agree` tells whether all could read, from whether this
  one could; of several that read together every one must ask. The warning says what is tried next,
  the `fallback`.
  """
  here = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
  )
  path = checkpoints(workdir) / str(step)
  restored, reason = None, ""
  try:
    handler = ocp.CompositeCheckpointHandler(
      composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
      restored = reader.restore(path, args=ocp.args.Composite(**items))
    missing = [name for name in items if restored[name] is None]
    reason = f"it has no {missing[0]}" if missing else ""
  # Damage shows in as many ways as there are readers: JSON, Zarr, OCDBT, Orbax's own files.
  except Exception as error:
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
  if agree(not reason):
    return restored
  if here == 0:
    reason = reason or "another process cannot"
    say(f"warning: cannot read the checkpoint {path} ({reason}): trying {fallback}")
  return None
