"""How far each pair lies from the mean of its set, and which pairs to look at first."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dmfnet_jax.metrics import METRIC_NAMES, READER_NAMES

NAMES = (*METRIC_NAMES, *READER_NAMES)

LOWER_IS_BETTER = frozenset({"MSE", "invention", "lost_brightness"})

ABOUT = {
  "EN": "entropy of the fused picture, bits",
  "MI": "mutual information with the sources, nats",
  "VIFF": "visual information fidelity, sum over the sources",
  "Qabf": "edges kept from the sources, 0 to 1",
  "SSIM": "structural similarity, sum over the sources",
  "PSNR": "peak signal-to-noise ratio, dB",
  "CC": "correlation with the sources, mean",
  "SCD": "sum of the correlations of differences",
  "SD": "standard deviation of the fused picture, grey levels",
  "SF": "spatial frequency of the fused picture",
  "AG": "average gradient of the fused picture",
  "MSE": "mean squared difference from the sources; lower is better",
  "invention": "distance outside the sources' local envelope, grey levels; lower is better",
  "lost_brightness": "share of pixels far below the brighter source; lower is better",
  "tracer_order": "rank correlation with B where B shows something, smoothed; for PET and SPECT",
}

Values = Mapping[str, Mapping[str, float]]  # stem -> metric -> value, which may be infinite


class Spread(NamedTuple):
  """How one metric is distributed; NaN where no value is finite."""

  mean: float
  deviation: float
  low: float
  high: float


class Score(NamedTuple):
  """Where one pair stands.

  The distances are from each metric's mean in standard deviations, their signs such that minus is
  always worse; NaN where the value or the deviation says nothing. The score is their mean over
  those of `METRIC_NAMES` of which higher is better; 0 where there are none.
  """

  stem: str
  score: float
  distances: dict[str, float]


def spreads(values: Values) -> dict[str, Spread]:
  """Returns the `Spread` of every metric over the finite values (sample deviation, n - 1)."""
  found = {}
  for name in NAMES:
    known = np.array([pair[name] for pair in values.values() if math.isfinite(pair[name])])
    if known.size:
      deviation = known.std(ddof=1) if known.size > 1 else 0.0
      numbers = (known.mean(), deviation, known.min(), known.max())
      found[name] = Spread(*map(float, numbers))
    else:
      found[name] = Spread(*[math.nan] * 4)
  return found


def worst_first(values: Values) -> list[Score]:
  """Orders pairs for looking at them: by their score, the lowest first; equals by their stems.

  The score leaves the MSE out, which the PSNR stands for already.
  """
  known = spreads(values)
  scores = []
  for stem, pair in values.items():
    distances = {name: _distance(name, pair[name], known[name]) for name in NAMES}
    higher_is_better = (distances[name] for name in METRIC_NAMES if name not in LOWER_IS_BETTER)
    counted = [distance for distance in higher_is_better if math.isfinite(distance)]
    scores.append(Score(stem, math.fsum(counted) / max(1, len(counted)), distances))
  return sorted(scores, key=lambda score: (score.score, score.stem))


def _distance(name: str, value: float, spread: Spread) -> float:
  # Equal values differ from their mean by its rounding, which is no distance.
  if not math.isfinite(value) or not spread.deviation > 1e-6 * max(1e-6, abs(spread.mean)):
    return math.nan
  distance = (value - spread.mean) / spread.deviation
  return -distance if name in LOWER_IS_BETTER else distance
