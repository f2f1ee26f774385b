"""The input pipeline: batches of cropped pairs from a random-access source, with Grain.

**Positions, not iterator states.** Training reads one endless *global stream*: element g is drawn
by the shuffle of its epoch, its crop and flips by a generator seeded with (seed, g). Global batch s
is the elements s B .. (s + 1) B - 1, of which process p of P takes p, p + P, ... So which pictures
a step sees, and how they are cut, depends on (seed, B, s) alone: not on the number of processes, of
worker processes or of restarts; and the number of batches drawn is all that a checkpoint needs.

Pictures come out as float32 [b, h, w, 1] in [-1, 1]; A is the MRI, B the luma of the other picture.
A source is a sequence of {"a": uint8 [H, W, 1], "b": uint8 [H, W, 3], ...}, such as `open_source`
gives; it must be picklable where worker processes are used. TensorFlow is not imported.
"""

import functools
import signal
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from dmfnet_jax.data.examples import DecodedPairs, eval_example, training_example
from dmfnet_jax.errors import UserError

Batch = dict[str, np.ndarray]

# Decoded pictures kept in memory by one host, shared out among its worker processes: about 15,000
# pairs of 256 x 256. Past it, the remaining records are read again each time.
CACHE_BYTES = 2 * 1024**3

# Batches made ahead of their use by the threads of a process, and by each worker process.
_THREADS = 4
_BATCHES_AHEAD = 4


