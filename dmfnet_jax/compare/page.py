"""The page of a comparison: the table, and what every model made of a pair side by side."""

import concurrent.futures
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dmfnet_jax.compare.disagreement import RULE
from dmfnet_jax.compare.table import COLUMNS, COSTS, Compared, describe, find_best, format_value
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.measure import ALL_NAMES
from dmfnet_jax.fusing.record import model_name
from dmfnet_jax.io import pictures
from dmfnet_jax.report.page import document, number, shrink, text, webp
from dmfnet_jax.report.scores import ABOUT
from dmfnet_jax.report.shown import LOSSLESS_PIXELS, MAX_SIDE

_ABOUT = ABOUT | {
  "seconds": "to fuse a pair, compile time apart; lower is better",
  "parameters": "of the networks; lower is better",
}


def compare_page(
  compared: Compared,
  fused: Mapping[str, Mapping[str, Pair]],
  disagreement: Mapping[str, float],
  failed: Mapping[str, str],
  *,
  facts: Mapping[str, object],
  max_pictures: int,
) -> str:
  """Returns the comparison as one HTML page that needs nothing else.

  Args:
    compared: what was measured.
    fused: the model's label -> stem -> the pair, whose `out` is what the model made of it.
    disagreement: stem -> grey levels, the largest first: the pairs that can be shown.
    failed: label -> why a model could not be used.
    facts: how all were fused, by name.
    max_pictures: how many pairs are shown.
  """
  stems = list(disagreement)[:max_pictures]
  title = f"Compared: {', '.join(compared.results)}"
  body = [
    f"<header><h1>{text(title)}</h1>\n<p>{text(describe(compared).capitalize())}.</p>\n",
    *_facts(compared, facts),
    "</header>\n<main>\n",
    *_failures(compared, failed),
    "<section><h2>Means</h2>\n",
    *_table(compared.rows, COLUMNS, compared.best),
    "<p>The best of each column is bold on a tinted ground; equal ones are all marked. Seconds are "
    "those of fusing a pair, without reading, writing and compiling.</p></section>\n",
    "<section><h2>Pairs, worst disagreements first</h2>\n",
    f"<p>The disagreement of a pair is {RULE}. It says where to look, not which model is right.",
    f" Shown are {len(stems)} of {len(disagreement)} pairs of pictures.",
    " Volumes are in the table alone." if len(compared.common) > len(disagreement) else "",
    "</p>\n",
    '<p class="js">Click a picture to enlarge it; the arrow keys turn from one model to the next '
    "in its place.</p>\n",
    *_pairs(compared, fused, disagreement, stems),
    "</section>\n</main>\n",
    '<dialog id="viewer" aria-label="One picture, enlarged"><p><b></b> <span></span></p>'
    '<img alt=""><p><kbd>←</kbd> <kbd>→</kbd> other picture · <kbd>↑</kbd> <kbd>↓</kbd> other '
    "pair · <kbd>Esc</kbd> close</p></dialog>\n",
  ]
  data = {"disagreement": dict(disagreement), "rule": RULE, "best": compared.best}
  return document(title, body, data=data, scripts=["compare.js"])


def _facts(compared: Compared, facts: Mapping[str, object]) -> Iterator[str]:
  told = {name: str(value) for name, value in facts.items()}
  for label, result in compared.results.items():
    sha256 = result.model_sha256[:12]
    origin = f"SHA-256 {sha256}" if sha256 else "pictures of another program"
    told[label] = f"{model_name(result.model)} · {origin}"
  yield '<dl class="facts">'
  yield from (f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in told.items())
  yield "</dl>\n"


def _failures(compared: Compared, failed: Mapping[str, str]) -> Iterator[str]:
  labels: dict[tuple[str, str], list[str]] = {}  # a pair often fails everywhere for one reason
  for label, result in compared.results.items():
    for stem, reason in result.failures.items():
      labels.setdefault((stem, reason), []).append(label)
  reasons = [(f"model {label}", reason) for label, reason in failed.items()]
  reasons += [(f"pair {s} of {', '.join(of)}", reason) for (s, reason), of in labels.items()]
  if reasons:
    yield f'<section class="failures"><h2>Failed: {len(reasons)}</h2>\n<ul>\n'
    yield from (f"<li><b>{text(name)}</b>: {text(why)}</li>\n" for name, why in reasons)
    yield "</ul></section>\n"


def _table(
  rows: Mapping[str, Mapping[str, float]],
  columns: Sequence[str],
  best: Mapping[str, Sequence[str]],
) -> Iterator[str]:
  """A row a model, a column a measure."""
  yield '<div class="wide"><table class="means">\n<thead><tr><th></th>'
  for name in columns:
    heading = name.replace("_", "_<wbr>")
    yield f'<th scope="col" title="{text(_ABOUT[name])}">{heading}</th>'
  yield "</tr></thead>\n<tbody>\n"
  for label, row in rows.items():
    yield f'<tr><th scope="row">{text(label)}</th>'
    for name in columns:
      marked = ' class="best"' if label in best[name] else ""
      yield f"<td{marked}>{_value(name, row[name])}</td>"
    yield "</tr>\n"
  yield "</tbody></table></div>\n"


def _value(column: str, value: float) -> str:
  if column in COSTS:
    return format_value(column, value)
  return number(value, sum(abs(value) < limit for limit in (10, 100, 1000)))


def _pairs(
  compared: Compared,
  fused: Mapping[str, Mapping[str, Pair]],
  disagreement: Mapping[str, float],
  stems: Sequence[str],
) -> Iterator[str]:
  """The pictures of each pair, read and encoded in threads and in order."""
  labels = list(fused)

  def encode(stem: str) -> tuple[list[str], str]:
    pair = fused[labels[0]][stem]
    paths = [pair.a, pair.b, *(fused[label][stem].out for label in labels)]
    shown = [pictures.read_image(path) for path in paths]
    height, width = shown[0].shape[:2]
    small = [shrink(picture, MAX_SIDE) for picture in shown]
    lossless = len(stems) * sum(math.prod(x.shape[:2]) for x in small) <= LOSSLESS_PIXELS
    note = f"{width} × {height} pixels"
    note += f", reduced to {MAX_SIDE} here" if max(width, height) > MAX_SIDE else ""
    note += "" if lossless else ", compressed with loss"
    return [webp(np.asarray(x), lossless=lossless) for x in small], note

  with concurrent.futures.ThreadPoolExecutor(thread_name_prefix="pictures") as pool:
    for stem, (encoded, note) in zip(stems, pool.map(encode, stems), strict=True):
      values = {label: compared.results[label].values[stem] for label in labels}
      yield f'<article class="pair" data-name="{text(stem)}">\n<h3>{text(stem)} '
      yield f"<small>disagreement {number(disagreement[stem], 2)} · {note}</small></h3>\n"
      yield '<div class="models">'
      for caption, uri in zip(("A", "B", *labels), encoded, strict=True):
        name = text(caption)
        yield f'<figure><button type="button" aria-label="Enlarge {name} of {text(stem)}">'
        yield f'<img src="{uri}" alt="{name} of {text(stem)}" loading="lazy"></button>'
        yield f"<figcaption>{name}</figcaption></figure>"
      yield "</div>\n<details><summary>Values of this pair</summary>\n"
      best = {name: find_best(name, values) for name in ALL_NAMES}
      yield from _table(values, ALL_NAMES, best)
      yield "</details></article>\n"
