"""Which sources belong together and where the fused ones go: by names, none is decoded."""

import dataclasses
import mimetypes
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import kinds, pairing
from dmfnet_jax.fusing.kinds import DICOM, FOLDER, NIFTI, PICTURE
from dmfnet_jax.fusing.pairing import Naming, Source, Together, same
from dmfnet_jax.io import paths, pictures


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two sources or more and where their result goes: a file, or for a DICOM result a folder."""

  stem: str  # also the name that its noise is drawn from
  a: Any
  b: Any
  out: Any
  kind_a: str = PICTURE
  kind_b: str = PICTURE
  further: tuple[Source, ...] = ()  # of a model that takes more than A and B

  @property
  def sources(self) -> tuple[Source, ...]:
    """All of them, in the model's order."""
    return (self.kind_a, self.a), (self.kind_b, self.b), *self.further

  @property
  def is_volume(self) -> bool:
    """Whether the sources are volumes; otherwise all are pictures."""
    return self.kind_a != PICTURE

  @property
  def out_kind(self) -> str:
    """What the result is, which follows from its name."""
    if kinds.is_nifti_name(self.out):
      return NIFTI
    return PICTURE if self.out.suffix.lower() in pictures.IMAGE_SUFFIXES else DICOM

  @property
  def out_std(self) -> Any:
    """Where the standard deviation over the noise draws goes."""
    return self.beside("_std.nii.gz" if self.is_volume else "_std.tiff")

  @property
  def out_overlay(self) -> Any:
    """Where B laid over A goes."""
    return self.beside("_overlay.png" if self.out_kind == PICTURE else "_overlay.nii.gz")

  @property
  def out_record(self) -> Any:
    """Where it is written what the result depends on."""
    return self.beside(".json")

  def beside(self, ending: str) -> Any:
    """A path beside the result: its name without the suffix, and the ending."""
    kind = self.out_kind
    name = self.out.name if kind == DICOM else kinds.stem_of(kind, self.out)
    return self.out.with_name(name + ending)


class Matched(NamedTuple):
  """What `match_pairs` finds.

  Attributes:
    pairs: in the order of their names, pictures first; those of a list in its order.
    alone: the files that lack a partner.
    naming: with the endings that were recognised.
    notes: what to tell the user.
    advice: what may be wrong where there are no pairs.
  """

  pairs: list[Pair]
  alone: list[str]
  naming: Naming
  notes: list[str]
  advice: str


def match_pairs(
  a: paths.PathLike | None,
  b: paths.PathLike | None,
  out: paths.PathLike,
  naming: Naming = Naming(),  # noqa: B008 (it is never changed)
  *,
  further: Sequence[paths.PathLike] = (),
  with_std: bool = False,
  with_overlay: bool = False,
) -> Matched:
  """Finds the pairs and where their results go, without decoding a file.

  Args:
    a: a file or a folder; with a list, the folder where its paths begin, or None.
    b: the same kind.
    out: see `files.fuse_files`.
    naming: how the sources are named.
    further: a third source and so on, each as `a` and `b` are.
    with_std: whether the deviation will be written, too.
    with_overlay: whether B laid over A will be.

  Raises:
    UserError: a path does not exist or does not fit the others.
  """
  path_out = paths.as_path(out)
  given = [paths.as_path(path) for path in (a, b) if path is not None]
  others = [paths.as_path(path) for path in further]
  for path in (*given, *others):
    if not paths.exists(path):
      raise UserError(f"{path}: no such file or folder")
  if naming.pairs is not None:
    if others:
      raise UserError(f"{others[0]}: a list of pairs has no further sources: leave --pairs out")
    return _match_into(path_out, pairing.read_list(naming, given), [])
  if len(given) < 2:
    raise UserError("give A and B, or a list by --pairs")
  path_a, path_b = given
  files_a, files_b = (
    paths.list_files(path) if path.is_dir() else None for path in (path_a, path_b)
  )
  kind_a, kind_b = kinds.kind_of(path_a, files_a), kinds.kind_of(path_b, files_b)
  # Beside one series a folder is no folder of pairs: it may hold a single slice and its preview.
  if kind_b == DICOM and kind_a == FOLDER and kinds.holds_series(files_a or [], 1):
    kind_a = DICOM
  elif kind_a == DICOM and kind_b == FOLDER and kinds.holds_series(files_b or [], 1):
    kind_b = DICOM
  if FOLDER in (kind_a, kind_b):
    if kind_a != kind_b and path_a.is_dir() and path_b.is_dir():
      which, series = (a, b) if kind_a == FOLDER else (b, a)
      raise UserError(
        f"{which} is a folder of pairs and {series} the folder of one DICOM series: give two of a "
        "kind (a series has a folder of its own)"
      )
    if kind_a != kind_b:
      raise UserError(f"{a} and {b}: give two files or two folders, not one of each")
    together = pairing.match_folders(given, (files_a or [], files_b or []), naming)
    # A format that is not read is named as well, or its pairs would be missing without a word.
    files = dict.fromkeys([*(files_a or []), *(files_b or [])])
    named = [f"{path} ({why})" for path in files if (why := kinds.why_unread(path))]
    return _with_further(_match_into(path_out, together, named), others, path_out)
  if (kind_a == PICTURE) != (kind_b == PICTURE):
    raise UserError(f"{a} is a {kind_a} and {b} a {kind_b}: give two of a kind")

  name = pairing.pair_name(kinds.stem_of(kind_a, path_a), naming)
  sources = []
  for path in others:
    listed = paths.list_files(path) if path.is_dir() else []
    kind = kinds.kind_of(path, listed)
    if kind == FOLDER and kind_a == DICOM and kinds.holds_series(listed, 1):
      kind = DICOM
    if kind == FOLDER or (kind == PICTURE) != (kind_a == PICTURE):
      raise UserError(f"A is a {kind_a} and {path} a {kind}: give all of a kind")
    sources.append((kind, path))
  place = _out_of_one(name, kind_a, path_out)
  pair = Pair(name, path_a, path_b, place, kind_a, kind_b, tuple(sources))
  targets = [pair.out]
  targets += [pair.out_std, pair.beside("_std.png")] if with_std else []
  targets += [pair.out_overlay] if with_overlay else []
  for target in targets:
    _check_target(pair, target)
  notes = [f"warning: A and B are the same, {path_a}"] if same(path_a, path_b) else []
  return Matched([pair], [], naming, notes, "")


