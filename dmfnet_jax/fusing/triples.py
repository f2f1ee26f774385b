"""Which fused pictures and volumes belong to which sources: for measuring and for reports."""

from collections.abc import Mapping
from typing import Any

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import kinds, pairing
from dmfnet_jax.fusing.kinds import FOLDER, PICTURE
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.pairing import Naming, Together
from dmfnet_jax.io import paths
from dmfnet_jax.messages import say


def find_triples(
  a: paths.PathLike | None,
  b: paths.PathLike | None,
  fused: paths.PathLike,
  *,
  naming: Naming = Naming(),  # noqa: B008 (it is never changed)
) -> tuple[dict[str, Pair], dict[str, str]]:
  """Finds what belongs together: three folders, of pictures and volumes, or three files or series.

  In folders a fused picture has its pair's name, as fusing gives it. A fused one without both
  sources, and two sources without a fused one, count as a pair that failed; a source that lacks the
  other source too was never a pair and is only named. So are files in formats that are not read.

  Args:
    a: the first source or sources (MRI).
    b: the second.
    fused: the fused ones.
    naming: how the sources are named; with a list `a` and `b` may be None.

  Returns:
    Name -> the pair, whose `out` is the fused file; and name -> what is lacking, for those that
    failed. These, and sources alone, are also named on stderr.

  Raises:
    UserError: a path does not exist or does not fit the others, or no name is in all three.
  """
  given = [paths.as_path(path) for path in (a, b) if path is not None]
  place = paths.as_path(fused)
  for path in (*given, place):
    if not path.exists():
      raise UserError(f"{path}: no such {'file or ' if path.suffix else ''}folder")
  files = paths.list_files(place) if place.is_dir() else []
  kind = kinds.kind_of(place, files)
  if kind != FOLDER and naming.pairs is None:
    return _one(given, place, kind), {}
  if kind != FOLDER:
    raise UserError(f"{place}: give the folder of the fused pictures beside a list of pairs")
  results = kinds.list_sources(place, files)
  if naming.pairs is not None:
    together, listed = pairing.read_list(naming, given), []
  elif len(given) < 2:
    raise UserError("give the folders of A and of B, or a list by --pairs")
  else:
    for path in given:
      if path.is_file():
        raise UserError(f"{path}: a file, and {place} is a folder: give three of a kind")
    listed = [paths.list_files(path) for path in given]
    together = pairing.match_folders(given, listed, naming)
  for note in together.notes:
    say(note)
  for file in dict.fromkeys(file for found in (*listed, files) for file in found):
    if why := kinds.why_unread(file):
      say(f"warning: not measured: {file} ({why})")
  found, failures = _join(together, results, place)
  for name in sorted(failures):
    say(f"error: pair {name}: {failures[name]}")
  if not found:
    sources = " and ".join(map(str, given)) or naming.pairs
    advice = f": {together.advice}" if together.advice else ""
    raise UserError(f"no file stem is in all three of {sources} and {place}{advice}")
  return found, failures


def _one(sources: list[Any], fused: Any, kind: str) -> dict[str, Pair]:
  """The one pair of three files or series."""
  if len(sources) < 2:
    raise UserError("give A and B")
  kind_a, kind_b = map(kinds.kind_of, sources)
  if FOLDER in (kind_a, kind_b) or len({x == PICTURE for x in (kind_a, kind_b, kind)}) > 1:
    raise UserError(f"A is a {kind_a}, B a {kind_b} and {fused} a {kind}: give three of a kind")
  name = kinds.stem_of(kind, fused)
  return {name: Pair(name, sources[0], sources[1], fused, kind_a, kind_b)}


def _join(
  together: Together, results: Mapping[str, tuple[str, Any]], place: Any
) -> tuple[dict[str, Pair], dict[str, str]]:
  """Joins pairs of sources with what was fused; what is lacking by name."""
  found: dict[str, Pair] = {}
  failures = {name: f"not in {place}" for name in together.pairs if name not in results}
  alone = {_name_of(path, together.naming): path for path in together.alone}
  for name, path in sorted(alone.items()):
    if name not in results:
      say(f"warning: no partner for {path}")
  for name, (kind, fused) in results.items():
    if name not in together.pairs:
      lacking = f"no partner for {alone[name]}" if name in alone else "not among the sources"
      failures[name] = lacking
      continue
    (kind_a, a), (kind_b, b) = together.pairs[name]
    if (kind == PICTURE) != (kind_a == PICTURE):
      failures[name] = f"{fused} is a {kind} and {a} a {kind_a}"
    else:
      found[name] = Pair(name, a, b, fused, kind_a, kind_b)
  return dict(sorted(found.items())), failures


def _name_of(path: Any, naming: Naming) -> str:
  return pairing.pair_name(kinds.stem_of(kinds.kind_of(path), path), naming)
