"""Which two sources belong together, by their names alone: none is decoded.

Two sources are a pair where their stems are the same but for the endings that the user names
(`--suffix-a`, `--suffix-b`), which are cut off. Two ways to lay out data are known without them:

- BIDS, folders named `sub-*`: A is what lies in `anat`, B what lies in `pet` or `ct`. Subject and
  session make the pair, whatever else the names say.
- nnU-Net, one folder with `CASE_0000`, `CASE_0001`, ...: A is the first channel, B the second.

Or a list names the pairs, and folders do not matter: `read_list`.
"""

import csv
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import kinds
from dmfnet_jax.fusing.kinds import FOLDER, PICTURE
from dmfnet_jax.io import paths
from dmfnet_jax.messages import first_of

Source = tuple[str, Any]  # its kind, one of `kinds`, and its path
Sources = dict[str, Source]  # by stem

_DATATYPES = {"a": ("anat",), "b": ("pet", "ct")}
_SUBJECT_AND_SESSION = re.compile(r"sub-[^_]+(_ses-[^_]+)?")
_CHANNEL = re.compile(r".+_\d{4}")


class Naming(NamedTuple):
  """How sources are named.

  Attributes:
    suffix_a: the ending of the stems of A, cut off to get the pair's name.
    suffix_b: that of B.
    pairs: a file with the list of pairs, see `read_list`.
  """

  suffix_a: str = ""
  suffix_b: str = ""
  pairs: str | None = None


class Together(NamedTuple):
  """What belongs together.

  Attributes:
    pairs: A and B by the pair's name: A's stem without the ending.
    alone: the paths of those that lack a partner.
    naming: with the endings that were recognised.
    notes: what to tell the user.
    advice: what may be wrong where there are no pairs.
  """

  pairs: dict[str, tuple[Source, Source]]
  alone: list[Any]
  naming: Naming
  notes: list[str]
  advice: str = ""


def match_folders(folders: Sequence[Any], files: Sequence[list[Any]], naming: Naming) -> Together:
  """Finds the pairs of two folders, or of one that is given twice.

  Args:
    folders: of A and of B.
    files: what `paths.list_files` says of each.
    naming: what the user says; its `pairs` does not matter here.

  Raises:
    UserError: a folder cannot be read, it is one folder and nothing says what is A and what is B,
      or several sources could be one.
  """
  is_one = same(*folders)
  in_a, bids_a = _list(folders[0], files[0])
  in_b, bids_b = (in_a, bids_a) if is_one else _list(folders[1], files[1])
  is_bids, given = bids_a or bids_b, naming
  if is_bids:
    naming = naming._replace(
      suffix_a=naming.suffix_a or _bids_ending("a", folders[0], in_a),
      suffix_b=naming.suffix_b or _bids_ending("b", folders[1], in_b),
    )
  if is_one:
    naming = _tell_apart(folders[0], in_a, naming)
  notes = []
  if naming != given:
    ends = f"A is *{naming.suffix_a}, B is *{naming.suffix_b}"
    known_as = "BIDS" if is_bids else "nnU-Net"
    notes.append(f"{known_as}: {ends}; --suffix-a and --suffix-b choose others")
  suffix_a, suffix_b = naming[:2]
  others = (suffix_b, suffix_a) if is_one else ("", "")
  of_a = _by_key(in_a, suffix_a, others[0], letter="a", is_bids=is_bids)
  of_b = _by_key(in_b, suffix_b, others[1], letter="b", is_bids=is_bids)
  pairs = {}
  for key, stem in of_a.items():
    if key in of_b:
      a, b = in_a[stem], in_b[of_b[key]]
      if (a[0] == PICTURE) == (b[0] == PICTURE):
        pairs[stem.removesuffix(suffix_a)] = a, b
  paired = {path for pair in pairs.values() for _, path in pair}
  chosen = [of[stem][1] for of, by_key in ((in_a, of_a), (in_b, of_b)) for stem in by_key.values()]
  alone = [path for path in chosen if path not in paired]
  if not is_bids and (
    left := len({path for of in (in_a, in_b) for _, path in of.values()} - set(chosen))
  ):
    notes.append(f"warning: left out: {left} with other endings than {_endings(naming)}")
  order = sorted(pairs, key=lambda name: (pairs[name][0][0] != PICTURE, name))
  advice = "" if pairs else _advice(in_a, in_b)
  return Together({name: pairs[name] for name in order}, alone, naming, notes, advice)