def make_train_dataset(
  source: Sequence[dict[str, Any]],
  *,
  crop_size: int,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  start_batch: int = 0,
  num_workers: int = 0,
  flip: bool = True,
  cache: bool = True,
) -> "TrainBatches":
  """Makes this process's endless iterator over training batches.

  Args:
    source: The examples.
    crop_size: Height and width of the random crop, the same window in both pictures; a picture that
      is smaller is first reflect-padded.
    batch_size: Examples in a *global* batch; a multiple of `process_count`.
    seed: Draws order, crops and flips; in [0, 2**32).
    process_index: This process, as `jax.process_index()`.
    process_count: Number of processes, as `jax.process_count()`.
    start_batch: How many global batches to skip.
    num_workers: Worker processes that make batches; 0 makes them in threads of this process.
    flip: Whether to flip left-right and up-down, each with probability 1/2, both pictures alike.
    cache: Whether to keep decoded pictures in memory, up to `CACHE_BYTES`.

  Returns:
    An iterator over dicts with, for b = batch_size / process_count,
      "a", "b": float32 [b, crop_size, crop_size, 1] in [-1, 1];
      "index": int32 [b], the examples' positions in the global batch;
      "record": int32 [b], their positions in `source`.

  Raises:
    UserError: A setting is impossible, or the source is empty.
  """
  _check_sizes(source, batch_size, process_index, process_count, crop_size)
  if num_workers < 0:
    raise UserError(f"num_workers must not be negative, but is {num_workers}")
  if not 0 <= seed < 2**32:
    raise UserError(f"the data's seed must be in [0, 2**32), but is {seed}")
  decoded = DecodedPairs(source, CACHE_BYTES // max(1, num_workers) if cache else 0)
  stream = (
    grain.MapDataset.source(decoded)
    .seed(seed)
    .shuffle()
    .repeat()
    .map_with_index(
      functools.partial(
        training_example, seed=seed, batch_size=batch_size, crop_size=crop_size, flip=flip
      )
    )
  )
  identity = {
    "seed": seed,
    "batch_size": batch_size,
    "num_records": len(source),
    "dataset": _source_name(source),
  }
  return TrainBatches(
    stream, identity, process_index, process_count, num_workers=num_workers, start_batch=start_batch
  )


class TrainBatches(Iterator[Batch]):
  """An endless iterator over this process's share of the global batches; see `make_train_dataset`.

  Its state is the same on every process and does not depend on how many there are.
  """

  def __init__(
    self,
    stream: grain.MapDataset,
    identity: dict[str, Any],
    process_index: int,
    process_count: int,
    *,
    num_workers: int,
    start_batch: int,
  ):
    """Made by `make_train_dataset`.

    Args:
      stream: The global stream of training examples.
      identity: What, besides the position, says which stream this is.
      process_index: This process.
      process_count: Number of processes.
      num_workers: Worker processes.
      start_batch: The first batch to draw.
    """
    self._stream = stream
    self._identity = identity
    self._process_index = process_index
    self._process_count = process_count
    self._num_workers = num_workers
    # None or one Grain iterator. Closed also when the program ends without `close`: later, Grain's
    # own clean-up finds its modules gone and prints tracebacks.
    self._open: list[grain.DatasetIterator] = []
    weakref.finalize(self, _close_all, self._open)
    self._next_batch = 0
    self._move_to(start_batch)

  def __next__(self) -> Batch:
    if not self._open:
      self._open.append(iter(self._dataset_from(self._next_batch)))
    batch = next(self._open[0])
    self._next_batch += 1
    # A worker process's batch lies in shared memory, freed with Grain's array: copy it out.
    return {key: np.array(value) for key, value in batch.items()} if self._num_workers else batch

  def get_state(self) -> dict[str, Any]:
    """Returns a dict for JSON: the number of batches drawn, "next_batch", and what stream it is."""
    return {"next_batch": self._next_batch, **self._identity}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues where `get_state` was called, be it with other processes or workers.

    Args:
      state: What `get_state` returned.

    Raises:
      UserError: The state is of another stream: its seed, batch size or dataset differ.
    """
    for key, value in self._identity.items():
      if state.get(key) != value:
        raise UserError(
          f"cannot resume: the checkpoint's data has {key} = {state.get(key)!r}, this run has "
          f"{value!r}; use the same, or start a new workdir"
        )
    self._move_to(state["next_batch"])

  def close(self) -> None:
    """Stops the threads and worker processes; drawing again starts them anew."""
    _close_all(self._open)

  def _move_to(self, batch: int) -> None:
    if batch < 0:
      raise UserError(f"the first batch must not be negative, but is {batch}")
    self.close()
    self._next_batch = batch

  def _dataset_from(self, batch: int) -> grain.IterDataset:
    first = batch * self._identity["batch_size"] + self._process_index
    batches = self._stream[first :: self._process_count].batch(
      self._identity["batch_size"] // self._process_count, drop_remainder=True
    )
    if self._num_workers and not flags.FLAGS.is_parsed():
      # Grain asks absl for its settings when it starts workers, but only an absl app parses flags.
      flags.FLAGS.mark_as_parsed()
    return batches.to_iter_dataset(_read_options()).mp_prefetch(
      grain.MultiprocessingOptions(num_workers=self._num_workers), worker_init_fn=_ignore_signals
    )


def _ignore_signals(worker: int, num_workers: int) -> None:
  """Leaves signals, which clusters and terminals send to a whole group, to the main process.

  It saves and ends its workers.
  """
  del worker, num_workers
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)


def make_eval_batches(
  source: Sequence[dict[str, Any]],
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  crop_size: int | None = None,
) -> "EvalBatches":
  """Makes this process's share of one pass over a dataset, in the source's order.

  Args:
    source: The examples.
    batch_size: Examples in a *global* batch; a multiple of `process_count`.
    process_index: This process.
    process_count: Number of processes.
    crop_size: Height and width of the centre crop, a multiple of 16; smaller pictures are
      reflect-padded. None takes the largest centre crop whose sides are multiples of 16, and needs
      pictures of one size.

  Returns:
    An iterable whose length, the number of batches, is the same on every process. Its batches are
    as `make_train_dataset`'s and have in addition "mask", float32 [b]: 1 for an example, 0 for the
    padding (a repeated example) of the last batch.

  Raises:
    UserError: A setting is impossible, or the source is empty.
  """
  _check_sizes(source, batch_size, process_index, process_count, crop_size)
  if crop_size is not None and crop_size % 16:
    raise UserError(f"the crop for evaluation must be a multiple of 16, but is {crop_size}")
  num_batches = -(-len(source) // batch_size)
  examples = (
    grain.MapDataset.source(DecodedPairs(source, cache_bytes=0))
    .repeat()[: num_batches * batch_size]
    .map_with_index(
      functools.partial(
        eval_example, num_records=len(source), batch_size=batch_size, crop_size=crop_size
      )
    )
  )
  return EvalBatches(
    examples[process_index::process_count].batch(
      batch_size // process_count, batch_fn=_stack_same_size
    )
  )


class EvalBatches:
  """One pass over a dataset, as often as it is iterated; see `make_eval_batches`."""

  def __init__(self, batches: grain.MapDataset):
    """Made by `make_eval_batches`.

    Args:
      batches: This process's batches.
    """
    self._batches = batches

  def __len__(self) -> int:
    return len(self._batches)

  def __iter__(self) -> Iterator[Batch]:
    return iter(self._batches.to_iter_dataset(_read_options()))


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
  while iterators:
    iterators.pop().close()


def _stack_same_size(examples: Sequence[Batch]) -> Batch:
  shapes = {example["a"].shape[:2] for example in examples}
  if len(shapes) > 1:
    sizes = ", ".join(f"{width} x {height}" for height, width in sorted(shapes))
    raise UserError(f"pictures of different sizes ({sizes}) cannot be one batch: give a crop_size")
  return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def _read_options() -> grain.ReadOptions:
  return grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)


def _source_name(source: Sequence[dict[str, Any]]) -> str:
  """The name of a prepared dataset's source; the type of another one."""
  return getattr(source, "name", type(source).__name__)


def _check_sizes(
  source: Sequence[dict[str, Any]],
  batch_size: int,
  process_index: int,
  process_count: int,
  crop_size: int | None,
) -> None:
  if not 0 <= process_index < process_count:
    raise UserError(f"process {process_index} is not one of {process_count}")
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f"the batch size must be a positive multiple of the {process_count} processes, "
      f"but is {batch_size}"
    )
  if crop_size is not None and crop_size < 1:
    raise UserError(f"the crop must be positive, but is {crop_size}")
  if not len(source):
    raise UserError("the dataset's split is empty")
