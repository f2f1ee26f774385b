"""The input pipeline: batches of cropped pairs from a random-access source, with Grain.

**Positions, not iterator states.** Training reads one endless *global stream*: element g is drawn
by the shuffle of its epoch, its crop and flips by a generator seeded with (seed, g). Global batch s
is the elements s B .. (s + 1) B - 1, of which process p of P takes p, p + P, ... So which pictures
a step sees, and how they are cut, depends on (seed, B, s) alone: not on the number of processes, of
worker processes or of restarts; and the number of batches drawn is all that a checkpoint needs.

Pictures come out as float32 [b, h, w, C] in [-1, 1], volumes as [b, d, h, w, C]; unless more is
asked for, A, the MRI, and B, the luma of the other picture. A source is a sequence of
{"a": uint8 [H, W, 1], "b": uint8 [H, W, 3], ...}, such as `open_source` gives; it must be picklable
where worker processes are used.
TensorFlow is not imported.
"""

import functools
import itertools
import signal
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from dmfnet_jax.data import mixture
from dmfnet_jax.data.examples import (
  PAIR,
  DecodedPairs,
  check_fields,
  eval_example,
  training_example,
)
from dmfnet_jax.errors import UserError

Batch = dict[str, np.ndarray]
Source = Sequence[dict[str, Any]]

# Decoded pictures kept in memory by one host, shared out among its worker processes: about 15,000
# pairs of 256 x 256. Past it, the remaining records are read again each time.
CACHE_BYTES = 2 * 1024**3

# How many batches a process makes ahead of their use, and in how many threads.
_READING = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)


