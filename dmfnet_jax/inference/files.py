"""Fuses files: two, or two folders of any length, of pictures and volumes.

Pictures are read in threads ahead of the model and written in threads behind it, so that decoding
and encoding overlap with the arithmetic. What waits in memory is bounded by a few batches, however
many pairs there are. Volumes go through `volumes.py`, one after the other. A pair that fails is
named with its reason and the others go on.
"""

import collections
import concurrent.futures
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dmfnet_jax.data import images, scaling
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.batches import is_out_of_memory, pairs_at_once
from dmfnet_jax.inference.jobs import begin_job, process_share, unfinished
from dmfnet_jax.inference.options import FuseOptions, fingerprint
from dmfnet_jax.inference.pairs import Pair, match_pairs
from dmfnet_jax.inference.picture_io import LoadedPair, load_pair, write_pair
from dmfnet_jax.messages import say

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
  window_a: str | None = None,
  window_b: str | None = None,
  lut: str | None = None,
  axis: str | int | None = None,
  resample: bool = False,
  rgb: bool = False,
  montage: images.PathLike | None = None,
  png: bool = False,
  precision: str = "float32",
  resume: bool = False,
  shard: str | None = None,
) -> int:
  """Fuses two files or series, or all pairs of two folders matched by file stem.

  The fused picture of a pair depends on the model, the two pictures, the seed and the stem (of A's
  file), not on the other pairs nor on the batch size, save that XLA's rounding, which may differ
  between batch sizes, moves a few pixels in a million by one grey level. It is grey where B is grey
  and carries B's colour where B is coloured; of a coloured A the luma is taken. Messages and the
  progress bar go to stderr. Volumes (NIfTI files, DICOM files and series) are fused slice by slice:
  see `volumes.py`. With windows or a colour map, and for volumes always, what the result depends on
  goes to `STEM.json` beside it, and the windows used are printed.

  Args:
    model_spec: a released model's name, a `.safetensors` file or a training workdir.
    a: a file, a folder with the DICOM files of a series, or a folder of pictures and volumes.
    b: the same kind.
    out: for two pictures a file (by its suffix), or else a folder, which then gets `STEM.png`. For
      two volumes a NIfTI file (`.nii.gz`, `.nii`), or else a folder: where A is NIfTI it gets
      `STEM.nii.gz`, where A is DICOM the files of a new series. For two folders a folder, which
      gets one `STEM.png`, `STEM.nii.gz` or series folder STEM a pair. Folders are made where needed
      and older results replaced.
    seed: of the noise.
    batch_size: pairs or slices of one size that are fused at a time; by default one on a CPU and
      half a million pixels' worth on an accelerator.
    samples: also fuse with this many noise draws: the picture is their mean, their standard
      deviation in grey levels (0..255) goes to `STEM_std.tiff` beside it, 32-bit float, and a
      picture of it over the fused one to `STEM_std.png`; of a volume to `STEM_std.nii.gz`.
    strict: refuse to start where a file has no partner; otherwise such files are only named.
    window_a: the values of A that become black and white, "LO,HI", or "auto" for percentiles (see
      `scaling.percentile_window`). By default pictures are shown as stored, DICOM with the window
      of the file, volumes without one with percentiles.
    window_b: the same for B.
    lut: colours a grey B: a name or a file, see `scaling.read_lut`.
    axis: of a volume's slices, see `grids.find_plane`; by default axial, or of a single slice.
    resample: put B on A's grid where they differ.
    rgb: of volumes, also write the coloured one to `STEM_rgb.nii.gz` (into a DICOM series);
      without `lut` coloured by `hot`.
    montage: of a pair of volumes a picture file to write some slices of A, B and the result to; of
      folders a folder.
    png: of volumes, also write the slices as pictures, to the folder `STEM_png`.
    precision: "float32" or "bfloat16", in which the networks compute.
    resume: leave out the pairs whose result is there, where the same model and options made it.
    shard: "I/N": fuse every N-th pair only, from the I-th on, since other processes fuse the
      others; see `jobs.process_share` for the default.

  Returns:
    0, or 1 where some pairs failed.

  Raises:
    UserError: nothing can be done: no such path, no pairs, an unknown model, a result that would
      replace a source, results of other options where those are to be kept. Nothing has been
      written then.
  """
  options = FuseOptions(
    model=str(model_spec),
    seed=seed,
    batch_size=batch_size,
    samples=samples,
    window_a=None if window_a is None else scaling.parse_window(window_a),
    window_b=None if window_b is None else scaling.parse_window(window_b),
    lut=lut,
    axis=axis,
    resample=resample,
    rgb=rgb,
    montage=montage,
    png=png,
    precision=precision,
  )
  _ = options.table, options.volume_table  # a mistyped name is noticed here
  index, count = process_share(shard)
  pairs, alone = match_pairs(a, b, out, with_std=samples is not None)
  if alone and strict:
    shown = ", ".join(alone[:10]) + (f" and {len(alone) - 10} more" if len(alone) > 10 else "")
    raise UserError(f"without a partner: {shown}: complete the pairs or leave out --strict")
  for path in alone:
    say(f"warning: no partner for {path}")
  if not pairs:
    raise UserError(f"no file in {a} has a partner of the same stem in {b}")
  folder = pairs[0].out.parent
  if resume and folder != images.as_path(out):
    raise UserError(f"{out}: --resume needs a folder as the output")
  _check_options(pairs, options)
  if count > 1:
    mine = pairs[index::count]
    say(f"process {index} of {count}: {len(mine)} of {len(pairs)} pairs")
    pairs = mine

  # Here, not above: it loads JAX, and a mistyped path should not wait for that.
  from dmfnet_jax.inference.model import load_model

  model = load_model(model_spec, compute_dtype=precision)
  images.make_folder(folder)
  total, model_sha256 = len(pairs), fingerprint(model)
  if folder == images.as_path(out):
    there = begin_job(folder, options, model_sha256, resume=resume)
    pairs = unfinished(pairs, there) if resume else pairs
  failed = 0
  pictures = [pair for pair in pairs if not pair.is_volume]
  volumes = [pair for pair in pairs if pair.is_volume]
  if pictures:
    run = _Run(model, len(pictures), options, model_sha256)
    run.fuse(pictures)
    failed += run.failed
  if volumes:
    from dmfnet_jax.inference.volumes import fuse_volumes  # its libraries take half a second

    failed += fuse_volumes(model, volumes, options, model_sha256)
  kept = total - len(pairs)
  earlier = f", {kept} of them earlier" if kept else ""
  say(f"{total - failed} of {total} pairs fused into {out}{earlier}")
  return 1 if failed else 0


