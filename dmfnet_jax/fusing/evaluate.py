"""Computes the fusion metrics of folders of pictures.

Pictures are read in threads ahead of the arithmetic, and pictures of one size are computed in
batches. A pair that cannot be evaluated is named with its reason and the others go on.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import pairing, stream
from dmfnet_jax.fusing.pairing import Naming
from dmfnet_jax.io import color, paths, pictures
from dmfnet_jax.messages import first_of, say
from dmfnet_jax.metrics import (
  METRIC_NAMES,
  MIN_SIDE,
  READER_NAMES,
  compute_metrics,
  compute_reader_metrics,
)

_MAX_PAIRS = 64  # of a batch
_PIXELS_PER_BATCH = _MAX_PAIRS * 256 * 256

T = TypeVar("T")
Triple = tuple[Any, Any, Any]


def evaluate_folders(
  a_dir: paths.PathLike | None,
  b_dir: paths.PathLike | None,
  fused_dir: paths.PathLike,
  *,
  naming: Naming = Naming(),  # noqa: B008 (it is never changed)
  json_file: paths.PathLike | None = None,
  batch_size: int | None = None,
  ssim_range: float = 255,
) -> int:
  """Computes the metrics of every fused picture and prints their means.

  Pictures belong together by their file stem; coloured ones are turned to BT.601 grey. The table of
  means, and one of what a reader would object to, go to stdout, all messages and the progress bar
  to stderr. A fused picture without both sources, and two sources without a fused picture, count as
  a pair that failed; a source that lacks the other source too was never a pair and is only named.
  The deviations `STEM_std.tiff` that `fuse_files` writes beside its pictures are passed over.

  Args:
    a_dir: the folder of the first sources (MRI).
    b_dir: the folder of the second sources.
    fused_dir: the folder of the fused pictures, named as their pairs.
    naming: how the sources are named; with a list the two folders may be None.
    json_file: where to write {"pairs": {stem: {metric: value}}, "mean": {metric: value}} as well,
      if anywhere; an infinite value is null there. Its folder is made where it is missing.
    batch_size: how many pairs of one size are computed at a time; by default four million pixels'
      worth, at most 64.
    ssim_range: see `dmfnet_jax.metrics.compute_metrics`.

  Returns:
    0, or 1 where some pairs failed.

  Raises:
    UserError: nothing can be done: a folder is missing, no stem is in all three, no pair of them
      can be evaluated, or the JSON file cannot be written.
  """
  triples, unmatched = match_folders(a_dir, b_dir, fused_dir, naming=naming)
  if json_file is not None:
    paths.make_folder(paths.as_path(json_file).parent)
  pairs, failures = measure(triples, batch_size=batch_size, ssim_range=ssim_range)
  means = {
    # fsum and not NumPy's mean: the same for any order of the pairs.
    name: math.fsum(values[name] for values in pairs.values()) / len(pairs)
    for name in (*METRIC_NAMES, *READER_NAMES)
  }
  _warn_of_infinite(pairs)
  print(f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'}")
  print(format_table({"mean": means}))
  print(format_table({"mean": means}, READER_NAMES))
  if json_file is not None:
    document = {"pairs": {k: _finite(v) for k, v in pairs.items()}, "mean": _finite(means)}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    paths.write_bytes(json_file, text.encode())
  return 1 if unmatched or failures else 0


def match_folders(
  a_dir: paths.PathLike | None,
  b_dir: paths.PathLike | None,
  fused_dir: paths.PathLike,
  *,
  naming: Naming = Naming(),  # noqa: B008 (it is never changed)
) -> tuple[dict[str, Triple], dict[str, str]]:
  """Finds the pictures that belong together by their file stem, as `evaluate_folders` says.

  Returns:
    Stem -> the paths of A, B and the fused picture, in the order of the stems; and stem -> what is
    lacking, for the pairs that failed. These, and sources alone, are also named on stderr.

  Raises:
    UserError: a folder is missing, or no stem is in all three.
  """
  place_a, place_b = (naming.pairs if folder is None else folder for folder in (a_dir, b_dir))
  folders = {"A": place_a, "B": place_b, "fused": fused_dir}
  found = _list_sources(a_dir, b_dir, naming) | {"fused": pictures.list_images(fused_dir)}

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
    raise UserError(f"no file stem is in all three of {place_a}, {place_b} and {fused_dir}")
  return triples, failures


def _list_sources(
  a_dir: paths.PathLike | None, b_dir: paths.PathLike | None, naming: Naming
) -> dict[str, dict[str, Any]]:
  """The pictures of A and of B by the names of their pairs."""
  folders = [paths.as_path(folder) for folder in (a_dir, b_dir) if folder is not None]
  if naming.pairs is not None:
    pairs = pairing.read_list(naming, folders).pairs.items()
    return {role: {name: pair[i][1] for name, pair in pairs} for i, role in enumerate("AB")}
  if len(folders) < 2:
    raise UserError("give the folders of A and of B, or a list by --pairs")
  in_a, in_b = map(pictures.list_images, folders)
  is_one = pairing.same(*folders)
  if is_one:
    naming = pairing.tell_apart(folders[0], in_a, naming)
  others = (naming.suffix_b, naming.suffix_a) if is_one else ("", "")
  of_a = pairing.by_key(in_a, naming.suffix_a, others[0])
  of_b = pairing.by_key(in_b, naming.suffix_b, others[1])
  return {
    "A": {name: in_a[stem] for name, stem in of_a.items()},
    "B": {name: in_b[stem] for name, stem in of_b.items()},
  }


def measure(
  triples: Mapping[str, Triple], *, batch_size: int | None = None, ssim_range: float = 255
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
  """Computes the metrics of pairs, in batches.

  Args:
    triples: stem -> the paths of A, B and the fused picture.
    batch_size: see `evaluate_folders`.
    ssim_range: see `dmfnet_jax.metrics.compute_metrics`.

  Returns:
    Stem -> metric -> value, in the order of `triples`; and stem -> reason, for the pairs that
    could not be evaluated. These are also named on stderr.

  Raises:
    UserError: none of the pairs can be evaluated.
  """

  def limit(shape: tuple[int, ...]) -> int:
    """How many pairs make a batch."""
    return batch_size or max(1, min(_MAX_PAIRS, _PIXELS_PER_BATCH // math.prod(shape[1:])))

  values: dict[str, dict[str, float]] = {}
  with stream.Progress(len(triples), in_log=False) as progress, stream.threads() as pool:
    batches = stream.read_in_batches(
      pool, triples, _load, key=lambda grey: grey.shape, limit=limit, failed=progress.fail
    )
    for stems, computed in _one_behind(_compute(batches, ssim_range)):
      columns = {name: np.asarray(column) for name, column in computed.items()}
      for i, stem in enumerate(stems):
        # The float64 with the fewest digits that is the float32 computed.
        values[stem] = {name: float(str(column[i])) for name, column in columns.items()}
      progress.done(len(stems))
  if not values:
    raise UserError(f"none of the {len(triples)} pairs can be evaluated, see above")
  return {stem: values[stem] for stem in triples if stem in values}, progress.failures


def format_table(
  rows: Mapping[str, Mapping[str, float]], columns: Sequence[str] = METRIC_NAMES
) -> str:
  """Formats values as lines of aligned columns, one column a metric.

  Args:
    rows: for each row its label and its values by metric.
    columns: the metrics, in their order.

  Returns:
    A heading and one line a row, without a last line break.
  """
  lines = [["", *columns]]
  lines += [[label, *(f"{row[name]:.4f}" for name in columns)] for label, row in rows.items()]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
  )


def _compute(
  batches: Iterable[Mapping[str, np.ndarray]], ssim_range: float
) -> Iterator[tuple[list[str], dict[str, Any]]]:
  """Starts to compute the metrics of each batch, of one size; does not wait for the values."""
  compiled: dict[tuple[int, ...], int] = {}  # the batch size that was computed last
  for batch in batches:
    stems, triples = list(batch), list(batch.values())
    size = triples[0].shape
    # Compiling takes seconds for each batch size: a remainder is cheaper filled up with repeats.
    count = compiled[size] = max(len(triples), compiled.get(size, 0))
    a, b, fused = np.stack([*triples, *[triples[-1]] * (count - len(triples))], axis=1)
    values = compute_metrics(a, b, fused, ssim_range=ssim_range)
    yield stems, values | compute_reader_metrics(a, b, fused)


def _one_behind(values: Iterable[T]) -> Iterator[T]:
  """Yields each value when the next one has been started."""
  waiting: list[T] = []
  for value in values:
    yield from waiting
    waiting = [value]
  yield from waiting


def _load(triple: Triple) -> np.ndarray:
  """Reads the pictures A, B and fused as grey: uint8 [3, H, W]."""
  grey = [color.to_grey(pictures.read_image(path)) for path in triple]
  sizes = [f"{x.shape[1]} x {x.shape[0]}" for x in grey]
  if len(set(sizes)) > 1:
    raise UserError("A is {}, B {} and the fused picture {} pixels (width x height)".format(*sizes))
  if min(grey[0].shape) < MIN_SIDE:
    raise UserError(f"{sizes[0]} pixels: VIFF's four scales need {MIN_SIDE} x {MIN_SIDE}")
  return np.stack(grey)


def _warn_of_infinite(pairs: Mapping[str, Mapping[str, float]]) -> None:
  for name in METRIC_NAMES:
    stems = [stem for stem, values in pairs.items() if not math.isfinite(values[name])]
    if stems:
      say(f"warning: {name} is infinite, and so is its mean, because of {first_of(stems)}")


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
  """What is not finite becomes null in JSON."""
  return {name: value if math.isfinite(value) else None for name, value in values.items()}
