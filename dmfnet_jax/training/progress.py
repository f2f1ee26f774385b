"""Progress of a run: a bar or lines, means of the metrics, speed and memory, and a profile."""

import collections
import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import ml_collections
import numpy as np
from etils import epath
from tqdm import tqdm

from dmfnet_jax import messages
from dmfnet_jax.training import distributed

Array = jax.Array


def say(line: str) -> None:
  """Prints a line on standard error, beside a progress bar; on process 0 only.

  Where nobody listens any more, as when a terminal was closed, the run goes on.
  """
  if jax.process_index() == 0:
    with contextlib.suppress(OSError):
      messages.say(line)


class Report:
  """Progress from `first_step` on: a bar on a terminal, lines elsewhere; means of the metrics.

  `counts(step, metrics, records)` says whether a step's metrics are part of the means, or raises to
  end the run (see `nonfinite.FiniteGuard`).
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    first_step: int,
    counts: Callable[[int, Mapping[str, float], np.ndarray], bool],
  ):
    self._counts = counts
    self._total = config.num_train_steps
    self._batch_size = config.batch_size
    self._quiet = jax.process_index() != 0
    self._bar = tqdm(
      total=self._total,
      initial=first_step,
      unit="step",
      desc=f"stage {config.stage}",
      disable=True if self._quiet else None,  # None: off where there is no terminal
    )
    self._sums: collections.Counter[str] = collections.Counter()
    self._begin()

  def _begin(self) -> None:
    self._sums.clear()
    self._count = self._steps = 0  # of the steps in the sums, and of all
    self._waited, self._since = 0.0, time.monotonic()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """A context in which time counts as waiting for data."""
    start = time.monotonic()
    yield
    self._waited += time.monotonic() - start

  def add(self, step: int, metrics: Mapping[str, Array], records: np.ndarray) -> None:
    """Takes the metrics of a finished step; raises what `counts` raises."""
    host = {k: float(np.asarray(v.addressable_shards[0].data)[0]) for k, v in metrics.items()}
    self._steps += 1
    self._bar.update()
    if self._counts(step, host, records):
      self._sums.update(host)
      self._count += 1
      self._bar.set_postfix(loss=f"{host['loss']:.4f}", refresh=False)

  def summary(self, step: int) -> dict[str, float]:
    """Means since the last summary, with rates; says them in a line where there is no bar."""
    seconds = time.monotonic() - self._since
    rate = self._steps / seconds
    summary = {name: total / self._count for name, total in self._sums.items()}
    if self._count < self._steps:
      summary["skipped_steps"] = self._steps - self._count
    summary |= {
      "steps_per_second": rate,
      "images_per_second": 2 * self._batch_size * rate,
      # Of the process that waits longest: all wait for it.
      "data_wait_fraction": distributed.max_over_processes(self._waited / seconds),
      "device_memory_gib": peak_memory() / 2**30,
    }
    if self._bar.disable and not self._quiet:
      left = (self._total - step) / rate
      loss = summary.get("loss", float("nan"))  # none where every step was skipped
      say(
        f"step {step}/{self._total}  loss {loss:.5f}  {rate:.2f} steps/s  "
        f"{tqdm.format_interval(int(left))} left"
      )
    self._begin()
    return summary

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()


class Profiler:
  """Records `num_steps` steps with JAX's profiler, on process 0, for TensorBoard's profile page.

  The two steps before them are left out: the first one compiles.
  """

  def __init__(self, workdir: epath.Path, first_step: int, num_steps: int):
    self._folder = str(workdir)
    wanted = num_steps > 0 and jax.process_index() == 0
    self._first = first_step + 3 if wanted else None
    self._last = first_step + 2 + num_steps
    self._running = False

  def before(self, step: int) -> None:
    """To be called before a step is dispatched."""
    if step == self._first:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, step: int, metrics: Mapping[str, Array]) -> None:
    """To be called after a step is dispatched, with what it will give."""
    if self._running and step >= self._last:
      jax.block_until_ready(metrics)
      self.close()
      say(f"a profile of steps {self._first} to {step} is in {self._folder}/plugins/profile")

  def close(self) -> None:
    """Ends a recording that is under way."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False


def peak_memory() -> int:
  """The most bytes that were in use so far: on the first device, or of a CPU's whole process."""
  stats = jax.local_devices()[0].memory_stats()
  if stats:
    return stats["peak_bytes_in_use"]
  unit = 1 if sys.platform == "darwin" else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
