"""Progress of a run: a bar or lines, means of the metrics, and a stop at the first NaN."""

import collections
import sys
import time
from collections.abc import Mapping

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from dmfnet_jax.errors import UserError

Array = jax.Array


def say(line: str) -> None:
  """Prints a line on standard error, beside a progress bar; on process 0 only."""
  if jax.process_index() == 0:
    tqdm.write(line, file=sys.stderr)


class Report:
  """Progress: a bar on a terminal, lines elsewhere; means of the metrics; refuses NaN.

  Args:
    config: the run's config.
    first_step: the step from which the run goes on.
  """

  def __init__(self, config: ml_collections.ConfigDict, first_step: int):
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
    self._count = 0
    self._waited = 0.0
    self._since = time.monotonic()

  def waiting(self) -> "_Stopwatch":
    """A context in which time counts as waiting for data."""
    return _Stopwatch(self)

  def add(self, step: int, metrics: Mapping[str, Array], records: np.ndarray) -> None:
    """Takes the metrics of a finished step.

    Raises:
      UserError: the loss or the gradient is not finite.
    """
    host = {k: float(np.asarray(v.addressable_shards[0].data)[0]) for k, v in metrics.items()}
    if not (np.isfinite(host["loss"]) and np.isfinite(host["grad_norm"])):
      raise UserError(
        f"step {step}: the loss is {host['loss']} and the gradient's norm {host['grad_norm']}, on "
        f"the training records {records.tolist()} of this process; nothing of it was saved. Look "
        "at these records, or lower config.optimizer.learning_rate or set clip_norm"
      )
    self._sums.update(host)
    self._count += 1
    self._bar.update()
    self._bar.set_postfix(loss=f"{host['loss']:.4f}", refresh=False)

  def summary(self, step: int) -> dict[str, float]:
    """Means since the last summary, with rates; says them in a line where there is no bar."""
    seconds = time.monotonic() - self._since
    rate = self._count / seconds
    summary = {name: total / self._count for name, total in self._sums.items()}
    summary |= {
      "steps_per_second": rate,
      "images_per_second": 2 * self._batch_size * rate,
      "data_wait_fraction": self._waited / seconds,
    }
    if self._bar.disable and not self._quiet:
      left = (self._total - step) / rate
      say(
        f"step {step}/{self._total}  loss {summary['loss']:.5f}  {rate:.2f} steps/s  "
        f"{tqdm.format_interval(int(left))} left"
      )
    self._sums.clear()
    self._count, self._waited, self._since = 0, 0.0, time.monotonic()
    return summary

  def add_validation(self, step: int, means: Mapping[str, float]) -> None:
    """Says the validation loss after a step.

    Raises:
      UserError: it is not finite: the step itself has spoilt the parameters.
    """
    if not np.isfinite(means["loss"]):
      raise UserError(
        f"step {step}: the validation loss is {means['loss']}; nothing of it was saved. Lower "
        "config.optimizer.learning_rate or set clip_norm"
      )
    say(f"step {step}: validation loss {means['loss']:.5f}")

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()


class _Stopwatch:
  def __init__(self, report: Report):
    self._report = report

  def __enter__(self) -> None:
    self._start = time.monotonic()

  def __exit__(self, *error: object) -> None:
    self._report._waited += time.monotonic() - self._start
