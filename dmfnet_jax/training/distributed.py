"""Several processes, one program: start, agreement, preemption and a quick end.

Every process runs the same program on its own devices and its own share of each batch. What is
decided while it runs is decided from values that all processes have: gathered ones, or sums over
all devices. A process that went another way would leave the others waiting.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dmfnet_jax.backend import find_rank, has_tpu
from dmfnet_jax.errors import UserError, one_line
from dmfnet_jax.messages import say

# A process is taken for dead after so long without a sign of life, and ends the others.
_HEARTBEAT_SECONDS = 45
# How long the first processes wait for the last one, and the last one to end for the first.
_START_SECONDS = 300
_END_SECONDS = 30


@contextlib.contextmanager
def joined(
  coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Iterator[None]:
  """Joins the other processes of the run, if there are any, for the length of a `with` block.

  Without arguments the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
  are looked at, then a TPU slice, a SLURM step or an Open MPI job is detected; else the process is
  alone. To be entered before anything computes.

  An exception ends a process of several at once, with its exit code: an orderly end would wait for
  processes that are waiting for this one.

  Raises:
    UserError: some of the three are missing or wrong, or the others cannot be reached.
  """
  _start(coordinator, num_processes, process_id)
  try:
    yield
  except BaseException as error:
    if jax.process_count() == 1:
      raise
    _leave(error)


def _start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
  if num_processes is None:
    num_processes = _number("JAX_NUM_PROCESSES")
  if process_id is None:
    process_id = _number("JAX_PROCESS_ID")
  given = (coordinator, num_processes, process_id)
  # In a cluster JAX can find the missing ones.
  if None in given and not _in_cluster(os.environ):
    several_pods = os.environ.get("JOB_COMPLETION_INDEX", "0") != "0"
    if given == (None, None, None) and several_pods and "KUBERNETES_SERVICE_HOST" in os.environ:
      raise UserError(
        "this pod is one of several, and has no TPU by which to find the others: set "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each"
      )
    if given == (None, None, None):
      return
    raise UserError(
      "several processes need --coordinator HOST:PORT, --num-processes N and --process-id I, all "
      "three (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID)"
    )
  if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
    raise UserError(f"the coordinator's address is HOST:PORT, not {coordinator!r}")
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      # All given, JAX would still ask for the devices of each, which no TPU host has to be told.
      cluster_detection_method="deactivate" if has_tpu() and None not in given else None,
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_END_SECONDS,
    )
  # OSError: the metadata server, which is asked for the other hosts of a slice, does not answer.
  except (ValueError, RuntimeError, OSError) as error:
    raise UserError(
      f"cannot join the other processes: {one_line(error)}; for this host alone: "
      "--coordinator localhost:8476 --num-processes 1 --process-id 0"
    ) from error


def _number(variable: str) -> int | None:
  value = os.environ.get(variable)
  if value is not None and not value.isdigit():
    raise UserError(f"{variable} must be a number, not {value!r}")
  return None if value is None else int(value)


def _in_cluster(environment: Mapping[str, str]) -> bool:
  """Whether the surroundings say that this process is one of several, or a host of a TPU slice.

  JAX can tell too, but asks the metadata server or Kubernetes for it, wherever it runs.
  """
  return find_rank(environment) is not None or has_tpu()


def _leave(error: BaseException) -> None:
  """Says what is wrong and ends this process, waiting for nobody."""
  who = f"process {jax.process_index()} of {jax.process_count()}"
  code = 1
  # A standard error that nobody reads any more must not keep the process.
  with contextlib.suppress(OSError):
    if isinstance(error, UserError):
      code = 2
      say(f"error: {error} ({who})")
    elif isinstance(error, KeyboardInterrupt):
      code = 130
      say(f"interrupted ({who})")
    else:
      traceback.print_exception(error, file=sys.stderr)
      say(
        f"error: {who} ends, and the others with it; where one of them was lost, the same command "
        "on all resumes from the last checkpoint"
      )
    sys.stdout.flush()
    sys.stderr.flush()
  if jax.process_index() == 0:
    # The others, where they end for the same reason, may say so: without process 0 they abort.
    time.sleep(1)
  os._exit(code)


def all_agree(yes: bool) -> bool:
  """Whether all processes say yes; every process must ask."""
  return bool(np.all(multihost_utils.process_allgather(np.asarray(yes))))


def max_over_processes(value: float) -> float:
  """The largest of all processes' values; every process must ask."""
  return float(np.max(multihost_utils.process_allgather(np.asarray(value))))


