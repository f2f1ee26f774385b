"""The report of fused pictures and volumes: what was measured, and all to look at, worst first."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence

from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.measure import Measured, mean_of
from dmfnet_jax.report import charts, made, scores
from dmfnet_jax.report.page import data_of, document, number, text
from dmfnet_jax.report.shown import VIEWS, Shown, read_shown

_ALL_VIEWS = {**VIEWS, "checker": "checkerboard", "difference": "difference"}


def pairs_page(
  pairs: Mapping[str, Pair],
  measured: Measured,
  failures: Mapping[str, str],
  *,
  title: str,
  max_pictures: int,
) -> str:
  """Returns the report of measured pairs as one HTML page; of volumes each slice has its line.

  The title is plain text; for `max_pictures` see `write_report`.
  """
  places = {name: (name, "") for name in measured.pairs if name not in measured.slices}
  places |= {
    f"{name} {one}": (name, one) for name, slices in measured.slices.items() for one in slices
  }
  values = {
    label: measured.slices[name][one] if one else measured.pairs[name]
    for label, (name, one) in places.items()
  }
  ordered = scores.worst_first(values)
  known = scores.spreads(values)
  shown = [places[score.stem] for score in ordered[:max_pictures]]
  data = {
    "order": "score: mean distance over all metrics but MSE, worst first",
    "metrics": scores.NAMES,
    "lower_is_better": sorted(scores.LOWER_IS_BETTER),
    "spreads": {name: spread._asdict() for name, spread in known.items()},
    "baselines": {label: mean_of(rows.values()) for label, rows in measured.baselines.items()},
    "pairs": [
      {
        "name": score.stem,
        "score": score.score,
        "values": [values[score.stem][name] for name in scores.NAMES],
        "distances": [score.distances[name] for name in scores.NAMES],
      }
      for score in ordered
    ],
    "failures": dict(failures),
  }
  body = [
    f"<header><h1>{text(title)}</h1>\n<p>{_pairs(len(measured.pairs))} measured"
    f"{f', {len(failures)} not' if failures else ''}. {_csv_link(measured)}</p>\n",
    *made.facts(pairs),
    "</header>\n<main>\n",
    *_failures(failures),
    *_baselines(measured),
    *_volumes(measured),
    *_metrics(values, known),
    *_table(ordered, values, read_shown(pairs, shown)),
    "</main>\n",
    '<dialog id="viewer" aria-label="One view, enlarged"><p><b></b> <span></span></p>'
    "<canvas></canvas><p><kbd>←</kbd> <kbd>→</kbd> other view · <kbd>↑</kbd> <kbd>↓</kbd> other "
    "pair · <kbd>Esc</kbd> close</p></dialog>\n",
  ]
  return document(title, body, data=data, scripts=["pairs.js"])


def _csv_link(measured: Measured) -> str:
  """All that was measured as a file to keep, inside the page."""
  rows: list[list[object]] = [["pair", "slice", "result", *scores.NAMES]]
  for result, of_result in {"fused": measured.pairs, **measured.baselines}.items():
    for name, values in of_result.items():
      mean_only = "mean" if name in measured.slices else ""
      rows.append([name, mean_only, result, *(values[metric] for metric in scores.NAMES)])
  for name, slices in measured.slices.items():
    for one, values in slices.items():
      rows.append([name, one, "fused", *(values[metric] for metric in scores.NAMES)])
  written = io.StringIO()
  csv.writer(written, lineterminator="\n").writerows(rows)
  link = data_of(written.getvalue().encode(), "text/csv")
  return f'<a href="{link}" download="metrics.csv">All values as CSV</a>'


def _baselines(measured: Measured) -> Iterator[str]:
  """The means beside those of what needs no network."""
  if not measured.baselines:
    return
  yield "<section><h2>Beside what needs no network</h2>\n<p>Means over the pairs. The maximum and "
  yield "the mean are of both sources' lumas; the overlay is B laid over A at half its opacity, "
  yield "and its luma is measured.</p>\n"
  rows = {"fused": measured.pairs, **measured.baselines}
  yield from _means({label: mean_of(values.values()) for label, values in rows.items()})
  yield "</section>\n"


def _volumes(measured: Measured) -> Iterator[str]:
  """The means of each volume, and its worst slice."""
  if not measured.slices:
    return
  yield "<section><h2>Volumes</h2>\n<p>Means over the slices that show something, at least a tenth "
  yield "of the light of the brightest one. The worst slice is that which lost brightness in most "
  yield "of its pixels.</p>\n"
  labels = {}
  for name, slices in measured.slices.items():
    worst = measured.worst_slice(name)
    label = f"{name}: {len(slices)} of {measured.totals[name]} slices"
    labels[label] = measured.pairs[name]
    labels[f"worst slice: {worst}"] = slices[worst]
  yield from _means(labels)
  yield "</section>\n"


def _means(rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
  """A plain table of values: a row a label, a column a metric."""
  yield '<div class="wide"><table class="means">\n<thead><tr><th></th>'
  for name in scores.NAMES:
    yield f'<th scope="col" title="{text(scores.ABOUT[name])}">{_heading(name)}</th>'
  yield "</tr></thead>\n<tbody>\n"
  for label, values in rows.items():
    yield f'<tr><th scope="row">{text(label)}</th>'
    yield "".join(f"<td>{_value(values[name])}</td>" for name in scores.NAMES)
    yield "</tr>\n"
  yield "</tbody></table></div>\n"


def _heading(name: str) -> str:
  """A metric's name; its words may stand on two lines."""
  return name.replace("_", "_<wbr>")


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
  for name in scores.NAMES:
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
  ordered: Sequence[scores.Score], values: scores.Values, pictures: Sequence[Shown]
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
  for key in ("name", "score", *scores.NAMES):
    order = ' aria-sort="ascending"' if key == "score" else ""
    yield f'<th scope="col" data-name="{key}"{order}><button type="button" data-key="{key}" '
    yield f'title="{text(scores.ABOUT.get(key, "sort"))}">{_heading(key)}</button></th>'
  yield "</tr></thead>\n"
  for index, score in enumerate(ordered):
    picture = pictures[index] if index < len(pictures) else None
    yield from _rows(index, score, values[score.stem], picture)
  yield "</table></div></section>\n"


