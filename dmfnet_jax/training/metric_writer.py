"""Metrics of a run: `metrics.jsonl` always, TensorBoard where both are installed."""

import importlib.util
import json
import time
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from dmfnet_jax.io import finite_json, paths
from dmfnet_jax.training.progress import say
from dmfnet_jax.weights.workdir import LOG, LOG_PARTS, read_log

# An object store appends nothing: there lines are collected, and written as one object a minute.
_REMOTE_SECONDS = 60.0


class MetricWriter:
  """Writes scalars and pictures of a run from process 0; other processes write nothing.

  Lines of an earlier attempt, after the `first_step` from which the run goes on, are dropped from
  `metrics.jsonl`, so that it reads like that of an uninterrupted run. In an object store an attempt
  adds its lines in parts beside it, and the next one joins them; `weights.workdir.read_log` reads
  both.
  """

  def __init__(self, workdir: epath.Path, first_step: int = 0):
    self._path = workdir / LOG
    self._remote = paths.is_remote(workdir)
    self._parts = workdir / LOG_PARTS
    self._num_parts = 0
    self._waiting: list[str] = []  # lines that are not in the file yet
    self._written = time.monotonic()
    self._tensorboard = None
    self._active = jax.process_index() == 0
    if not self._active:
      return
    kept = [f"{line}\n" for line in read_log(workdir) if _step_of(line) <= first_step]
    paths.write_bytes(self._path, "".join(kept).encode())
    if self._parts.is_dir():
      self._parts.rmtree()
    # clu.metric_writers imports TensorFlow and TensorBoard; training must run without them.
    if all(importlib.util.find_spec(name) for name in ("tensorflow", "tensorboard")):
      if self._remote and not str(workdir).startswith("gs://"):
        say(
          "metrics go to metrics.jsonl only: TensorFlow writes TensorBoard files here or to gs://"
        )
        return
      from clu import metric_writers

      self._tensorboard = metric_writers.SummaryWriter(str(workdir))
    else:
      say(
        "metrics go to metrics.jsonl only; for TensorBoard files too: "
        "pip install 'dmfnet_jax[tensorboard]'"
      )

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends one line {"step": step, name: value, ...}; what is not finite is null."""
    if not self._active:
      return
    values = {name: float(value) for name, value in scalars.items()}
    self._waiting.append(finite_json.dumps({"step": step, **values}))
    if not self._remote or time.monotonic() > self._written + _REMOTE_SECONDS:
      self._write_waiting()
    if self._tensorboard:
      self._tensorboard.write_scalars(step, values)

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """Shows a uint8 [H, W, C] picture in TensorBoard."""
    if self._tensorboard:
      self._tensorboard.write_images(step, {name: image[None]})

  def flush(self) -> None:
    """Makes all that was written visible to readers: to be called with every checkpoint."""
    if self._waiting:
      self._write_waiting()
    if self._tensorboard:
      self._tensorboard.flush()

  def _write_waiting(self) -> None:
    lines = "\n".join(self._waiting)
    self._waiting.clear()  # first: what has no room now is not tried again at the end
    if self._remote:
      paths.make_folder(self._parts)
      paths.write_bytes(self._parts / f"{self._num_parts:08d}.jsonl", f"{lines}\n".encode())
      self._num_parts += 1
    else:
      append_line(self._path, lines)
    self._written = time.monotonic()

  def close(self) -> None:
    """Ends the run's files."""
    self.flush()
    if self._tensorboard:
      self._tensorboard.close()


def append_line(path: epath.Path, line: str) -> None:
  """Appends to a file, in one write: a reader, or a kill, finds no half of a line."""
  data = f"{line}\n".encode()
  if paths.is_remote(path):
    path.write_bytes((path.read_bytes() if path.exists() else b"") + data)
  else:
    with open(path, "ab", buffering=0) as file:
      file.write(data)


def _step_of(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError):
    return float("inf")  # a damaged line: dropped