def values_of_process_0(values: Sequence[int]) -> list[int]:
  """Process 0's values, on every process; every process must ask.

  What a process reads from a shared folder may differ from what another has read a moment before.
  """
  count = multihost_utils.broadcast_one_to_all(np.asarray(len(values)))
  mine = np.zeros(int(count), np.int64)
  if jax.process_index() == 0:
    mine[:] = values
  return [int(value) for value in multihost_utils.broadcast_one_to_all(mine)]


def gather_batch(values: np.ndarray) -> np.ndarray:
  """A global batch's values [B], in its order, from every process's own [B / processes].

  Process p of P holds the elements p, p + P, ... (see `data.pipeline`).
  """
  return np.asarray(multihost_utils.process_allgather(values)).T.reshape(-1)


class Preemption:
  """What a run was told by signals; see `preemption`.

  Attributes:
    told: whether this process was, or at a count that all processes share, whether any was.
  """

  def __init__(self, told: Callable[[int], bool]):
    self._told = told
    self._asked = 0
    self._ctrl_c = False

  def reached(self) -> bool:
    """Whether to save and stop now; every process must ask, as often and at the same places.

    It is True on all of them at the same time of asking: the one that JAX's preemption sync point
    has chosen when any of them was told.
    """
    self._asked += 1
    return self._told(self._asked)

  def by_ctrl_c(self) -> bool:
    """Whether Ctrl-C stopped any of the processes; every process must ask."""
    return max_over_processes(self._ctrl_c) > 0 if jax.process_count() > 1 else self._ctrl_c

  def tell(self, before: Any) -> None:
    """Answers Ctrl-C: the next one finds the handler of before, and this one is a SIGTERM."""
    self._ctrl_c = True
    signal.signal(signal.SIGINT, before)
    # Not by `say`: a signal may come in the middle of another line's writing.
    os.write(2, b"\ndmfnet: Ctrl-C: saves after this step; Ctrl-C again ends at once\n")
    os.kill(os.getpid(), signal.SIGTERM)  # by which JAX tells the other processes


@contextlib.contextmanager
def preemption() -> Iterator[Preemption]:
  """Listens to SIGTERM, with which clusters take a machine away, and to the first Ctrl-C.

  A second Ctrl-C raises KeyboardInterrupt, as everywhere.
  """
  if threading.current_thread() is not threading.main_thread():
    # Only a main thread may listen to signals; JAX does for several processes.
    several = jax.process_count() > 1
    yield Preemption(
      multihost_utils.reached_preemption_sync_point if several else lambda asked: False
    )
    return
  with contextlib.ExitStack() as handlers:
    if jax.process_count() > 1:
      told = Preemption(multihost_utils.reached_preemption_sync_point)
    else:
      terminated = threading.Event()
      told = Preemption(lambda asked: terminated.is_set())
      before = signal.signal(signal.SIGTERM, lambda number, frame: terminated.set())
      handlers.callback(signal.signal, signal.SIGTERM, before)
    at_ctrl_c = signal.getsignal(signal.SIGINT)
    if callable(at_ctrl_c):  # a shell's background job ignores it
      signal.signal(signal.SIGINT, lambda number, frame: told.tell(at_ctrl_c))
      handlers.callback(signal.signal, signal.SIGINT, at_ctrl_c)
    yield told
