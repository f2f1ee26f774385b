"""Several prepared datasets as one, each with its share of the training examples."""

import bisect
import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmfnet_jax.data import builders
from dmfnet_jax.data.datasets import DATASETS
from dmfnet_jax.data.examples import Renamed
from dmfnet_jax.errors import UserError

Source = Sequence[dict[str, Any]]


def parse(dataset: str) -> dict[str, float]:
  """Reads "NAME" or "NAME:WEIGHT,NAME:WEIGHT": the datasets' shares, which add up to 1.

  Raises:
    UserError: it is neither, or a weight is not a positive number.
  """
  if not re.search("[:,]", dataset):
    return {dataset: 1.0}
  parts = [part.strip().partition(":") for part in dataset.split(",")]
  try:
    weights = {name: float(weight) for name, _, weight in parts}
  except ValueError:
    weights = {}
  # In one: what is no number, a name that stands twice, and weights that are no shares.
  if len(weights) < len(parts) or not all(0 < weight < math.inf for weight in weights.values()):
    raise UserError(
      f"config.dataset={dataset!r}: a mixture is written NAME:WEIGHT,NAME:WEIGHT, of different "
      "datasets and with positive weights"
    )
  total = sum(weights.values())
  return {name: weight / total for name, weight in weights.items()}


def kinds(dataset: str) -> tuple[str, ...]:
  """What the pairs are, see `datasets.Dataset`; empty where those of any part are unknown."""
  parts = [DATASETS[name].kinds for name in parse(dataset)]
  return tuple(dict.fromkeys(itertools.chain(*parts))) if all(parts) else ()


class Mixture(Sequence):
  """The examples of several datasets, one dataset after the other.

  Attributes:
    sources: each dataset's, by its name.
    weights: each dataset's share of the training examples.
    bounds: where each begins, and the length.
    name: of all of them.
  """

  def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float]):
    self.sources = dict(sources)
    self.weights = dict(weights)
    self.bounds = list(itertools.accumulate(map(len, sources.values()), initial=0))
    shares = zip(sources.values(), weights.values(), strict=True)
    self.name = ", ".join(f"{getattr(s, 'name', type(s).__name__)}: {w:.6g}" for s, w in shares)

  def __len__(self) -> int:
    return self.bounds[-1]

  def __getitem__(self, record):
    record = range(len(self))[record]
    part = bisect.bisect_right(self.bounds, record) - 1
    return list(self.sources.values())[part][record - self.bounds[part]]


def open_source(dataset: str, data_dir: str | Path, split: str) -> Source:
  """Opens a prepared dataset, or a mixture of several: see `parse` and `builders.open_source`.

  Raises:
    UserError: see there.
  """
  weights = parse(dataset)
  sources = {name: builders.open_source(name, data_dir, split) for name in weights}
  return Mixture(sources, weights) if len(sources) > 1 else next(iter(sources.values()))


def parts(source: Source) -> dict[str, Source]:
  """The datasets of a mixture by name; of another source, itself, under ""."""
  return source.sources if isinstance(source, Mixture) else {"": source}


def renamed(source: Source, stored: Mapping[str, str]) -> Source:
  """See `Renamed`; of a mixture each dataset."""
  rename: Callable[[Source], Source] = functools.partial(Renamed, stored=stored)
  if not isinstance(source, Mixture):
    return rename(source)
  return Mixture({name: rename(part) for name, part in source.sources.items()}, source.weights)


def mean(evaluated: Mapping[str, Mapping[str, float]], source: Source) -> dict[str, float]:
  """Means over a mixture of what was measured of each part, weighed as in training.

  With each part's own values besides, as "NAME/loss". Of a source that is no mixture its values.
  """
  if not isinstance(source, Mixture):
    return dict(evaluated[""])
  names = next(iter(evaluated.values()))
  means = {
    value: sum(source.weights[part] * values[value] for part, values in evaluated.items())
    for value in names
  }
  return means | {f"{part}/{name}": v for part, vs in evaluated.items() for name, v in vs.items()}
