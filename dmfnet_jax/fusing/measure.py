"""Measures what was fused: pictures, and volumes slice by slice.

Pictures are read in threads ahead of the arithmetic, and those of one size are computed in batches;
volumes are read one after the other. What cannot be measured is named with its reason and the
others go on.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dmfnet_jax.errors import UserError, why_failed
from dmfnet_jax.fusing import stream
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.io import color, panels, pictures
from dmfnet_jax.metrics import (
  METRIC_NAMES,
  MIN_SIDE,
  READER_NAMES,
  compute_metrics,
  compute_reader_metrics,
)

ALL_NAMES = (*METRIC_NAMES, *READER_NAMES)

BASELINES = ("max", "mean", "overlay")
"""What needs no network: the brighter source, their mean, and B laid over A."""

OVERLAY = 0.5
"""The opacity of B over A, where nobody says another."""

_MAX_PAIRS = 64  # of a batch
_PIXELS_PER_BATCH = _MAX_PAIRS * 256 * 256

T = TypeVar("T")
Values = dict[str, float]  # by metric
Place = tuple[str, str]  # a pair, and a slice of it, "" for a picture


class Measured(NamedTuple):
  """What was measured.

  Attributes:
    pairs: name -> metric -> value; of a volume the mean over its slices.
    slices: name of a volume -> name of a slice that shows something -> metric -> value.
    totals: name of a volume -> how many slices it has.
    baselines: each of `BASELINES` -> name -> metric -> value, where those were asked for.
    failures: name -> reason.
  """

  pairs: dict[str, Values]
  slices: dict[str, dict[str, Values]]
  totals: dict[str, int]
  baselines: dict[str, dict[str, Values]]
  failures: dict[str, str]

  def worst_slice(self, name: str) -> str:
    """The slice of a volume that lost brightness in most of its pixels; of equals the first."""
    slices = self.slices[name]
    return max(slices, key=lambda one: slices[one]["lost_brightness"])


def measure(
  pairs: Mapping[str, Pair],
  *,
  batch_size: int | None = None,
  ssim_range: float = 255,
  with_baselines: bool = False,
) -> Measured:
  """Computes the metrics of pairs, in batches.

  Args:
    pairs: name -> the sources, and as `out` what they were fused to.
    batch_size: how many pictures of one size are computed at a time; by default four million
      pixels' worth, at most 64.
    ssim_range: see `dmfnet_jax.metrics.compute_metrics`.
    with_baselines: measure `BASELINES` of the same sources, too.

  Returns:
    The values in the order of `pairs`. What could not be measured is also named on stderr.

  Raises:
    UserError: none of the pairs can be measured.
  """

  def limit(shape: tuple[int, ...]) -> int:
    """How many pairs make a batch."""
    return batch_size or max(1, min(_MAX_PAIRS, _PIXELS_PER_BATCH // math.prod(shape[1:])))

  def load(pair: Pair) -> np.ndarray:
    return _stack(*_read_pictures(pair), with_baselines)

  of_pictures = {name: pair for name, pair in pairs.items() if not pair.is_volume}
  volumes = {name: pair for name, pair in pairs.items() if pair.is_volume}
  labels = ("fused", *BASELINES) if with_baselines else ("fused",)
  # Label -> pair -> slice -> values.
  found: dict[str, dict[str, dict[str, Values]]] = {label: {} for label in labels}
  totals: dict[str, int] = {}
  with stream.Progress(len(pairs), in_log=False) as progress, stream.threads() as pool:

    def batches() -> Iterator[dict[Place, np.ndarray]]:
      read = stream.read_in_batches(
        pool, of_pictures, load, key=lambda stack: stack.shape, limit=limit, failed=progress.fail
      )
      for batch in read:
        yield {(name, ""): stack for name, stack in batch.items()}
      if volumes:
        from dmfnet_jax.fusing.slices import read_slices  # its libraries take half a second
      for name, pair in volumes.items():
        try:
          slices = read_slices(pair)
          check_size(slices.a[0])
        except (UserError, MemoryError) as error:
          progress.fail(name, why_failed(error, "the volumes"))
          continue
        totals[name] = slices.total
        at_once = limit((1, *slices.a.shape[1:]))
        for start in range(0, len(slices.names), at_once):
          part = slice(start, start + at_once)
          each = zip(slices.a[part], slices.b[part], slices.fused[part], strict=True)
          stacks = [_stack(*three, with_baselines) for three in each]
          yield {(name, s): x for s, x in zip(slices.names[part], stacks, strict=True)}
        progress.done()

    for places, computed in _one_behind(_compute(batches(), ssim_range)):
      for label, of_label in zip(labels, computed, strict=True):
        columns = {name: np.asarray(column) for name, column in of_label.items()}
        for i, (name, one) in enumerate(places):
          # The float64 with the fewest digits that is the float32 computed.
          values = {metric: float(str(column[i])) for metric, column in columns.items()}
          found[label].setdefault(name, {})[one] = values
      progress.done(sum(not one for _, one in places))
  if not found["fused"]:
    raise UserError(f"none of the {len(pairs)} pairs can be evaluated, see above")
  means = {
    label: {name: mean_of(of_label[name].values()) for name in pairs if name in of_label}
    for label, of_label in found.items()
  }
  slices = {name: found["fused"][name] for name in volumes if name in found["fused"]}
  return Measured(means.pop("fused"), slices, totals, means, progress.failures)


def mean_of(values: Iterable[Mapping[str, float]]) -> Values:
  """The mean of every metric."""
  rows = list(values)

  def mean(column: list[float]) -> float:
    # fsum, which refuses both infinities together, is the same for any order of the pairs.
    total = math.fsum(column) if all(map(math.isfinite, column)) else sum(column)
    return total / len(column)

  return {name: mean([row[name] for row in rows]) for name in ALL_NAMES}


def baselines(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
  """Fuses without a network.

  Args:
    a: uint8 [H, W].
    b: uint8 [H, W], or [H, W, 3] coloured.

  Returns:
    Each of `BASELINES` -> its luma, uint8 [H, W].
  """
  luma = color.to_grey(b)
  mean = np.round((a.astype(np.float32) + luma) / 2).astype(np.uint8)
  laid = panels.overlay(a, color.drop_neutral(b), OVERLAY)
  return dict(zip(BASELINES, (np.maximum(a, luma), mean, color.to_grey(laid)), strict=True))


def check_size(picture: np.ndarray) -> None:
  """Refuses a picture [H, W] that is too small to be measured."""
  if min(picture.shape) < MIN_SIDE:
    height, width = picture.shape
    raise UserError(f"{width} x {height} pixels: VIFF's four scales need {MIN_SIDE} x {MIN_SIDE}")


def _read_pictures(pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Reads A, of which the luma is taken, B, and the luma of what they were fused to."""
  a, b, fused = (pictures.read_image(path) for path in (pair.a, pair.b, pair.out))
  sizes = [f"{x.shape[1]} x {x.shape[0]}" for x in (a, b, fused)]
  if len(set(sizes)) > 1:
    raise UserError("A is {}, B {} and the fused picture {} pixels (width x height)".format(*sizes))
  check_size(color.to_grey(a))
  return color.to_grey(a), b, color.to_grey(fused)


