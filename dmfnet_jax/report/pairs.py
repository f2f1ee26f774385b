"""The report of fused pictures: what was measured, and every pair to look at, worst first."""

import concurrent.futures
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dmfnet_jax.fusing import evaluate
from dmfnet_jax.io import color, panels, paths, pictures
from dmfnet_jax.metrics import METRIC_NAMES
from dmfnet_jax.report import charts, scores
from dmfnet_jax.report.page import document, number, shrink, text, webp

MAX_SIDE = 512
"""Pictures with a longer side are reduced to it."""

_LOSSLESS_PIXELS = 24_000_000  # of all pictures together: about 20 MB; from there on lossy
_STRIP_SIDE = 56
_OVERLAY = 0.5  # the opacity of B over A, where no overlay was written beside the fused picture
_VIEWS = {"a": "A", "b": "B", "overlay": "overlay", "fused": "fused"}  # those that are stored
_ALL_VIEWS = {**_VIEWS, "checker": "checkerboard", "difference": "difference"}


class _Pictures(NamedTuple):
  """What a page shows of one pair."""

  strip: str  # a thumbnail of A, B and fused side by side
  views: dict[str, str]  # data URIs of `_VIEWS`
  note: str  # their size, and what was changed
  lossless: bool


def pairs_page(
  triples: Mapping[str, evaluate.Triple],
  values: scores.Values,
  failures: Mapping[str, str],
  *,
  title: str,
  max_pictures: int,
) -> str:
  """Returns the report of measured pairs as one HTML page; see `evaluate.measure`.

  The title is plain text; for `max_pictures` see `write_report`.
  """
  ordered = scores.worst_first(values)
  known = scores.spreads(values)
  shown = [triples[score.stem] for score in ordered[:max_pictures]]
  with concurrent.futures.ThreadPoolExecutor(thread_name_prefix="pictures") as pool:
    pictures = list(pool.map(lambda triple: _pictures(triple, len(shown)), shown))
  data = {
    "order": "score: mean distance over all metrics but MSE, worst first",
    "metrics": METRIC_NAMES,
    "lower_is_better": sorted(scores.LOWER_IS_BETTER),
    "spreads": {name: spread._asdict() for name, spread in known.items()},
    "pairs": [
      {
        "name": score.stem,
        "score": score.score,
        "values": [values[score.stem][name] for name in METRIC_NAMES],
        "distances": [score.distances[name] for name in METRIC_NAMES],
      }
      for score in ordered
    ],
    "failures": dict(failures),
  }
  body = [
    f"<header><h1>{text(title)}</h1>\n<p>{_pairs(len(values))} measured"
    f"{f', {len(failures)} not' if failures else ''}.</p></header>\n<main>\n",
    *_failures(failures),
    *_metrics(values, known),
    *_table(ordered, values, pictures),
    "</main>\n",
    '<dialog id="viewer" aria-label="One view, enlarged"><p><b></b> <span></span></p>'
    "<canvas></canvas><p><kbd>←</kbd> <kbd>→</kbd> other view · <kbd>↑</kbd> <kbd>↓</kbd> other "
    "pair · <kbd>Esc</kbd> close</p></dialog>\n",
  ]
  return document(title, body, data=data, scripts=["pairs.js"])


def _pictures(triple: evaluate.Triple, count: int) -> _Pictures:
  """Reads and encodes one of `count` pairs."""
  images = [pictures.read_image(path) for path in triple]
  height, width = images[0].shape[:2]
  small = [shrink(picture, MAX_SIDE) for picture in images]
  laid = _overlay(triple, images)
  stored = dict(zip(("a", "b", "fused"), small, strict=True)) | {"overlay": shrink(laid, MAX_SIDE)}
  lossless = (
    count * sum(math.prod(picture.shape[:2]) for picture in stored.values()) <= _LOSSLESS_PIXELS
  )
  coloured = [picture if picture.ndim == 3 else np.dstack([picture] * 3) for picture in small]
  strip = np.concatenate([shrink(picture, _STRIP_SIDE) for picture in coloured], axis=1)
  views = {view: webp(stored[view], lossless=lossless) for view in _VIEWS}
  note = f"{width} × {height} pixels"
  if max(width, height) > MAX_SIDE:
    note += f", reduced to {MAX_SIDE} here"
  if not lossless:
    note += ", compressed with loss"
  return _Pictures(webp(strip, quality=70), views, note, lossless)


def _overlay(triple: evaluate.Triple, images: Sequence[np.ndarray]) -> np.ndarray:
  """B over A: what `dmfnet fuse --overlay` has written beside the fused picture, or made here."""
  fused = triple[2]
  written = fused.with_name(f"{paths.file_stem(fused)}_overlay.png")
  if written.exists():
    return pictures.read_image(written)
  return panels.overlay(images[0], color.drop_neutral(images[1]), _OVERLAY)


def _failures(failures: Mapping[str, str]) -> Iterator[str]:
  if not failures:
    return
  yield f'<section class="failures"><h2>Not measured: {len(failures)}</h2>\n<ul>\n'
  for name, reason in failures.items():
    yield f"<li><b>{text(name)}</b>: {text(reason)}</li>\n"
  yield "</ul></section>\n"


