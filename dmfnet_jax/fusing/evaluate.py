"""`dmfnet evaluate`: the metrics of what was fused, as tables and as JSON."""

import math
from collections.abc import Mapping, Sequence

from dmfnet_jax.fusing.measure import Measured, mean_of, measure
from dmfnet_jax.fusing.pairing import Naming
from dmfnet_jax.fusing.triples import find_triples
from dmfnet_jax.io import finite_json, paths
from dmfnet_jax.messages import first_of, say
from dmfnet_jax.metrics import METRIC_NAMES, READER_NAMES


def evaluate_folders(
  a: paths.PathLike | None,
  b: paths.PathLike | None,
  fused: paths.PathLike,
  *,
  naming: Naming = Naming(),  # noqa: B008 (it is never changed)
  json_file: paths.PathLike | None = None,
  batch_size: int | None = None,
  ssim_range: float = 255,
) -> int:
  """Computes the metrics of everything that was fused and prints their means.

  What belongs together is found by `find_triples`. Coloured pictures are turned to BT.601 grey, and
  volumes measured slice by slice, see `read_slices`. The table of means, one of what a reader would
  object to, and of each volume the worst slice go to stdout, all messages and the progress bar to
  stderr.

  Args:
    a: the first sources (MRI): a folder, or for a single pair a file or series.
    b: the second sources.
    fused: what they were fused to, named as their pairs.
    naming: how the sources are named; with a list the two folders may be None.
    json_file: where to write {"pairs": {name: {metric: value}}, "mean": {metric: value}} as well,
      if anywhere, and of volumes "slices": {name: {slice: {metric: value}}}; an infinite value is
      null there. Its folder is made where it is missing.
    batch_size: see `measure`.
    ssim_range: see `dmfnet_jax.metrics.compute_metrics`.

  Returns:
    0, or 1 where some pairs failed.

  Raises:
    UserError: nothing can be done: a folder is missing, no name is in all three, no pair of them
      can be measured, or the JSON file cannot be written.
  """
  triples, unmatched = find_triples(a, b, fused, naming=naming)
  if json_file is not None:
    paths.make_folder(paths.as_path(json_file).parent)
  measured = measure(triples, batch_size=batch_size, ssim_range=ssim_range)
  mean = mean_of(measured.pairs.values())
  _warn_of_infinite(measured.pairs)
  print(f"{len(measured.pairs)} {'pair' if len(measured.pairs) == 1 else 'pairs'}")
  print(format_table({"mean": mean}))
  print(format_table({"mean": mean}, READER_NAMES))
  for line in describe_slices(measured):
    print(line)
  if json_file is not None:
    document = {"pairs": measured.pairs, "mean": mean}
    document |= {"slices": measured.slices} if measured.slices else {}
    paths.write_bytes(json_file, (finite_json.dumps(document, indent=1) + "\n").encode())
  return 1 if unmatched or measured.failures else 0


def describe_slices(measured: Measured) -> list[str]:
  """Says of each volume how many slices its mean is of, and which is the worst."""
  lines = []
  for name, slices in measured.slices.items():
    worst = measured.worst_slice(name)
    lines.append(
      f"{name}: mean of {len(slices)} of {measured.totals[name]} slices (the others show little); "
      f"worst {worst}, lost_brightness {slices[worst]['lost_brightness']:.4f}"
    )
  return lines


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
  return align(lines)


def align(lines: Sequence[Sequence[str]]) -> str:
  """Joins cells to lines of aligned columns, the first to the left and the others to the right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
  )


def _warn_of_infinite(pairs: Mapping[str, Mapping[str, float]]) -> None:
  for name in METRIC_NAMES:
    stems = [stem for stem, values in pairs.items() if not math.isfinite(values[name])]
    if stems:
      say(f"warning: {name} is infinite, and so is its mean, because of {first_of(stems)}")
