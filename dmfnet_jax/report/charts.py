"""Charts as inline SVG, coloured by the page's style sheet: histograms and curves."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dmfnet_jax.report.page import number, text

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, _WIDTH - 12, 12, _HEIGHT - 28  # the axes
_LOG_SPAN = 8  # from this ratio on, a curve is read better on a logarithmic axis


def histogram(values: Sequence[float], label: str) -> str:
  """Draws how values are distributed, with their mean: an SVG element, "" where none is finite.

  The scripts read the range from `data-low` and `data-high` to mark a single value.

  Args:
    values: those that are not finite are left out.
    label: what they are, plain text, for those who cannot see the picture.
  """
  width, height = 180, 64
  known = np.array([value for value in values if math.isfinite(value)])
  if not known.size:
    return ""
  low, high = float(known.min()), float(known.max())
  if low == high:
    low, high = low - 0.5, high + 0.5
  bins = min(24, max(5, round(2 * math.sqrt(known.size))))
  counts, edges = np.histogram(known, bins, (low, high))
  bar = width / bins
  mean = width * (float(known.mean()) - low) / (high - low)
  parts = [
    f'<svg class="histogram" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
    f'aria-label="{text(label)}" data-low="{low!r}" data-high="{high!r}">'
  ]
  for index, count in enumerate(counts):
    if count:
      top = (height - 4) * count / counts.max()
      span = f"{number(edges[index])} to {number(edges[index + 1])}: {count}"
      parts.append(
        f'<rect x="{index * bar + 0.5:.2f}" y="{height - top:.2f}" width="{bar - 1:.2f}" '
        f'height="{top:.2f}"><title>{text(span)}</title></rect>'
      )
  parts.append(f'<line class="mean" x1="{mean:.2f}" x2="{mean:.2f}" y1="0" y2="{height}"/>')
  parts.append(f'<line class="mark" x1="-9" x2="-9" y1="0" y2="{height}"/></svg>')
  return "".join(parts)


def curves(series: Mapping[str, Points], label: str, *, from_zero: bool = False) -> str:
  """Draws curves over the training step, on a logarithmic axis where they span decades.

  Returns an SVG element, "" where there is no point.

  The scripts find the axes in `data-` attributes to say the values under the pointer.

  Args:
    series: name -> (step, value), all finite, steps ascending; one without points is left out.
    label: what is shown, plain text, for those who cannot see the picture.
    from_zero: the axis begins at zero.
  """
  series = {name: points for name, points in series.items() if points}
  if not series:
    return ""
  steps, values = zip(*(point for points in series.values() for point in points), strict=True)
  x_high = float(max(steps)) or 1.0  # from 0
  logarithmic = not from_zero and min(values) > 0 and max(values) > _LOG_SPAN * min(values)
  if logarithmic:
    scale = math.log10
    y_low, y_high = scale(min(values)), scale(max(values))
    margin = 0.04 * (y_high - y_low)
    y_low, y_high = y_low - margin, y_high + margin
    y_ticks = _log_ticks(y_low, y_high)
  else:
    scale = float
    y_low, y_high = (0.0 if from_zero else min(values)), max(values)
    margin = 0.05 * (y_high - y_low) or 0.05 * abs(y_high) or 1.0
    y_low, y_high = (y_low if from_zero else y_low - margin), y_high + margin
    y_ticks = {tick: _short(tick) for tick in _ticks(y_low, y_high, 5)}

  def x_of(step: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * step / x_high

  def y_of(scaled: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * (scaled - y_low) / (y_high - y_low)

  across = f'x1="{_LEFT}" x2="{_RIGHT}"'
  parts = [
    f'<svg class="curves" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(label)}" '
    f'data-left="{_LEFT}" data-right="{_RIGHT}" data-high="{x_high!r}">'
  ]
  for tick, name in y_ticks.items():
    y = y_of(tick)
    parts.append(
      f'<line class="grid" {across} y1="{y:.1f}" y2="{y:.1f}"/>'
      f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>'
    )
  parts.append(f'<line class="axis" {across} y1="{_BOTTOM}" y2="{_BOTTOM}"/>')
  for tick in _ticks(0.0, x_high, 6):
    x = x_of(tick)
    anchor = "end" if x > _RIGHT - 20 else "middle"
    parts.append(
      f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM + 4}"/>'
      f'<text x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="{anchor}">{_short(tick)}</text>'
    )
  for index, points in enumerate(series.values()):
    places = [(f"{x_of(step):.1f}", f"{y_of(scale(value)):.1f}") for step, value in points]
    parts.append(f'<polyline class="s{index}" points="{" ".join(map(",".join, places))}"/>')
    if len(points) <= 60:
      parts += [f'<circle class="s{index}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in places]
  parts.append(f'<line class="cursor" x1="-9" x2="-9" y1="{_TOP}" y2="{_BOTTOM}"/></svg>')
  return "".join(parts)


def _ticks(low: float, high: float, count: int) -> list[float]:
  """Round numbers within a range, about `count` of them."""
  rough = (high - low) / count
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= 0.7 * rough)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> dict[float, str]:
  """Decades within a range of exponents, and 2 and 5 between them where decades are few."""
  digits = (1,) if high - low > 4 else (1, 2, 5) if high - low > 1 else (1, 2, 3, 5, 7)
  ticks = {
    power + math.log10(digit): _short(digit * 10.0**power)
    for power in range(math.floor(low), math.ceil(high))
    for digit in digits
  }
  return {exponent: label for exponent, label in ticks.items() if low <= exponent <= high}


def _short(value: float) -> str:
  """A tick's label: 0.05, 2e-5, 20k, 1.5M."""
  size = abs(value)
  if size >= 1e3:
    label = f"{value / 1e6:.4g}M" if size >= 1e6 else f"{value / 1e3:.4g}k"
  elif 0 < size < 1e-3:
    mantissa, exponent = f"{value:.1e}".split("e")
    label = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
  else:
    label = f"{value:.4g}"
  return label.replace("-", "−")