def make_train_dataset(
  source: Source,
  *,
  crop_size: int,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  flip: bool = True,
  fields: Mapping[str, int] = PAIR,
  space: int = 2,
  size: tuple[int, ...] | None = None,
) -> "TrainBatches":
  """Makes this process's endless iterator over training batches.

  Args:
    source: The examples. Those of a `Mixture` come in its shares, epoch by epoch of each dataset.
    crop_size: Height and width of the random crop, the same window in both pictures; a picture that
      is smaller is first reflect-padded.
    batch_size: Examples in a *global* batch; a multiple of `process_count`.
    seed: Draws order, crops and flips; in [0, 2**32).
    process_index: As `jax.process_index()`.
    process_count: As `jax.process_count()`.
    num_workers: Worker processes that make batches; 0 makes them in threads of this process.
    flip: Whether to flip along each axis with probability 1/2, all pictures alike.
    fields: The examples' pictures that batches have, by their channels: 1 for the luma, or 3.
    space: 2, or 3 for volumes, which are cut and flipped along all three axes.
    size: What pictures are stretched to before, each by itself; None: as they are.

  Returns:
    An iterator over dicts with, for b = batch_size / process_count,
      each field: float32 [b, crop_size, crop_size, channels] in [-1, 1], of volumes with one more
        axis;
      "index": int32 [b], the examples' positions in the global batch;
      "record": int32 [b], their positions in `source`.

  Raises:
    UserError: A setting is impossible, the source is empty, or its examples lack a field.
  """
  _check_sizes(source, batch_size, process_index, process_count, crop_size)
  for part in mixture.parts(source).values():
    check_fields(part, fields, space)
  if num_workers < 0:
    raise UserError(f"num_workers must not be negative, but is {num_workers}")
  if not 0 <= seed < 2**32:
    raise UserError(f"the data's seed must be in [0, 2**32), but is {seed}")
  cut = functools.partial(
    training_example, seed=seed, batch_size=batch_size, crop_size=crop_size, flip=flip
  )
  decoded = DecodedPairs(source, CACHE_BYTES // max(1, num_workers), fields, size)
  if isinstance(source, mixture.Mixture):
    # The same order of datasets in every run of these weights; in each one's own, shuffled epochs.
    ranges = itertools.pairwise(source.bounds)
    streams = [grain.MapDataset.range(*r).seed(seed).shuffle().repeat() for r in ranges]
    records = grain.MapDataset.mix(streams, list(source.weights.values()))
    stream = records.map(decoded.__getitem__).map_with_index(cut)
  else:
    stream = grain.MapDataset.source(decoded).seed(seed).shuffle().repeat().map_with_index(cut)
  batches = stream[process_index::process_count].batch(
    batch_size // process_count, drop_remainder=True
  )
  identity = {
    "seed": seed,
    "batch_size": batch_size,
    "num_records": len(source),
    # The type's name stands for a source that is no prepared dataset.
    "dataset": getattr(source, "name", type(source).__name__),
  }
  return TrainBatches(batches, identity, num_workers)


class TrainBatches(Iterator[Batch]):
  """An endless iterator over this process's share of the global batches; see `make_train_dataset`.

  Its state is the same on every process and does not depend on how many there are.
  """

  def __init__(self, batches: grain.MapDataset, identity: dict[str, Any], num_workers: int):
    self._batches = batches  # this process's, from the first on
    self._identity = identity  # what, besides the position, says which stream this is
    self._num_workers = num_workers
    self._next_batch = 0
    # None or one Grain iterator. Closed also when the program ends without `close`: later, Grain's
    # own clean-up finds its modules gone and prints tracebacks.
    self._open: list[grain.DatasetIterator] = []
    weakref.finalize(self, _close_all, self._open)

  def __next__(self) -> Batch:
    if not self._open:
      self._open.append(self._start())
    batch = next(self._open[0])
    self._next_batch += 1
    # A worker process's batch lies in shared memory, freed with Grain's array: copy it out.
    return {key: np.array(value) for key, value in batch.items()} if self._num_workers else batch

  def get_state(self) -> dict[str, Any]:
    """Returns a dict for JSON: the number of batches drawn, "next_batch", and what stream it is."""
    return {"next_batch": self._next_batch, **self._identity}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues where `get_state` was called, be it with other processes or workers.

    Raises:
      UserError: The state is of another stream: its seed, batch size or dataset differ.
    """
    for key, value in self._identity.items():
      if state.get(key) != value:
        raise UserError(
          f"cannot resume: the checkpoint's data has {key} = {state.get(key)!r}, this run has "
          f"{value!r}; use the same, or start a new workdir"
        )
    self.close()
    self._next_batch = state["next_batch"]

  def close(self) -> None:
    """Stops the threads and worker processes; drawing again starts them anew."""
    _close_all(self._open)

  def _start(self) -> grain.DatasetIterator:
    if self._num_workers and not flags.FLAGS.is_parsed():
      # Grain asks absl for its settings when it starts workers, but only an absl app parses flags.
      flags.FLAGS.mark_as_parsed()
    batches = self._batches[self._next_batch :].to_iter_dataset(_READING)
    workers = grain.MultiprocessingOptions(num_workers=self._num_workers)
    return iter(batches.mp_prefetch(workers, worker_init_fn=_ignore_signals))


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
  while iterators:
    iterators.pop().close()


def _ignore_signals(worker: int, num_workers: int) -> None:
  """Leaves signals, which clusters and terminals send to a whole group, to the main process.

  It saves and ends its workers.
  """
  del worker, num_workers
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)


def make_eval_batches(
  source: Source,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  crop_size: int | None = None,
  fields: Mapping[str, int] = PAIR,
  space: int = 2,
  size: tuple[int, ...] | None = None,
) -> grain.IterDataset:
  """Makes this process's share of one pass over a dataset, in the source's order.

  The other arguments are those of `make_train_dataset`.

  Args:
    crop_size: Height and width of the centre crop, a multiple of 16; smaller pictures are
      reflect-padded. None takes the largest centre crop whose sides are multiples of 16, and needs
      pictures of one size.

  Returns:
    An iterable, to be used as often as wanted, of as many batches on every process. They are as
    `make_train_dataset`'s and have in addition "mask", float32 [b]: 1 for an example, 0 for the
    padding (a repeated example) of the last batch.

  Raises:
    UserError: A setting is impossible, the source is empty, or its examples lack a field.
  """
  _check_sizes(source, batch_size, process_index, process_count, crop_size)
  check_fields(source, fields, space)
  if crop_size is not None and crop_size % 16:
    raise UserError(f"the crop for evaluation must be a multiple of 16, but is {crop_size}")
  cut = functools.partial(
    eval_example, num_records=len(source), batch_size=batch_size, crop_size=crop_size
  )
  padded_size = -(-len(source) // batch_size) * batch_size
  decoded = grain.MapDataset.source(DecodedPairs(source, 0, fields, size))
  examples = decoded.repeat()[:padded_size].map_with_index(cut)[process_index::process_count]
  batches = examples.batch(batch_size // process_count, batch_fn=_stack_same_size)
  return batches.to_iter_dataset(_READING)


def _stack_same_size(examples: Sequence[Batch]) -> Batch:
  shapes = {next(iter(example.values())).shape[:-1] for example in examples}
  if len(shapes) > 1:
    sizes = ", ".join(" x ".join(map(str, reversed(shape))) for shape in sorted(shapes))
    raise UserError(f"pictures of different sizes ({sizes}) cannot be one batch: give a crop_size")
  return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def _check_sizes(
  source: Source, batch_size: int, process_index: int, process_count: int, crop_size: int | None
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
