"""What happens at a loss that is not finite: it is written down, then the run stops or goes on."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from dmfnet_jax.errors import UserError
from dmfnet_jax.training import distributed, metric_writer
from dmfnet_jax.training.progress import say

_ADVICE = (
  "lower the learning rate (--config.may_change=optimizer.learning_rate, to resume), or set "
  "optimizer.clip_norm in a new workdir"
)
# Names are looked up by decoding the example: not for thousands of them.
_MAX_NAMES = 64


class NonFiniteError(UserError):
  """The run stops at a loss that is not finite; all processes raise it after the same step."""


class FiniteGuard:
  """Looks at every step's loss; all processes see the same one.

  Where `on_nonfinite` is "skip" the step itself leaves the state as it was, see `steps`. `source`
  has the training examples, for their names in `nonfinite.jsonl`.
  """

  def __init__(self, config: ml_collections.ConfigDict, workdir: epath.Path, source: Sequence[Any]):
    self._skip = config.on_nonfinite == "skip"
    self._path = workdir / "nonfinite.jsonl"
    self._source = source

  def passes(self, step: int, metrics: Mapping[str, float], records: np.ndarray) -> bool:
    """Whether a step's "loss" and "grad_norm" are finite; else it was skipped.

    `records` is this process's part of its batch: positions in the training split.

    Raises:
      NonFiniteError: they are not finite, and the run is to stop.
    """
    loss, grad_norm = metrics["loss"], metrics["grad_norm"]
    if np.isfinite(loss) and np.isfinite(grad_norm):
      return True
    batch = distributed.gather_batch(records).tolist()
    if jax.process_index() == 0:
      line = {"step": step, "loss": str(loss), "grad_norm": str(grad_norm), "records": batch}
      names = [self._source[record]["name"] for record in batch[:_MAX_NAMES]]
      line["names"] = [os.fsdecode(name) for name in names]
      metric_writer.append_line(self._path, json.dumps(line))
    what = f"step {step}: the loss is {loss} and the gradient's norm {grad_norm}, on the training "
    if self._skip:
      say(f"{what}records {batch}: skipped")
      return False
    raise NonFiniteError(
      f"{what}records {batch} (their names are in {self._path}); nothing of it was saved. Look at "
      f"these records, set config.on_nonfinite=skip, {_ADVICE}"
    )

  def check_validation(self, step: int, means: Mapping[str, float]) -> None:
    """Says the validation loss after a step.

    Raises:
      NonFiniteError: it is not finite: the step itself has spoilt the parameters.
    """
    if not np.isfinite(means["loss"]):
      raise NonFiniteError(
        f"step {step}: the validation loss is {means['loss']}; nothing of it was saved: {_ADVICE}"
      )
    say(f"step {step}: validation loss {means['loss']:.5f}")
