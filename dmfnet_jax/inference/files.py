"""Fuses picture files: two files, or two folders of any length.

Pictures are read in threads ahead of the model and written in threads behind it, so that decoding
and encoding overlap with the arithmetic. What waits in memory is bounded by a few batches, however
many pairs there are. A pair that fails is named with its reason and the others go on.
"""

import collections
import concurrent.futures
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dmfnet_jax.data import color, images
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.pairs import Pair, match_pairs

# On an accelerator: eight pictures of 256 x 256, which the model's noise draws make 48. On a CPU a
# batch gains nothing (small model, two cores, 256 x 256: 2.9 s a pair alone, 4.5 s in eights).
_PIXELS_PER_BATCH = 8 * 256 * 256
_MAX_WAITING_BATCHES = 4


def fuse_files(
  model_spec: str,
  a: images.PathLike,
  b: images.PathLike,
  out: images.PathLike,
  *,
  seed: int = 0,
  batch_size: int | None = None,
  samples: int | None = None,
  strict: bool = False,
) -> int:
  """Fuses two files, or all pairs of two folders matched by file stem.

  The fused picture of a pair depends on the model, the two pictures, the seed and the stem (of A's
  file), not on the other pairs nor on the batch size, save that XLA's rounding, which may differ
  between batch sizes, moves a few pixels in a million by one grey level. It is grey where B is grey
  and carries B's colour where B is coloured; of a coloured A the luma is taken. Messages and the
  progress bar go to stderr.

  Args:
    model_spec: a released model's name, a `.safetensors` file or a training workdir.
    a: a file or a folder.
    b: the same kind.
    out: for two files a file (by its suffix), or else a folder, which then gets `STEM.png`; for
      two folders a folder, which gets one `STEM.png` a pair. Folders are made where needed and
      older results replaced.
    seed: of the noise.
    batch_size: pairs of one size that are fused at a time; by default one on a CPU and half a
      million pixels' worth on an accelerator.
    samples: also fuse with this many noise draws: the picture is their mean, and their standard
      deviation in grey levels (0..255) goes to `STEM_std.tiff` beside it, 32-bit float.
    strict: refuse to start where a file has no partner; otherwise such files are only named.

  Returns:
    0, or 1 where some pairs failed.

  Raises:
    UserError: nothing can be done: no such path, no pairs, an unknown model, a result that would
      replace a source. Nothing has been written then.
  """
  pairs, alone = match_pairs(a, b, out, with_std=samples is not None)
  if alone and strict:
    shown = ", ".join(alone[:10]) + (f" and {len(alone) - 10} more" if len(alone) > 10 else "")
    raise UserError(f"without a partner: {shown}: complete the pairs or leave out --strict")
  for path in alone:
    _say(f"warning: no partner for {path}")
  if not pairs:
    raise UserError(f"no file in {a} has a partner of the same stem in {b}")

  # Here, not above: it loads JAX, and a mistyped path should not wait for that.
  from dmfnet_jax.inference.model import load_model

  model = load_model(model_spec)
  images.make_folder(pairs[0].out.parent)
  run = _Run(model, len(pairs), seed=seed, batch_size=batch_size, samples=samples)
  run.fuse(pairs)
  _say(f"{len(pairs) - run.failed} of {len(pairs)} pairs fused into {out}")
  return 1 if run.failed else 0


@dataclasses.dataclass(frozen=True)
class _Loaded:
  """The two pictures of a pair: uint8 [H, W], and [H, W] or [H, W, 3]."""

  pair: Pair
  a: np.ndarray
  b: np.ndarray
  a_had_colour: bool