def _check_options(pairs: Sequence[Pair], options: FuseOptions) -> None:
  """Says which options have no effect; refuses a file where several montages are to be written."""
  count = sum(pair.is_volume for pair in pairs)
  for_volumes = (options.rgb, options.resample, options.png)
  if not count and (any(for_volumes) or options.montage is not None or options.axis is not None):
    say("warning: --axis, --resample, --rgb, --montage and --png are for volumes: no effect here")
  is_file = images.as_path(options.montage or "").suffix.lower() in images.IMAGE_SUFFIXES
  if count > 1 and is_file:
    raise UserError(
      f"{options.montage}: several volumes need a folder for their montages, not a file"
    )


class _Run:
  """The state of one run: what waits to be fused, what waits to be written, what failed."""

  def __init__(self, model: Any, total: int, options: FuseOptions, model_sha256: str | None):
    from tqdm import tqdm

    self.failed = 0
    self._model = model
    self._options = options
    self._model_sha256 = model_sha256
    # By padded size: pictures of one share a batch.
    self._waiting: dict[tuple[int, int], list[LoadedPair]] = {}
    self._limits: dict[tuple[int, int], int] = {}  # the batch sizes to fill
    self._compiled: dict[tuple[int, int], int] = {}  # the batch sizes that were fused last
    self._writes: collections.deque = collections.deque()
    self._warned = False
    self._windows = ""  # as printed last
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
        self._tell_windows(loaded)
        size = self._padded(loaded)
        self._waiting.setdefault(size, []).append(loaded)
        if len(self._waiting[size]) >= self._limit(size):
          self._flush(pool, size)
        elif sum(map(self._fullness, self._waiting)) > _MAX_WAITING_BATCHES:
          self._flush(pool, max(self._waiting, key=self._fullness))
      for size in list(self._waiting):
        self._flush(pool, size)
      self._finish_writes(0)
    finally:
      # An interrupted run ends what it is writing and starts nothing more.
      pool.shutdown(cancel_futures=True)
      self._bar.close()

  def _read(self, pool: concurrent.futures.Executor, pairs: Sequence[Pair]) -> Iterator[LoadedPair]:
    """Yields the readable pairs in order, a few batches of them being read ahead."""
    reading: collections.deque = collections.deque()
    ahead = 4
    remaining = iter(pairs)
    while True:
      while len(reading) < ahead and (pair := next(remaining, None)) is not None:
        reading.append((pair, pool.submit(load_pair, pair, self._options)))
      if not reading:
        return
      pair, future = reading.popleft()
      try:
        loaded = future.result()
      except UserError as error:
        self._fail(pair, error)
        continue
      except MemoryError:
        self._fail(pair, "the pictures do not fit the memory")
        continue
      # At least a batch and the next one, of pictures as large as this one.
      ahead = 4 + 2 * self._limit(self._padded(loaded))
      yield loaded

  def _padded(self, loaded: LoadedPair) -> tuple[int, int]:
    return self._model.padded_size(*loaded.a.shape)

  def _limit(self, size: tuple[int, int]) -> int:
    """How many pairs of this padded size make a batch."""
    if size not in self._limits:
      self._limits[size] = pairs_at_once(size, self._options.batch_size)
    return self._limits[size]

  def _fullness(self, size: tuple[int, int]) -> float:
    return len(self._waiting[size]) / self._limit(size)

  def _flush(self, pool: concurrent.futures.Executor, size: tuple[int, int]) -> None:
    """Fuses what waits of one padded size and hands it to the writers."""
    batches = [self._waiting.pop(size)]
    while batches:
      batch = batches.pop(0)
      try:
        fused, std = self._fuse_batch(batch)
      except UserError as error:
        for loaded in batch:
          self._fail(loaded.pair, error)
        continue
      except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
          raise
        if self._compiled.pop(size, 0) > len(batch):
          batches.insert(0, batch)  # once more, not filled up
        elif len(batch) == 1:
          shape = " x ".join(map(str, batch[0].a.shape))
          self._fail(batch[0].pair, f"a picture of {shape} does not fit the memory")
        else:
          half = len(batch) // 2
          self._limits[size] = min(self._limits[size], half)
          batches[:0] = [batch[:half], batch[half:]]
        continue
      for i, loaded in enumerate(batch):
        results = fused[i], None if std is None else std[i], self._options, self._model_sha256
        job = pool.submit(write_pair, loaded, *results)
        self._writes.append((loaded.pair, job))
      self._finish_writes(2 * self._limit(size))

  def _fuse_batch(
    self, batch: Sequence[LoadedPair]
  ) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray] | None]:
    """Fuses the lumas of a batch; returns as many results at least, and their deviations."""
    padded, count = self._padded(batch[0]), len(batch)
    # The model is compiled for each batch size: a remainder is cheaper filled up with repeats.
    size = max(count, self._compiled.get(padded, 0))
    batch = [*batch, *[batch[-1]] * (size - count)]
    pictures = [loaded.a for loaded in batch], [loaded.luma_b for loaded in batch]
    names = [loaded.pair.stem for loaded in batch]
    asked: dict[str, Any] = {"seed": self._options.seed, "names": names, "batch_size": size}
    if self._options.samples is None:
      fused, std = self._model.fuse(*pictures, **asked), None
    else:
      fused, std = self._model.fuse(*pictures, **asked, samples=self._options.samples)
    self._compiled[padded] = size
    return fused, std

  def _finish_writes(self, leave: int) -> None:
    """Waits until no more than so many results wait to be written."""
    while len(self._writes) > leave:
      pair, job = self._writes.popleft()
      try:
        job.result()
        self._bar.update()
      except UserError as error:
        self._fail(pair, error)
      except MemoryError:
        self._fail(pair, "the results do not fit the memory")

  def _tell_windows(self, loaded: LoadedPair) -> None:
    """Prints the windows that a pair is shown through, where they are not those printed before."""
    used = {"A": loaded.window_a, "B": loaded.window_b}
    windows = ", ".join(f"{role} {window}" for role, window in used.items() if window)
    if windows and windows != self._windows:
      self._windows = windows
      self._say(f"pair {loaded.pair.stem}: windows: {windows}")

  def _fail(self, pair: Pair, reason: object) -> None:
    self.failed += 1
    self._say(f"error: pair {pair.stem}: {reason}")
    self._bar.update()

  def _say(self, message: str) -> None:
    """Prints a line above the progress bar."""
    self._bar.clear()
    say(message)
