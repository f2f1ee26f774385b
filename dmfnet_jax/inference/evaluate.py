"""Computes the fusion metrics of folders of pictures.

Pictures are read in threads ahead of the arithmetic, and pictures of one size are computed in
batches. What waits in memory is bounded, however many pictures there are. A pair that cannot be
evaluated is named with its reason and the others go on.
"""

import collections
import concurrent.futures
import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from dmfnet_jax.data import color, images
from dmfnet_jax.errors import UserError
from dmfnet_jax.messages import say
from dmfnet_jax.metrics import METRIC_NAMES, MIN_SIDE, compute_metrics

_PIXELS_PER_BATCH = 64 * 256 * 256
_MAX_WAITING_BATCHES = 4
_READ_AHEAD = 16

Triple = tuple[Any, Any, Any]


def evaluate_folders(
  a_dir: images.PathLike,
  b_dir: images.PathLike,
  fused_dir: images.PathLike,
  *,
  json_file: images.PathLike | None = None,
  batch_size: int | None = None,
) -> int:
  """Computes the metrics of every fused picture and prints their means.

  Pictures belong together by their file stem; coloured ones are turned to BT.601 grey. The table
  of means goes to stdout, all messages and the progress bar to stderr. A fused picture without both
  sources, and two sources without a fused picture, count as a pair that failed; a source that lacks
  the other source too was never a pair and is only named. The deviations `STEM_std.tiff` that
  `fuse_files` writes beside its pictures are passed over.

  Args:
    a_dir: the folder of the first sources (MRI).
    b_dir: the folder of the second sources.
    fused_dir: the folder of the fused pictures.
    json_file: where to write {"pairs": {stem: {metric: value}}, "mean": {metric: value}} as well,
      if anywhere; an infinite value is null there. Its folder is made where it is missing.
    batch_size: how many pairs of one size are computed at a time; by default four million pixels'
      worth, at most 64.

  Returns:
    0, or 1 where some pairs failed.

  Raises:
    UserError: nothing can be done: a folder is missing, no stem is in all three, no pair of them
      can be evaluated, or the JSON file cannot be written.
  """
  triples, unmatched = match_folders(a_dir, b_dir, fused_dir)
  if json_file is not None:
    images.make_folder(images.as_path(json_file).parent)
  pairs, failures = measure(triples, batch_size=batch_size)
  means = {name: _mean([values[name] for values in pairs.values()]) for name in METRIC_NAMES}
  _warn_of_infinite(pairs)
  print(f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'}")
  print(format_table({"mean": means}))
  if json_file is not None:
    _write_json(json_file, {"pairs": pairs, "mean": means})
  return 1 if unmatched or failures else 0


def match_folders(
  a_dir: images.PathLike, b_dir: images.PathLike, fused_dir: images.PathLike
) -> tuple[dict[str, Triple], dict[str, str]]:
  """Finds the pictures that belong together by their file stem, as `evaluate_folders` says.

  Returns:
    Stem -> the paths of A, B and the fused picture, in the order of the stems; and stem -> what is
    lacking, for the pairs that failed. These, and sources alone, are also named on stderr.

  Raises:
    UserError: a folder is missing, or no stem is in all three.
  """
  folders = {"A": a_dir, "B": b_dir, "fused": fused_dir}
  found = {role: images.list_images(folder) for role, folder in folders.items()}

  triples: dict[str, Triple] = {}
  failures: dict[str, str] = {}
  for stem in sorted(set().union(*found.values())):
    lacking = [role for role in folders if stem not in found[role]]
    if not lacking:
      triples[stem] = (found["A"][stem], found["B"][stem], found["fused"][stem])
    elif len(lacking) == 2 and "fused" in lacking:
      source = found["A"].get(stem) or found["B"][stem]
      say(f"warning: no partner for {source}")
    else:
      failures[stem] = f"not in {' nor in '.join(str(folders[role]) for role in lacking)}"
      say(f"error: pair {stem}: {failures[stem]}")
  if not triples:
    raise UserError(f"no file stem is in all three of {a_dir}, {b_dir} and {fused_dir}")
  return triples, failures


def measure(
  triples: Mapping[str, Triple], *, batch_size: int | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
  """Computes the metrics of pairs, in batches.

  Args:
    triples: stem -> the paths of A, B and the fused picture.
    batch_size: see `evaluate_folders`.

  Returns:
    Stem -> metric -> value, in the order of `triples`; and stem -> reason, for the pairs that
    could not be evaluated. These are also named on stderr.

  Raises:
    UserError: none of the pairs can be evaluated.
  """
  run = _Run(triples, batch_size)
  run.evaluate()
  if not run.values:
    raise UserError(f"none of the {len(triples)} pairs can be evaluated, see above")
  return {stem: run.values[stem] for stem in triples if stem in run.values}, run.failures


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
  """Formats values as lines of aligned columns, one column a metric in the order `METRIC_NAMES`.

  Args:
    rows: for each row its label and its values by metric.

  Returns:
    A heading and one line a row, without a last line break.
  """
  lines = [["", *METRIC_NAMES]]
  lines += [[label, *(f"{row[name]:.4f}" for name in METRIC_NAMES)] for label, row in rows.items()]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
  )


class _Run:
  """The state of one run: what waits to be computed, what is being computed, what is known."""

  def __init__(self, triples: Mapping[str, Triple], batch_size: int | None):
    self.values: dict[str, dict[str, float]] = {}
    self.failures: dict[str, str] = {}
    self._triples = triples
    self._batch_size = batch_size
    self._waiting: dict[tuple[int, int], list[tuple[str, np.ndarray]]] = {}  # by size
    self._compiled: dict[tuple[int, int], int] = {}  # the batch sizes that were computed last
    self._computing: tuple[list[str], dict[str, Any]] | None = None
    self._bar = tqdm(total=len(triples), unit="pair", file=sys.stderr, disable=None)

  def evaluate(self) -> None:
    """Reads and computes all pairs."""
    pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="images")
    try:
      for stem, pictures in self._read(pool):
        size = pictures.shape[1:]
        self._waiting.setdefault(size, []).append((stem, pictures))
        if len(self._waiting[size]) >= self._limit(size):
          self._flush(size)
        elif sum(map(self._fullness, self._waiting)) > _MAX_WAITING_BATCHES:
          self._flush(max(self._waiting, key=self._fullness))
      for size in list(self._waiting):
        self._flush(size)
      self._collect()
    finally:
      pool.shutdown(cancel_futures=True)
      self._bar.close()

  def _read(self, pool: concurrent.futures.Executor) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the stem and the three pictures [3, H, W] of the pairs that can be evaluated."""
    reading: collections.deque = collections.deque()
    remaining = iter(self._triples.items())
    while True:
      while len(reading) < _READ_AHEAD and (item := next(remaining, None)) is not None:
        reading.append((item[0], pool.submit(_load, item[1])))
      if not reading:
        return
      stem, future = reading.popleft()
      try:
        pictures = future.result()
      except UserError as error:
        self.failures[stem] = str(error)
        self._bar.clear()
        say(f"error: pair {stem}: {error}")
        self._bar.update()
        continue
      yield stem, pictures

  def _limit(self, size: tuple[int, int]) -> int:
    """How many pairs of this size make a batch."""
    return self._batch_size or max(1, min(64, _PIXELS_PER_BATCH // math.prod(size)))

  def _fullness(self, size: tuple[int, int]) -> float:
    return len(self._waiting[size]) / self._limit(size)

  def _flush(self, size: tuple[int, int]) -> None:
    """Starts to compute what waits of one size."""
    stems, pictures = zip(*self._waiting.pop(size), strict=True)
    # Compiling takes seconds for each batch size: a remainder is cheaper filled up with repeats.
    count = max(len(stems), self._compiled.get(size, 0))
    self._compiled[size] = count
    batch = np.stack([*pictures, *[pictures[-1]] * (count - len(stems))], axis=1)
    values = compute_metrics(batch[0], batch[1], batch[2])  # does not wait for the result
    self._collect()
    self._computing = list(stems), values

  def _collect(self) -> None:
    """Waits for the values that are being computed."""
    if self._computing is None:
      return
    stems, values = self._computing
    columns = {name: np.asarray(column) for name, column in values.items()}
    for i, stem in enumerate(stems):
      # The float64 with the fewest digits that is the float32 computed.
      self.values[stem] = {name: float(str(column[i])) for name, column in columns.items()}
    self._bar.update(len(stems))
    self._computing = None


def _load(triple: Triple) -> np.ndarray:
  """Reads the pictures A, B and fused as grey: uint8 [3, H, W]."""
  pictures = [color.to_grey(images.read_image(path)) for path in triple]
  sizes = [f"{x.shape[1]} x {x.shape[0]}" for x in pictures]
  if len(set(sizes)) > 1:
    raise UserError("A is {}, B {} and the fused picture {} pixels (width x height)".format(*sizes))
  if min(pictures[0].shape) < MIN_SIDE:
    raise UserError(f"{sizes[0]} pixels: VIFF's four scales need {MIN_SIDE} x {MIN_SIDE}")
  return np.stack(pictures)


def _mean(values: list[float]) -> float:
  # fsum and not NumPy's mean: the same for any order of the pairs.
  if all(map(math.isfinite, values)):
    return math.fsum(values) / len(values)
  return sum(values)


def _warn_of_infinite(pairs: Mapping[str, Mapping[str, float]]) -> None:
  for name in METRIC_NAMES:
    stems = [stem for stem, values in pairs.items() if not math.isfinite(values[name])]
    if stems:
      shown = ", ".join(stems[:10]) + (f" and {len(stems) - 10} more" if len(stems) > 10 else "")
      say(f"warning: {name} is infinite, and so is its mean, because of {shown}")


def _write_json(path: images.PathLike, document: Any) -> None:
  """Writes a JSON file whole or not at all; what is not finite becomes null."""

  def finite(node):
    if isinstance(node, dict):
      return {key: finite(value) for key, value in node.items()}
    return node if math.isfinite(node) else None

  text = json.dumps(finite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
  images.write_bytes(path, text.encode())