def _stack(a: np.ndarray, b: np.ndarray, fused: np.ndarray, with_baselines: bool) -> np.ndarray:
  """What `_compute` takes of a pair: A, B, and what is to be measured, uint8 [R, H, W]."""
  others = baselines(a, b).values() if with_baselines else ()
  return np.stack([a, color.to_grey(b), fused, *others])


def _compute(
  batches: Iterable[Mapping[T, np.ndarray]], ssim_range: float
) -> Iterator[tuple[list[T], list[dict[str, Any]]]]:
  """Starts to compute the metrics of each batch, of one size; does not wait for the values."""
  compiled: dict[tuple[int, ...], int] = {}  # the batch size that was computed last
  for batch in batches:
    names, stacks = list(batch), list(batch.values())
    size = stacks[0].shape
    # Compiling takes seconds for each batch size: a remainder is cheaper filled up with repeats.
    count = compiled[size] = max(len(stacks), compiled.get(size, 0))
    a, b, *results = np.stack([*stacks, *[stacks[-1]] * (count - len(stacks))], axis=1)
    yield (
      names,
      [
        compute_metrics(a, b, result, ssim_range=ssim_range) | compute_reader_metrics(a, b, result)
        for result in results
      ],
    )


def _one_behind(values: Iterable[T]) -> Iterator[T]:
  """Yields each value when the next one has been started."""
  waiting: list[T] = []
  for value in values:
    yield from waiting
    waiting = [value]
  yield from waiting