class _Run:
  """The state of one run: what waits to be fused, what waits to be written, what failed."""

  def __init__(
    self, model: Any, total: int, *, seed: int, batch_size: int | None, samples: int | None
  ):
    import jax
    from tqdm import tqdm

    self._pixels_per_batch = 0 if jax.default_backend() == "cpu" else _PIXELS_PER_BATCH
    self.failed = 0
    self._model = model
    self._seed = seed
    self._batch_size = batch_size
    self._samples = samples
    self._waiting: dict[tuple[int, ...], list[_Loaded]] = {}  # by B's shape
    self._limits: dict[tuple[int, ...], int] = {}  # the batch sizes to fill
    self._compiled: dict[tuple[int, ...], int] = {}  # the batch sizes that were fused last
    self._writes: collections.deque = collections.deque()
    self._warned = False
    # In a log file a bar every half minute is enough.
    interval = 0.1 if sys.stderr.isatty() else 30
    self._bar = tqdm(
      total=total, unit="pair", file=sys.stderr, mininterval=interval, disable=total == 1
    )

  def fuse(self, pairs: Sequence[Pair]) -> None:
    """Reads, fuses and writes all pairs."""
    pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="images")
    try:
      for loaded in self._read(pool, pairs):
        if loaded.a_had_colour and not self._warned:
          self._say(f"warning: {loaded.pair.a} is coloured: of A only the luma is used")
          self._warned = True
        shape = loaded.b.shape
        self._waiting.setdefault(shape, []).append(loaded)
        if len(self._waiting[shape]) >= self._limit(shape):
          self._flush(pool, shape)
        elif sum(map(self._fullness, self._waiting)) > _MAX_WAITING_BATCHES:
          self._flush(pool, max(self._waiting, key=self._fullness))
      for shape in list(self._waiting):
        self._flush(pool, shape)
      self._finish_writes(0)
    finally:
      # An interrupted run ends what it is writing and starts nothing more.
      pool.shutdown(cancel_futures=True)
      self._bar.close()

  def _read(self, pool: concurrent.futures.Executor, pairs: Sequence[Pair]) -> Iterator[_Loaded]:
    """Yields the readable pairs in order, a few batches of them being read ahead."""
    reading: collections.deque = collections.deque()
    ahead = 4
    remaining = iter(pairs)
    while True:
      while len(reading) < ahead and (pair := next(remaining, None)) is not None:
        reading.append((pair, pool.submit(_load, pair)))
      if not reading:
        return
      pair, future = reading.popleft()
      try:
        loaded = future.result()
      except UserError as error:
        self._fail(pair, error)
        continue
      # At least a batch and the next one, of pictures as large as this one.
      ahead = 4 + 2 * self._limit(loaded.b.shape)
      yield loaded

  def _limit(self, shape: tuple[int, ...]) -> int:
    """How many pairs of this shape make a batch."""
    if shape not in self._limits:
      default = max(1, min(64, self._pixels_per_batch // (shape[0] * shape[1])))
      self._limits[shape] = self._batch_size or default
    return self._limits[shape]

  def _fullness(self, shape: tuple[int, ...]) -> float:
    return len(self._waiting[shape]) / self._limit(shape)

  def _flush(self, pool: concurrent.futures.Executor, shape: tuple[int, ...]) -> None:
    """Fuses what waits of one shape and hands it to the writers."""
    batches = [self._waiting.pop(shape)]
    while batches:
      batch = batches.pop(0)
      try:
        fused, std = self._fuse_batch(batch)
      except UserError as error:
        for loaded in batch:
          self._fail(loaded.pair, error)
        continue
      except (MemoryError, RuntimeError) as error:
        # XLA reports a full device as a RuntimeError with this status.
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
          raise
        if self._compiled.pop(shape, 0) > len(batch):
          batches.insert(0, batch)  # once more, not filled up
        elif len(batch) == 1:
          size = " x ".join(map(str, shape[:2]))
          self._fail(batch[0].pair, f"a picture of {size} does not fit the memory")
        else:
          half = len(batch) // 2
          self._limits[shape] = min(self._limits[shape], half)
          batches[:0] = [batch[:half], batch[half:]]
        continue
      for i, loaded in enumerate(batch):
        job = pool.submit(_write, loaded.pair, fused[i], None if std is None else std[i])
        self._writes.append((loaded.pair, job))
      self._finish_writes(2 * self._limit(shape))

  def _fuse_batch(self, batch: Sequence[_Loaded]) -> tuple[np.ndarray, np.ndarray | None]:
    shape, count = batch[0].b.shape, len(batch)
    # The model is compiled for each batch size: a remainder is cheaper filled up with repeats.
    size = max(count, self._compiled.get(shape, 0))
    batch = [*batch, *[batch[-1]] * (size - count)]
    a = np.stack([loaded.a for loaded in batch])
    b = np.stack([loaded.b for loaded in batch])
    names = [loaded.pair.stem for loaded in batch]
    if self._samples is None:
      fused, std = self._model.fuse(a, b, seed=self._seed, names=names), None
    else:
      fused, std = self._model.fuse(a, b, seed=self._seed, names=names, samples=self._samples)
      std = np.asarray(std, np.float32)[:count]
    self._compiled[shape] = size
    return np.asarray(fused)[:count], std

  def _finish_writes(self, leave: int) -> None:
    """Waits until no more than so many results wait to be written."""
    while len(self._writes) > leave:
      pair, job = self._writes.popleft()
      try:
        job.result()
        self._bar.update()
      except UserError as error:
        self._fail(pair, error)

  def _fail(self, pair: Pair, reason: object) -> None:
    self.failed += 1
    self._say(f"error: pair {pair.stem}: {reason}")
    self._bar.update()

  def _say(self, message: str) -> None:
    """Prints a line above the progress bar."""
    self._bar.clear()
    _say(message)


def _load(pair: Pair) -> _Loaded:
  a, b = images.read_image(pair.a), images.read_image(pair.b)
  if a.shape[:2] != b.shape[:2]:
    size_a, size_b = (f"{x.shape[1]} x {x.shape[0]}" for x in (a, b))
    raise UserError(f"A is {size_a} and B {size_b} pixels (width x height): register B to A first")
  if a.ndim == 2:
    return _Loaded(pair, a, b, a_had_colour=False)
  # Grey pictures are often stored with three equal channels: nothing is lost there.
  return _Loaded(pair, color.rgb_to_luma(a), b, a_had_colour=bool((a != a[..., :1]).any()))


def _write(pair: Pair, fused: np.ndarray, std: np.ndarray | None) -> None:
  # The picture last: where it stands, all of the pair's results stand.
  if std is not None:
    images.write_image(pair.out_std, std)
  images.write_image(pair.out, fused)


def _say(message: str) -> None:
  print(f"dmfnet: {message}", file=sys.stderr, flush=True)
