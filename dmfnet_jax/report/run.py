"""The report of a training run: its curves, sample pictures and config."""

import contextlib
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths, pictures
from dmfnet_jax.report import charts
from dmfnet_jax.report.page import document, number, shrink, text, webp

MAX_SAMPLES = 16
"""Of more sample pictures so many are shown, evenly spread over the run, with the last."""

_MAX_POINTS = 600  # of a curve: more than the pixels of its chart
_SAMPLE_WIDTH = 1400

_TITLES = {
  "loss": "Loss",
  "learning_rate": "Learning rate",
  "grad_norm": "Norm of the gradient",
  "steps_per_second": "Steps per second",
  "images_per_second": "Images per second",
  "data_wait_fraction": "Fraction of the time spent waiting for data",
  "device_memory_gib": "Most memory in use, GiB (of a CPU the process')",
  "skipped_steps": "Steps that were skipped, not finite",
}
_FROM_ZERO = tuple(name for name in _TITLES if name not in ("loss", "grad_norm"))

Series = dict[str, list[tuple[float, float]]]


def run_page(workdir: paths.PathLike, *, title: str | None) -> str:
  """Returns the report of a training run as one HTML page; a run under way is only read.

  The title is plain text, by default made from the folder's name.

  Raises:
    UserError: there is no such run, or it has logged nothing yet.
  """
  folder = paths.as_path(workdir)
  if not folder.is_dir():
    raise UserError(f"{workdir}: no such folder")
  if not ((folder / "metrics.jsonl").exists() or (folder / "checkpoints").is_dir()):
    raise UserError(
      f"{workdir}: not the workdir of a training run; for fused pictures give A B FUSED"
    )
  title = title or f"Training run {folder.resolve().name}"
  series = read_metrics(folder)
  config = read_config(folder)
  if not series:
    raise UserError(f"{workdir}: no metrics.jsonl with a step in it: has the run logged anything?")
  body = [
    f"<header><h1>{text(title)}</h1>\n",
    *_facts(series, config),
    "</header>\n<main>\n",
    *_charts(series),
    *_samples(folder),
    *_config(config),
    *_parameters(folder),
    "</main>\n",
  ]
  data = {"series": {name: _thin(points) for name, points in series.items()}, "config": config}
  return document(title, body, data=data, scripts=["run.js"])


def read_metrics(folder: Any) -> Series:
  """Reads `metrics.jsonl`: name -> [(step, value), ...] in the order of steps.

  Values that were not finite and lines that are damaged are left out.
  """
  series: Series = {}
  from dmfnet_jax.weights import workdir  # it loads Orbax

  for line in workdir.read_log(folder):
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
      record = json.loads(line)
      step = float(record.pop("step"))
      for name, value in record.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
          series.setdefault(str(name), []).append((step, float(value)))
  return {name: sorted(points) for name, points in series.items()}


def read_config(folder: Any) -> dict[str, Any]:
  """Reads the run's config from its newest checkpoint; {} before the first."""
  import orbax.checkpoint as ocp

  from dmfnet_jax.weights import workdir

  for step in sorted(workdir.best_first(folder), reverse=True):
    # A run under way removes checkpoints: try the one before.
    how = ocp.args.JsonRestore()
    if read := workdir.read_checkpoint(folder, step, "the one before it", config=how):
      return read["config"]
  return {}


def _facts(series: Series, config: Mapping[str, Any]) -> Iterator[str]:
  last = max(points[-1][0] for points in series.values())
  total = config.get("num_train_steps")
  facts = {
    "Stage": config.get("stage"),
    "Dataset": config.get("dataset"),
    "Step": f"{last:,.0f}" + (f" of {total:,}" if total else ""),
  }
  if points := series.get("loss"):
    facts["Training loss, last"] = _rounded(points[-1][1])
  if points := series.get("validation/loss"):
    step, best = min(points, key=lambda point: point[1])
    facts["Validation loss, best"] = f"{_rounded(best)} at step {step:,.0f}"
  if points := series.get("steps_per_second"):
    facts["Steps per second, median"] = f"{statistics.median(value for _, value in points):.3g}"
  if points := series.get("data_wait_fraction"):
    facts["Waiting for data, median"] = f"{statistics.median(value for _, value in points):.1%}"
  yield '<dl class="facts">'
  for name, value in facts.items():
    if value is not None:
      yield f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>"
  yield "</dl>"