def _metrics(values: scores.Values, known: Mapping[str, scores.Spread]) -> Iterator[str]:
  """The means, their spread and a histogram of every metric."""
  yield '<section><h2>Metrics</h2>\n<div class="metrics">\n'
  for name in METRIC_NAMES:
    spread, about = known[name], scores.ABOUT[name]
    column = [pair[name] for pair in values.values()]
    infinite = sum(not math.isfinite(value) for value in column)
    extra = f" · {infinite} infinite" if infinite else ""
    yield (
      f'<figure data-metric="{name}"><figcaption><b title="{text(about)}">{name}</b> '
      f'<span class="value">{_value(spread.mean)}</span> ± {_value(spread.deviation)}{extra}'
      f"</figcaption>{charts.histogram(column, f'Histogram of {name}, {about}')}"
      f'<div class="range"><span>{_value(spread.low)}</span>'
      f"<span>{_value(spread.high)}</span></div>"
      f"<p>{text(about)}</p></figure>\n"
    )
  yield (
    "</div>\n<p>Mean ± standard deviation over the pairs, and how the values are distributed; the "
    "line is the mean.</p></section>\n"
  )


def _table(
  ordered: Sequence[scores.Score], values: scores.Values, pictures: Sequence[_Pictures]
) -> Iterator[str]:
  lossy = sum(not picture.lossless for picture in pictures)
  yield f"<section><h2>Pairs, worst first</h2>\n{_EXPLANATION}"
  if len(pictures) < len(ordered):
    yield f"<p>Pictures are shown of the {len(pictures)} worst of {len(ordered)} pairs.</p>\n"
  if lossy:
    yield f"<p>The pictures of {_pairs(lossy)} are compressed with loss (WebP, quality "
    yield "85), to keep this file small: differences of a few grey levels are compression.</p>\n"
  yield _CONTROLS
  yield '<div class="wide"><table id="pairs">\n<thead><tr><th scope="col">A | B | fused</th>'
  for key in ("name", "score", *METRIC_NAMES):
    order = ' aria-sort="ascending"' if key == "score" else ""
    yield f'<th scope="col" data-name="{key}"{order}><button type="button" data-key="{key}" '
    yield f'title="{text(scores.ABOUT.get(key, "sort"))}">{key}</button></th>'
  yield "</tr></thead>\n"
  for index, score in enumerate(ordered):
    picture = pictures[index] if index < len(pictures) else None
    yield from _rows(index, score, values[score.stem], picture)
  yield "</table></div></section>\n"


_EXPLANATION = """<p>Below each value stands its distance from the mean in standard deviations;
minus is always worse (MSE: above the mean). The score is the mean distance over the eleven metrics
of which higher is better. Some of them (EN, SD, SF, AG) judge the fused picture alone, and slices
with little anatomy have little of each: a low score says where to look, not that a fusion is bad.
The overlay is B laid over the grey A, a grey B in the colours of hot, at half its opacity, unless
fusing has written one.
Difference and checkerboard are computed from the pictures here, of colours by their luma.</p>
"""

_CONTROLS = """<form class="controls js" id="controls">
<label>Find <input type="search" name="find" placeholder="part of a name"></label>
<label>Difference <select name="reference"><option value="max">fused − max(A, B)</option>
<option value="a">fused − A</option><option value="b">fused − B</option></select></label>
<label>times <select name="gain"><option>1</option><option>2</option><option selected>4</option>
<option>8</option></select></label>
<label>Checkerboard <select name="checker"><option value="a">A and fused</option>
<option value="b">B and fused</option></select></label>
<button type="button" name="all">Open all</button> <output name="found"></output>
<span class="scale">darker <i></i> brighter</span>
</form>
"""


def _rows(
  index: int, score: scores.Score, values: Mapping[str, float], picture: _Pictures | None
) -> Iterator[str]:
  """One pair: its line, and below it the pictures that the line opens."""
  name = text(score.stem)
  yield f'<tbody data-index="{index}">\n<tr class="row"><td class="strip">'
  if picture:
    yield f'<img src="{picture.strip}" alt="A, B and fused of {name}" loading="lazy" height="56">'
  yield '</td><th scope="row"><button type="button" aria-expanded="false" '
  yield f'aria-controls="detail-{index}">{name}</button></th>'
  yield f"<td{_tint(score.score, 'score')}>{number(score.score, 2)}</td>"
  for metric in METRIC_NAMES:
    distance = score.distances[metric]
    yield f"<td{_tint(distance)}>{_value(values[metric])}<small>{number(distance, 1)}</small></td>"
  yield f'</tr>\n<tr class="detail" id="detail-{index}" hidden>'
  yield f'<td colspan="{len(METRIC_NAMES) + 3}">'
  if picture:
    yield '<div class="views">'
    for view, caption in _ALL_VIEWS.items():
      computed = view not in picture.views
      yield f'<figure{" class=js" if computed else ""}><button type="button" data-view="{view}">'
      if computed:
        yield f'<canvas role="img" aria-label="{caption} of {name}"></canvas>'
      else:
        yield f'<img src="{picture.views[view]}" alt="{caption} of {name}" loading="lazy">'
      yield f"</button><figcaption>{caption}</figcaption></figure>"
    yield f"</div><p>{picture.note}</p>"
  else:
    yield "<p>Not among the pairs that are shown in pictures.</p>"
  yield "</td></tr>\n</tbody>\n"


def _tint(distance: float, name: str = "") -> str:
  """A cell's class and colour: the further from the mean, the stronger; full at 3 deviations."""
  if not math.isfinite(distance) or abs(distance) < 0.05:
    return f' class="{name}"' if name else ""
  kind = "worse" if distance < 0 else "better"
  return f' class="{f"{name} {kind}".strip()}" style="--far:{min(1.0, abs(distance) / 3):.0%}"'


def _value(value: float) -> str:
  """A metric's value with about four digits."""
  return number(value, sum(abs(value) < limit for limit in (10, 100, 1000)))


def _pairs(count: int) -> str:
  return f"{count} pair" + ("" if count == 1 else "s")
