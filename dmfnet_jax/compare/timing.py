"""How long a model fuses: counted while it works, compile time apart."""

import math
import time
from typing import Any

import jax
import numpy as np

from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.fusing.pictures import load_pair


class Timed:
  """A model that takes the time of its fusing; in all else it is the model.

  The first call with so many pictures of one size is left out: it compiles. Reading, writing and
  measuring are no part of a call.

  Args:
    model: a `Model`, or what fuses like one.
  """

  def __init__(self, model: Any):
    self._model = model
    self._known: set[tuple[int, ...]] = set()  # how many, and their size
    self._last: tuple[Any, Any] | None = None
    self._seconds, self._count = 0.0, 0

  def __getattr__(self, name: str) -> Any:
    return getattr(self._model, name)

  def fuse(self, *sources: Any, **options: Any) -> Any:
    """Fuses batches or lists of pictures; see `Model.fuse`."""
    start = time.perf_counter()
    fused = self._model.fuse(*sources, **options)
    seconds = time.perf_counter() - start
    kind = (len(sources[0]), *np.shape(sources[0][0]))
    if kind in self._known:
      self._seconds += seconds
      self._count += len(sources[0])
    self._known.add(kind)
    self._last = sources, {k: v for k, v in options.items() if k != "on_done"}
    return fused

  def seconds(self, pair: Pair, options: FuseOptions) -> float:
    """The seconds of fusing a pair of pictures (or of slices), the mean over all that counted.

    Where every call was the first of its kind, the last one is made again. Where nothing was fused,
    the results being there already, one pair is.

    Args:
      pair: that one.
      options: how it is fused.

    Returns:
      The seconds; NaN where nothing was fused and the pair is of volumes.
    """
    if self._last is None and not pair.is_volume:
      loaded = load_pair(pair, options, "", self._model)
      self.fuse(*([x] for x in loaded.sources), seed=options.seed, tile=loaded.tile or "off")
    if self._last is None:
      return math.nan
    if not self._count:
      sources, asked = self._last
      self.fuse(*sources, **asked)
    return self._seconds / self._count

  def count_parameters(self) -> int:
    """How many numbers the model's networks have."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(self._model.params))