def _charts(series: Series) -> Iterator[str]:
  """One chart a quantity: training and, where it was evaluated, validation."""
  names = [name.removeprefix("validation/") for name in series]
  terms = sorted(set(names) - _TITLES.keys())
  yield '<section><h2>Curves</h2>\n<div class="charts">\n'
  for name in ("loss", *terms, *list(_TITLES)[1:]):
    lines = {"training": series.get(name, []), "validation": series.get(f"validation/{name}", [])}
    present = {kind: _thin(points) for kind, points in lines.items() if points}
    title = _TITLES.get(name, f"Loss term: {name}")
    svg = charts.curves(present, f"{title} over the training step", from_zero=name in _FROM_ZERO)
    if not svg:
      continue
    kinds = present if "validation" in present else ()
    legend = "".join(f'<span class="s{i}">{kind}</span>' for i, kind in enumerate(kinds))
    yield f'<figure data-name="{text(name)}"><figcaption><b>{text(title)}</b>{legend}</figcaption>'
    yield f"{svg}<output></output></figure>\n"
  yield "</div></section>\n"


def _samples(folder: Any) -> Iterator[str]:
  """The sample pictures with the step of each, the last shown first where scripts run."""
  found = {}
  if (folder / "samples").is_dir():
    for stem, path in pictures.list_images(folder / "samples").items():
      if match := re.fullmatch(r"step_(\d+)", stem):
        found[int(match[1])] = path
  if not found:
    return
  steps = sorted(found)
  spread = np.linspace(0, len(steps) - 1, min(MAX_SAMPLES, len(steps))).round().astype(int)
  chosen = [steps[i] for i in spread]
  yield '<section id="samples"><h2>Sample pictures</h2>\n'
  yield "<p>The same validation pictures throughout the run."
  if len(chosen) < len(steps):
    yield f" {len(chosen)} of {len(steps)} pictures, evenly spread."
  yield "</p>\n"
  if last := len(chosen) - 1:
    yield '<p class="js"><label>Step <input id="step" type="range" min="0" '
    yield f'max="{last}" value="{last}" step="1"></label> <output></output></p>\n'
  for step in chosen:
    picture = webp(shrink(pictures.read_image(found[step]), _SAMPLE_WIDTH))
    yield f'<figure class="sample" data-step="{step}"><img src="{picture}" loading="lazy" '
    yield f'alt="Sample pictures of step {step}"><figcaption>step {step:,}</figcaption></figure>\n'
  yield "</section>\n"


def _config(config: Mapping[str, Any]) -> Iterator[str]:
  if not config:
    return
  yield '<section><h2>Config</h2>\n<table class="config"><tbody>\n'
  # Named as `--config.` options are: the fields of a group with dots.
  for name, value in flatten_dict(config, sep=".").items():
    yield f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>\n'
  yield "</tbody></table></section>\n"


def _parameters(folder: Any) -> Iterator[str]:
  path = folder / "parameters.txt"
  if path.exists():
    overview = path.read_text(encoding="utf-8", errors="replace")
    yield "<section><h2>Parameters</h2>\n<details><summary>All trained arrays</summary>\n"
    yield f"<pre>{text(overview)}</pre></details></section>\n"


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """Averages runs of neighbouring points, so that no more than `_MAX_POINTS` are left."""
  size = max(1, -(-len(points) // _MAX_POINTS))
  groups = [points[start : start + size] for start in range(0, len(points), size)]
  # The mean of the values stands at the last of their steps, as the log's own means do.
  return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]


def _rounded(value: float) -> str:
  return number(value, 4) if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"
