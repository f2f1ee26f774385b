"""Compares a method with numbers that its published program computed.

    python tests/methods/golden_check.py NAME FILE.npz [--prefix P]

The program's weights are drawn, not stored: each from its own key, with P before it. Every array of
the file is computed and compared, a line each; the last line is
`NAME: compared N of M arrays, worst E at KEY`. Exit code 0 only where all were compared and every
one lies within its tolerance. Errors are the largest difference over the array's largest value.
"""

import argparse
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "methods"), str(TESTS.parent)]

import numpy as np  # noqa: E402

VALUE, GRADIENT = 1e-4, 1e-3


class Computed(NamedTuple):
  """What a golden array is compared with.

  Attributes:
    value: ours.
    tolerance: of the error.
    scale: what the difference is divided by; None for the golden's largest value, or its norm.
    by_norm: of the difference its norm, not its largest value: for arrays with kinks in them.
  """

  value: Any
  tolerance: float = VALUE
  scale: float | None = None
  by_norm: bool = False


Draw = Callable[[str, Any], np.ndarray]
Compute = Callable[[Mapping[str, np.ndarray], Draw], Mapping[str, Computed]]


def drawn(prefix: str, key: str, shape: Any) -> np.ndarray:
  """The golden rule's weight of a key."""
  import golden_weights

  return golden_weights.draw(prefix + key, shape)


def error_of(expected: np.ndarray, computed: Computed) -> float:
  """The error; infinite where shapes differ, something is not finite, or a word is another."""
  if np.asarray(expected).dtype.kind == "U":
    return 0.0 if str(expected) == str(computed.value) else float("inf")
  ours = np.asarray(computed.value, np.float64)
  theirs = np.asarray(expected, np.float64)
  if ours.shape != theirs.shape or not np.isfinite(ours).all():
    return float("inf")
  size = np.linalg.norm if computed.by_norm else functools.partial(np.linalg.norm, ord=np.inf)
  scale = size(theirs.ravel()) if computed.scale is None else computed.scale
  return float(size((ours - theirs).ravel()) / (scale or 1.0))


def check(name: str, file: str | Path, prefix: str = "") -> bool:
  """Compares, prints, and tells whether all is well."""
  with np.load(file) as stored:
    arrays = dict(stored)
  compute: Compute = importlib.import_module(f"goldens.{name}").compute
  computed = compute(arrays, functools.partial(drawn, prefix))
  worst, worst_key, passed, compared = 0.0, "nothing", True, 0
  for key, expected in arrays.items():
    if key not in computed:
      print(f"{key:<60} not computed")
      passed = False
      continue
    error = error_of(expected, computed[key])
    within = error <= computed[key].tolerance
    passed &= within
    compared += 1
    if error > worst:
      worst, worst_key = error, key
    verdict = "ok" if within else "TOO FAR"
    print(f"{key:<60} {error:9.2e} of {computed[key].tolerance:.0e}  {verdict}")
  print(f"{name}: compared {compared} of {len(arrays)} arrays, worst {worst:.2e} at {worst_key}")
  return passed


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("name", help="the method")
  parser.add_argument("file", type=Path, help="the golden arrays")
  parser.add_argument("--prefix", default="", help="stands before each key when it is drawn")
  args = parser.parse_args()
  return 0 if check(args.name, args.file, args.prefix) else 1


if __name__ == "__main__":
  sys.exit(main())