def read_list(naming: Naming, folders: Sequence[Any] = ()) -> Together:
  """Reads a list of pairs.

  A line a pair, its cells between commas, semicolons or tabs: the paths of A and of B, and if
  wanted the pair's name, which is otherwise A's stem. A first line with `a`, `b` and `name` says in
  which order they and other columns stand.

  Args:
    naming: names the file; of A's stems the ending is cut off.
    folders: where the paths of A and of B begin; the list's own folder by default.

  Raises:
    UserError: there is no such list, a line of it is none, or names what does not exist.
  """
  place = paths.as_path(naming.pairs or "")
  if len(folders) == 1:
    raise UserError("with --pairs give the folders of both A and B, or neither")
  roots = tuple(folders) or (place.parent, place.parent)
  pairs: dict[str, tuple[Source, Source]] = {}
  lines: dict[str, int] = {}
  missing: list[str] = []
  for number, cells in read_rows(place):
    where = f"{place}: line {number}"
    if not (cells["a"] and cells["b"]):
      raise UserError(f"{where}: give the paths of A and of B, with a comma between them")
    found = [_at(root, cells[side]) for root, side in zip(roots, "ab", strict=True)]
    if lacking := [path for path in found if not path.exists()]:
      missing += [f"line {number}: {path}" for path in lacking]
      continue
    kind_a, kind_b = (kinds.kind_of(path) for path in found)
    if FOLDER in (kind_a, kind_b) or (kind_a == PICTURE) != (kind_b == PICTURE):
      raise UserError(f"{where}: A is a {kind_a} and B a {kind_b}: give two pictures or volumes")
    name = cells["name"] or pair_name(kinds.stem_of(kind_a, found[0]), naming)
    if PurePath(name).name != name:
      raise UserError(f"{where}: the name {name!r} is no file's name")
    if name in pairs:
      raise UserError(
        f"{where}: the name {name} is that of line {lines[name]}, too: give each pair a name of "
        "its own, in a third column"
      )
    pairs[name], lines[name] = ((kind_a, found[0]), (kind_b, found[1])), number
  if missing:
    raise UserError(f"{place} names what does not exist: {first_of(missing)}")
  if not pairs:
    raise UserError(f"{place}: holds no pair")
  return Together(pairs, [], naming, [])


def pair_name(stem: str, naming: Naming) -> str:
  """The name of a pair by the stem of its A, without the ending."""
  return stem.removesuffix(naming.suffix_a) or stem


def same(path: Any, other: Any) -> bool:
  """Whether two paths lead to one file or folder; false where the first does not exist."""
  try:
    return os.path.samefile(path, other)
  except OSError:
    return os.fspath(path) == os.fspath(other)


def _tell_apart(folder: Any, stems: Collection[str], naming: Naming) -> Naming:
  """Completes the endings by which A and B in one folder are told apart.

  Raises:
    UserError: there are none.
  """
  if not (naming.suffix_a or naming.suffix_b) and _is_nnunet(stems):
    return naming._replace(suffix_a="_0000", suffix_b="_0001")
  if naming.suffix_a == naming.suffix_b:
    raise UserError(
      f"A and B are one folder, {folder}: name two, or tell its files apart by the endings of "
      "their names, such as --suffix-a _T1w --suffix-b _pet, or by a list, --pairs"
    )
  return naming


def _by_key(
  stems: Iterable[str],
  ending: str,
  other: str = "",
  *,
  letter: str = "a",
  is_bids: bool = False,
) -> dict[str, str]:
  """The stems of A or of B by what they share with those of their partners.

  Args:
    stems: all that there are.
    ending: of those that are meant; it is cut off.
    other: the ending of the partners where they lie in the same folder; the longer one wins.
    letter: "a" or "b".
    is_bids: whether subject and session make the pair.

  Raises:
    UserError: two of them are of one subject and session.
  """
  chosen: dict[str, str] = {}
  for stem in stems:
    if not stem.endswith(ending) or (len(other) > len(ending) and stem.endswith(other)):
      continue
    key = stem[: len(stem) - len(ending)]
    if is_bids:
      found = _SUBJECT_AND_SESSION.match(stem)
      key = found[0] if found else key
    if not key:
      continue
    if key in chosen:
      raise UserError(
        f"{key}: {chosen[key]} and {stem} both end in {ending}: name more of the ending by "
        f"--suffix-{letter}"
      )
    chosen[key] = stem
  return chosen


