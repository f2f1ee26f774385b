"""The table of a comparison: means over the pairs that all models fused, the best marked."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dmfnet_jax.fusing.evaluate import align
from dmfnet_jax.fusing.measure import ALL_NAMES, mean_of
from dmfnet_jax.metrics import METRIC_NAMES, READER_NAMES
from dmfnet_jax.report.scores import LOWER_IS_BETTER

COSTS = ("seconds", "parameters")
COLUMNS = (*ALL_NAMES, *COSTS)

_MARK = "*"
_DIGITS = 4


class Result(NamedTuple):
  """What came of one model.

  Attributes:
    model: the word that it was loaded by; or the folder of what another program made.
    model_sha256: its fingerprint; "" of another program.
    parameters: how many numbers its networks have; NaN where nobody knows.
    seconds: of fusing a pair, see `timing.Timed.seconds`; NaN where nobody knows.
    values: pair -> metric -> value.
    failures: pair -> why it was not fused or not measured.
  """

  model: str
  model_sha256: str
  parameters: float
  seconds: float
  values: Mapping[str, Mapping[str, float]]
  failures: Mapping[str, str]


class Compared(NamedTuple):
  """A comparison.

  Attributes:
    results: by the model's label.
    common: the pairs that all models fused; all that one fused where there are none.
    rows: label -> column -> value: means over `common`, and the costs.
    best: column -> the labels with the best value of it, several where they are equal.
  """

  results: Mapping[str, Result]
  common: list[str]
  rows: dict[str, dict[str, float]]
  best: dict[str, list[str]]


def compare(results: Mapping[str, Result]) -> Compared:
  """Takes the means of all models over the same pairs.

  A model that failed for some pairs would otherwise be compared on others.

  Args:
    results: of one model at least, each with one pair at least.
  """
  stems = list(next(iter(results.values())).values)
  common = [stem for stem in stems if all(stem in result.values for result in results.values())]
  rows = {}
  for label, result in results.items():
    means = mean_of([result.values[stem] for stem in common or result.values])
    rows[label] = {**means, "seconds": result.seconds, "parameters": result.parameters}
  return Compared(results, common, rows, {name: find_best(name, rows) for name in COLUMNS})


def find_best(column: str, rows: Mapping[str, Mapping[str, float]]) -> list[str]:
  """The labels of the best value of a column: the highest, or where lower is better the lowest.

  Values count as equal where the table shows the same digits.
  """
  values = {label: round(row[column], _DIGITS) for label, row in rows.items()}
  values = {label: value for label, value in values.items() if not math.isnan(value)}
  if not values:
    return []
  choose = min if column in LOWER_IS_BETTER or column in COSTS else max
  best = choose(values.values())
  return [label for label, value in values.items() if value == best]


def describe(compared: Compared) -> str:
  """Says over which pairs the means are."""
  count, failures = len(compared.common), _count_failed(compared)
  if not count:
    return "no pair was fused by all models: the means are over different pairs"
  told = f"means over {count} pair" + ("s" if count > 1 else "")
  return told + (f" that all models fused; {failures} left out" if failures else "")


def format_text(compared: Compared) -> str:
  """The table for a terminal, in two parts, as lines."""
  parts = [METRIC_NAMES, (*READER_NAMES, *COSTS)]
  lower = ", ".join(name for name in COLUMNS if name in LOWER_IS_BETTER or name in COSTS)
  return "\n".join(
    [
      describe(compared),
      *(align(_cells(compared, columns)) for columns in parts),
      f"{_MARK} the best of its column: the lowest of {lower}, the highest of the others",
    ]
  )


def _cells(compared: Compared, columns: Sequence[str]) -> list[list[str]]:
  # A space stands where others have their mark, so that digits stand under digits.
  lines = [["", *(f"{name} " for name in columns)]]
  for label, row in compared.rows.items():
    marks = {name: _MARK if label in compared.best[name] else " " for name in columns}
    lines.append([label, *(format_value(name, row[name]) + marks[name] for name in columns)])
  return lines


def format_value(column: str, value: float) -> str:
  """A value as the table shows it."""
  if math.isnan(value):
    return "-"
  if column == "parameters":
    return f"{value:,}"
  return f"{value:#.3g}" if column == "seconds" else f"{value:.{_DIGITS}f}"


def format_csv(compared: Compared) -> str:
  """The table as CSV; `best_in` names the columns in which a model is the best."""
  written = io.StringIO()
  writer = csv.writer(written, lineterminator="\n")
  writer.writerow(["model", "pairs", *COLUMNS, "best_in"])
  for label, row in compared.rows.items():
    best_in = " ".join(name for name in COLUMNS if label in compared.best[name])
    count = len(compared.common or compared.results[label].values)
    writer.writerow([label, count, *(row[name] for name in COLUMNS), best_in])
  return written.getvalue()


def format_markdown(compared: Compared) -> str:
  """The table for a README or a paper's draft: the best of each column is bold."""
  lines = [["", *COLUMNS], ["---", *["--:" for _ in COLUMNS]]]
  for label, row in compared.rows.items():
    values = {name: format_value(name, row[name]) for name in COLUMNS}
    marked = [f"**{v}**" if label in compared.best[k] else v for k, v in values.items()]
    lines.append([label, *marked])
  told = f"{describe(compared).capitalize()}.\n\n"
  return told + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_json(compared: Compared) -> dict[str, Any]:
  """The table, and the values of every pair, as JSON has them."""
  models = {}
  for label, result in compared.results.items():
    costs = {"parameters": result.parameters, "seconds": result.seconds}
    models[label] = {
      "model": result.model,
      "model_sha256": result.model_sha256,
      **costs,
      "mean": {name: compared.rows[label][name] for name in ALL_NAMES},
      "pairs": result.values,
      "failures": result.failures,
    }
  return {"models": models, "mean_over": compared.common, "best": compared.best}


def _count_failed(compared: Compared) -> int:
  stems = {stem for result in compared.results.values() for stem in result.values}
  stems |= {stem for result in compared.results.values() for stem in result.failures}
  return len(stems - set(compared.common))