def _match_into(out: Any, together: Together, unread: list[str]) -> Matched:
  """Gives many pairs their places in the folder of the results."""
  if out.is_file() or (_names_a_file(out) and not out.is_dir()):
    raise UserError(f"{out}: several pairs need a folder as the output, not a file")
  if out.is_dir():
    sources = (path for pair in together.pairs.values() for _, path in pair)
    for folder in dict.fromkeys(path.parent for path in sources):
      if same(out, folder):
        raise UserError(f"{out}: the output folder is a source folder: choose another")
  pairs = []
  for name, ((kind_a, path_a), (kind_b, path_b)) in together.pairs.items():
    suffix = {PICTURE: ".png", NIFTI: ".nii.gz", DICOM: ""}[kind_a]
    pairs.append(Pair(name, path_a, path_b, out / f"{name}{suffix}", kind_a, kind_b))
  alone = [*map(os.fspath, together.alone), *unread]
  return Matched(pairs, alone, together.naming, together.notes, together.advice)


def _with_further(matched: Matched, folders: Sequence[Any], out: Any) -> Matched:
  """Adds the sources of further folders to the pairs; a pair without one of them is left out."""
  if not folders:
    return matched
  for folder in folders:
    if not folder.is_dir():
      raise UserError(f"{folder}: a file, where A and B are folders")
    if same(out, folder):
      raise UserError(f"{out}: the output folder is a source folder: choose another")
  listed = [kinds.list_sources(folder, paths.list_files(folder)) for folder in folders]
  pairs, alone = [], list(matched.alone)
  for pair in matched.pairs:
    found = [sources.get(pair.stem, ("", None)) for sources in listed]
    lacking = [
      place
      for place, (kind, _) in zip(folders, found, strict=True)
      if not kind or (kind != PICTURE) != pair.is_volume
    ]
    if lacking:
      wanted = "volume" if pair.is_volume else "picture"
      alone.append(f"{pair.a} (no {wanted} {pair.stem} in {lacking[0]})")
    else:
      pairs.append(dataclasses.replace(pair, further=tuple(found)))
  advice = "what is in the folders behind B is named as the pairs are"
  return matched._replace(pairs=pairs, alone=alone, advice=matched.advice or advice)


def _out_of_one(name: str, kind_a: str, out: Any) -> Any:
  """Where the result of one pair goes."""
  if _names_a_file(out) and not out.is_dir():
    if kind_a == PICTURE and kinds.is_nifti_name(out):
      raise UserError(f"{out}: pictures fuse into a picture, not into a volume")
    return out
  if kinds.is_unwritten_volume(out) and not out.is_dir():
    raise UserError(f"{out}: cannot write this: use a name in .nii.gz, or a folder")
  kind, _ = mimetypes.guess_type(out.name)
  file_name = (kind or "").startswith(("image/", "application/dicom")) and not out.is_dir()
  if out.is_file() or file_name:
    if kind_a != PICTURE:
      raise UserError(
        f"{out}: cannot write this: use a name in .nii.gz, or a folder (of a DICOM series)"
      )
    suffixes = ", ".join(pictures.IMAGE_SUFFIXES)
    raise UserError(f"{out}: cannot write this format: use a folder or one of {suffixes}")
  if kind_a == DICOM:
    return out if out.name not in ("", "..") else out.resolve()
  return out / (name + (".png" if kind_a == PICTURE else ".nii.gz"))


def _names_a_file(out: Any) -> bool:
  return out.suffix.lower() in pictures.IMAGE_SUFFIXES or kinds.is_nifti_name(out)


def _check_target(pair: Pair, target: Any) -> None:
  """Refuses to write over a source, or a series into the folder of one."""
  taken = [path for _, path in pair.sources]
  if pair.out_kind == DICOM:
    taken += [path.parent for path in taken if not path.is_dir()]
  if any(same(target, path) for path in taken):
    raise UserError(f"{target}: the output would replace a source: choose another name")
