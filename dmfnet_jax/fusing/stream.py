"""Many pictures through little memory: read ahead in threads, put into batches, told of in a bar.

What waits is bounded by a few batches, however many pictures there are and whatever their sizes.
"""

import collections
import concurrent.futures
import contextlib
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

from tqdm import tqdm

from dmfnet_jax.errors import UserError, why_failed
from dmfnet_jax.messages import say

Item = TypeVar("Item")
Value = TypeVar("Value")
Key = TypeVar("Key", bound=Hashable)

_MAX_WAITING_BATCHES = 4


class Progress:
  """A bar of what is done, and what failed; closes with its `with` block.

  Args:
    total: how many there are. A single one needs no bar.
    unit: what they are called.
    in_log: show the bar also where standard error is no terminal, every half minute.

  Attributes:
    failures: the reasons, by name.
  """

  def __init__(self, total: int, unit: str = "pair", *, in_log: bool = True):
    self.failures: dict[str, str] = {}
    on_terminal = sys.stderr.isatty()
    self._bar = tqdm(
      total=total,
      unit=unit,
      file=sys.stderr,
      mininterval=0.1 if on_terminal else 30,
      disable=total < 2 or not (on_terminal or in_log),
    )

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *error: object) -> None:
    self._bar.close()

  def done(self, count: int = 1) -> None:
    """Counts what is done."""
    self._bar.update(count)

  def fail(self, name: str, reason: object) -> None:
    """Names a pair that failed, with its reason; it counts as done."""
    self.failures[name] = str(reason)
    say(f"error: pair {name}: {reason}")
    self.done()


class StepBar:
  """A bar of the passes that a method with many makes of one batch; it goes where they are done."""

  def __init__(self) -> None:
    self._bar: tqdm | None = None

  def __call__(self, done: Any, count: int) -> None:
    """Shows how many are done; see `Compute.on_step`. Several devices tell in turn."""
    if self._bar is None:
      self._bar = tqdm(total=int(count), unit="step", file=sys.stderr, leave=False)
    self._bar.n = int(done)
    self._bar.refresh()
    if done == count:
      self._bar.close()
      self._bar = None


def step_bar() -> StepBar | None:
  """A bar of steps where standard error is a terminal; nobody waits at a log."""
  return StepBar() if sys.stderr.isatty() else None


@contextlib.contextmanager
def threads() -> Iterator[concurrent.futures.Executor]:
  """Threads that, where the block is interrupted, end what they do and start nothing more."""
  pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="pictures")
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


def read_in_batches(
  pool: concurrent.futures.Executor,
  items: Mapping[str, Item],
  load: Callable[[Item], Value],
  *,
  key: Callable[[Value], Key],
  limit: Callable[[Key], int],
  failed: Callable[[str, str], None],
) -> Iterator[dict[str, Value]]:
  """Reads in threads, ahead of whoever takes the batches.

  Args:
    pool: the threads.
    items: what to read, by name.
    load: reads one.
    key: values of one key may share a batch.
    limit: how many values of a key make a batch; asked again and again, since it may change.
    failed: told the name and the reason of each that cannot be read.

  Yields:
    Values of one key by their names, in the order of `items`: full batches as soon as there is one,
    and where many sizes wait the fullest one before it is full.
  """

  waiting: dict[Key, dict[str, Value]] = {}

  def ahead(value: Value) -> int:
    """How many more to read: at least a batch and the next one, of values as large as this one."""
    return 4 + 2 * limit(key(value))

  def fullness(k: Key) -> float:
    return len(waiting[k]) / limit(k)

  for name, value in _read_ahead(pool, items, load, ahead, failed):
    k = key(value)
    waiting.setdefault(k, {})[name] = value
    if len(waiting[k]) >= limit(k):
      yield waiting.pop(k)
    elif sum(map(fullness, waiting)) > _MAX_WAITING_BATCHES:
      yield waiting.pop(max(waiting, key=fullness))
  while waiting:
    yield waiting.pop(next(iter(waiting)))


def _read_ahead(
  pool: concurrent.futures.Executor,
  items: Mapping[str, Item],
  load: Callable[[Item], Value],
  ahead: Callable[[Value], int],
  failed: Callable[[str, str], None],
) -> Iterator[tuple[str, Value]]:
  """Yields names and values in order."""
  reading: collections.deque[tuple[str, Any]] = collections.deque()
  rest = iter(items.items())
  count = 4
  while True:
    while len(reading) < count and (item := next(rest, None)) is not None:
      reading.append((item[0], pool.submit(load, item[1])))
    if not reading:
      return
    name, future = reading.popleft()
    try:
      value = future.result()
    except (UserError, MemoryError) as error:
      failed(name, why_failed(error, "the pictures"))
      continue
    count = ahead(value)
    yield name, value