def read_rows(place: Any) -> Iterator[tuple[int, Mapping[str, str]]]:
  """The lines of a list that are no heading, by number: its cells "a", "b" and "name".

  Raises:
    UserError: it cannot be read, or is no text.
  """
  try:
    lines = paths.read_bytes(place).decode("utf-8-sig").splitlines()
  except UnicodeDecodeError:
    raise UserError(f"{place}: no list of pairs: it is not text in UTF-8") from None
  delimiter = max(",;\t", key=lines[0].count) if lines else ","
  columns = {"a": 0, "b": 1, "name": 2}
  for number, row in enumerate(csv.reader(lines, delimiter=delimiter), start=1):
    words = [cell.strip().lower() for cell in row]
    if number == 1 and {"a", "b"} <= set(words):
      columns = {name: words.index(name) for name in columns if name in words}
    elif any(words):
      yield (
        number,
        {name: "" for name in ("a", "b", "name")}
        | {name: row[i].strip() for name, i in columns.items() if i < len(row)},
      )


def _at(root: Any, path: str) -> Any:
  return paths.as_path(path) if paths.is_remote(path) else root / path


def _list(folder: Any, files: list[Any]) -> tuple[Sources, bool]:
  """The sources of a folder, and whether it is one of BIDS, which has them below."""
  if found := kinds.list_sources(folder, files):
    return found, False
  for below in _bids_folders(folder):
    for stem, source in kinds.list_sources(below, paths.list_files(below)).items():
      if stem in found:
        raise UserError(f"{folder}: {found[stem][1]} and {source[1]} have the same stem")
      found[stem] = source
  return found, bool(found)


def _bids_folders(folder: Any) -> Iterator[Any]:
  """The folders of images of a BIDS dataset: sub-*/DATATYPE and sub-*/ses-*/DATATYPE."""
  for subject in kinds.folders(folder):
    if subject.name.startswith("sub-"):
      for inside in kinds.folders(subject):
        yield from kinds.folders(inside) if inside.name.startswith("ses-") else [inside]


def _bids_ending(letter: str, folder: Any, sources: Sources) -> str:
  """The ending of what BIDS says is A or B, where there is one."""
  datatypes = _DATATYPES[letter]
  stems = [stem for stem, (_, path) in sources.items() if path.parent.name in datatypes]
  endings = sorted(set(map(_last_word, stems)))
  if len(endings) == 1:
    return endings[0]
  there = ", ".join(sorted(set(map(_last_word, sources))))
  raise UserError(
    f"{folder} is a BIDS dataset: say what is {letter.upper()} by --suffix-{letter}, one of {there}"
  )


def _is_nnunet(stems: Collection[str]) -> bool:
  ends = {stem[-5:] for stem in stems}
  return all(map(_CHANNEL.fullmatch, stems)) and {"_0000", "_0001"} <= ends


def _endings(naming: Naming) -> str:
  return " and ".join(repr(ending) for ending in naming[:2])


def _advice(in_a: Sources, in_b: Sources) -> str:
  """The endings by which sources would be pairs, or that there are options for them."""
  suffix_a, suffix_b = (_common_ending(sources) for sources in (in_a, in_b))
  names = (
    {stem.removesuffix(end) for stem in sources}
    for end, sources in ((suffix_a, in_a), (suffix_b, in_b))
  )
  if set.intersection(*names):
    given = {"a": suffix_a, "b": suffix_b}
    return "add " + " ".join(f"--suffix-{k} {end}" for k, end in given.items() if end)
  return "--suffix-a and --suffix-b cut endings off, and --pairs takes a list"


def _common_ending(stems: Iterable[str]) -> str:
  """The last word of all stems with its underscore, or else its dash, where it is the same."""
  stems = list(stems)
  for mark in "_-":
    endings = {_last_word(stem, mark) if mark in stem else "" for stem in stems}
    if len(endings) == 1 and (ending := endings.pop()):
      return ending
  return ""


def _last_word(stem: str, mark: str = "_") -> str:
  return mark + stem.rpartition(mark)[2]
