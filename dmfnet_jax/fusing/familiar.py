"""Tells where a model meets pairs of another kind than it was trained on.

The model's file names those kinds (`weights.files`); what a pair is its names or DICOM tags say
(`io.modalities`). Where either does not say it, nothing is told.
"""

from collections.abc import Iterable, Sequence

from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.io import modalities
from dmfnet_jax.messages import say


class Familiarity:
  """Compares pairs with what a model was trained on; tells of each kind once.

  Args:
    model: the model's name.
    trained_on: kinds of pairs, A first, such as "MRI-CT"; empty where unknown.
  """

  def __init__(self, model: str, trained_on: Sequence[str]):
    self._model = model
    self._trained_on = trained_on
    self._told: set[tuple[str, str]] = set()

  def check_names(self, pairs: Iterable[Pair]) -> None:
    """Looks at the names of pictures."""
    if self._trained_on:
      for pair in pairs:
        kinds = [modalities.of_name(path, photographs=True) for path in (pair.a, pair.b)]
        self.check(pair.stem, *kinds)

  def check(self, name: str, a: str, b: str) -> None:
    """Looks at one pair: what A and B are, "" where nothing says it."""
    kinds = modalities.family(a), modalities.family(b)
    known = {"-".join(pair) for pair in ((a, b), kinds)}
    if not (self._trained_on and all(kinds)) or kinds in self._told or known & {*self._trained_on}:
      return
    self._told.add(kinds)
    say(
      f"warning: pair {name}: A is {a} and B is {b}: {self._model} was not trained on such pairs, "
      f"but on {', '.join(self._trained_on)}"
    )
