"""Which pictures belong together and where the fused one goes: by names, none is opened."""

import dataclasses
import mimetypes
import os
from typing import Any

from dmfnet_jax.data import images
from dmfnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pair:
  """One pair of files and where its result goes."""

  stem: str  # also the name that its noise is drawn from
  a: Any
  b: Any
  out: Any

  @property
  def out_std(self) -> Any:
    """Where the standard deviation over the noise draws goes."""
    return self.out.with_name(f"{self.out.stem}_std.tiff")


def match_pairs(
  a: images.PathLike, b: images.PathLike, out: images.PathLike, *, with_std: bool = False
) -> tuple[list[Pair], list[str]]:
  """Finds the pairs and where their results go, without opening a picture.

  Args:
    a: a file or a folder.
    b: the same kind.
    out: see `fuse_files`.
    with_std: whether a second file a pair will be written.

  Returns:
    The pairs in the order of their stems, and the files of either folder that have no partner.

  Raises:
    UserError: a path does not exist or does not fit the others.
  """
  path_a, path_b, path_out = images.as_path(a), images.as_path(b), images.as_path(out)
  for path in (path_a, path_b):
    if not path.exists():
      raise UserError(f"{path}: no such file or folder")
  if path_a.is_dir() != path_b.is_dir():
    raise UserError(f"{a} and {b}: give two files or two folders, not one of each")
  names_a_file = path_out.suffix.lower() in images.IMAGE_SUFFIXES and not path_out.is_dir()

  if path_a.is_dir():
    if names_a_file or path_out.is_file():
      raise UserError(f"{out}: two folders need a folder as the output, not a file")
    if _same(path_out, path_a) or _same(path_out, path_b):
      raise UserError(f"{out}: the output folder is a source folder: choose another")
    found_a, found_b = images.list_images(path_a), images.list_images(path_b)
    pairs = [
      Pair(stem, found_a[stem], found_b[stem], path_out / f"{stem}.png")
      for stem in found_a
      if stem in found_b
    ]
    alone = [found_a[stem] for stem in found_a if stem not in found_b]
    alone += [found_b[stem] for stem in found_b if stem not in found_a]
    return pairs, [os.fspath(path) for path in alone]

  if not names_a_file:
    kind, _ = mimetypes.guess_type(path_out.name)
    if path_out.is_file() or (kind or "").startswith("image/"):
      suffixes = ", ".join(images.IMAGE_SUFFIXES)
      raise UserError(f"{out}: cannot write this format: use a folder or one of {suffixes}")
    path_out = path_out / f"{images.file_stem(path_a)}.png"
  pair = Pair(images.file_stem(path_a), path_a, path_b, path_out)
  for target in (pair.out, pair.out_std) if with_std else (pair.out,):
    if _same(target, path_a) or _same(target, path_b):
      raise UserError(f"{target}: the output would replace a source: choose another name")
  return [pair], []


def _same(path: Any, other: Any) -> bool:
  """Whether two paths lead to one file or folder; false where the first does not exist."""
  try:
    return os.path.samefile(path, other)
  except OSError:
    return os.fspath(path) == os.fspath(other)
