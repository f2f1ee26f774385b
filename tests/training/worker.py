"""A process of a run, for tests that start, stop and kill real ones.

    worker.py '{"stage": 1, "data_dir": D, "workdir": W, "toy": true, "out": F, "changes": {}}'

With "toy" it trains the model of three numbers, which compiles in no time. "out" is a file for the
final parameters, "blind_to" a step that process 1 cannot read. TensorFlow is hidden: it takes
longest to import, and training needs none.
"""

import json
import signal
import sys
from importlib.machinery import PathFinder


class Hiding(PathFinder):
  """As if TensorFlow were not installed."""

  @classmethod
  def find_spec(cls, name, path=None, target=None):
    return None if name == "tensorflow" else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding

import jax  # noqa: E402
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
import tiny  # noqa: E402

from dmfnet_jax.training import distributed  # noqa: E402
from dmfnet_jax.training.loop import train_and_evaluate  # noqa: E402


def hide_checkpoint(step: int) -> None:
  """Lets process 1 alone fail to read a checkpoint, as when its view of the disk is old."""
  restore = ocp.Checkpointer.restore

  def failing(self, path, *args, **kwargs):
    if path.name == str(step) and jax.process_index() == 1:
      raise OSError(116, "Stale file handle")
    return restore(self, path, *args, **kwargs)

  ocp.Checkpointer.restore = failing


def run(job: dict) -> None:
  """Trains, and writes the parameters where the job says."""
  signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell's job runs tests
  if "blind_to" in job:
    hide_checkpoint(job["blind_to"])
  if job.get("toy"):
    config = tiny.toy_config(job["data_dir"], **job.get("changes", {}))
  else:
    config = tiny.config(job.get("stage", 1), job["data_dir"], **job.get("changes", {}))
  with distributed.joined():
    state = train_and_evaluate(config, job["workdir"])
    print(
      f"{jax.process_count()} x {jax.local_device_count()} at step {int(state.step)}", flush=True
    )
    if job.get("out") and jax.process_index() == 0:
      np.savez(job["out"], **tiny.leaves((state.params, state.ema_params, state.opt_state)))


if __name__ == "__main__":
  run(json.loads(sys.argv[1]))