_EXPLANATION = """<p>Below each value stands its distance from the mean in standard deviations;
minus is always worse. The score is the mean distance over the eleven metrics of which higher is
better, without those behind the MSE, which are what a reader would object to. Some of them (EN, SD,
SF, AG) judge the fused picture alone, and slices with little anatomy have little of each: a low
score says where to look, not that a fusion is bad. The overlay is B laid over the grey A, a grey B
in the colours of hot, at half its opacity, unless fusing has written one beside a picture.
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
  index: int, score: scores.Score, values: Mapping[str, float], picture: Shown | None
) -> Iterator[str]:
  """One pair: its line, and below it the pictures that the line opens."""
  name = text(score.stem)
  yield f'<tbody data-index="{index}">\n<tr class="row"><td class="strip">'
  if picture:
    yield f'<img src="{picture.strip}" alt="A, B and fused of {name}" loading="lazy" height="56">'
  yield '</td><th scope="row"><button type="button" aria-expanded="false" '
  yield f'aria-controls="detail-{index}">{name}</button></th>'
  yield f"<td{_tint(score.score, 'score')}>{number(score.score, 2)}</td>"
  for metric in scores.NAMES:
    distance = score.distances[metric]
    yield f"<td{_tint(distance)}>{_value(values[metric])}<small>{number(distance, 1)}</small></td>"
  yield f'</tr>\n<tr class="detail" id="detail-{index}" hidden>'
  yield f'<td colspan="{len(scores.NAMES) + 3}">'
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
