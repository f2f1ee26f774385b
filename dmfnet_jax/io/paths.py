"""Files and folders, here and remote, and the errors of both as one line.

Paths with a scheme (`s3://bucket/x.png`) go through `etils.epath`, all others through `pathlib`.
Behind `gs://` is TensorFlow where it is installed, else gcsfs; behind `s3://` is s3fs.
What cannot be done raises a UserError that begins with the path, unless a function says otherwise.
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import secrets
import unicodedata
from collections.abc import Iterable
from typing import Any

from dmfnet_jax.errors import UserError, one_line

PathLike = str | os.PathLike[str]

_CLIENTS = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # of fsspec


def is_remote(path: PathLike) -> bool:
  """Whether a path is in an object store, where files are written whole."""
  return "://" in os.fspath(path)


def as_path(path: PathLike) -> Any:
  """Returns a `pathlib.Path`, or an `epath.Path` where the path names a remote place.

  Raises:
    UserError: there is no such kind of place, or what reads it is not installed.
  """
  if not is_remote(path):
    return pathlib.Path(path)
  # Loaded only when asked for: local work needs nothing of it.
  from etils import epath

  scheme = os.fspath(path).partition("://")[0]
  try:
    remote = epath.Path(path)
  except KeyError:
    raise UserError(f"{path}: {scheme}:// is not a place that files can be read from") from None
  client = _CLIENTS.get(scheme, "fsspec")
  if not _is_installed(client) and not (scheme == "gs" and _is_installed("tensorflow")):
    raise UserError(f"{path}: {scheme}:// needs {client}: pip install {client}")
  _set_up(scheme)
  return remote


@functools.cache
def _is_installed(module: str) -> bool:
  return importlib.util.find_spec(module) is not None


@functools.cache
def _set_up(scheme: str) -> None:
  """Chooses how epath reaches a kind of store."""
  if not _is_installed("fsspec"):
    return  # it is TensorFlow then
  import fsspec

  # Others write there, too: what was listed once is not what is there.
  fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
  if scheme != "gs":
    # epath prefers TensorFlow, which has no file system but Google's.
    from etils.epath import gpath

    os.environ["EPATH_USE_TF"] = "false"  # for other processes, too
    gpath._is_tf_installed.cache_clear()


def _errors(path: PathLike) -> tuple[type[Exception], ...]:
  """What may be raised at a path: the client of an object store has errors of its own."""
  return (Exception,) if is_remote(path) else (OSError,)


def exists(path: PathLike) -> bool:
  """Whether there is such a file or folder."""
  place = as_path(path)
  try:
    return place.exists()
  except _errors(path) as error:
    raise UserError(f"{path}: cannot look there: {reason(error)}") from error


def make_folder(path: PathLike) -> Any:
  """Makes a folder, with those above it, where it is missing; returns it as `as_path` does."""
  folder = as_path(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except _errors(path) as error:
    raise UserError(f"{folder}: cannot make this folder: {reason(error)}") from error
  return folder


def read_bytes(path: PathLike) -> bytes:
  """Reads a whole file."""
  place = as_path(path)
  try:
    return place.read_bytes()
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except IsADirectoryError:
    raise UserError(f"{path}: is a folder, not a file") from None
  except _errors(path) as error:
    raise UserError(f"{path}: cannot read: {reason(error)}") from error


def write_bytes(path: PathLike, data: bytes) -> None:
  """Writes a file that appears whole or not at all, in a folder that exists."""
  place = as_path(path)
  try:
    if is_remote(path):
      place.write_bytes(data)
    else:
      write_together([(place, data)])
  except _errors(path) as error:
    raise UserError(f"{path}: cannot write: {reason(error)}") from error


def write_together(files: Iterable[tuple[Any, bytes]]) -> None:
  """Writes files (to what `as_path` returns), all complete before the first takes its place.

  Raises:
    OSError: one cannot be written: then none appears.
  """
  moves = []
  try:
    for target, data in files:
      # Not tempfile: its files are readable by their owner alone, and these are to be shared.
      temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
      moves.append((temporary, target))
      with temporary.open("wb") as file:
        file.write(data)
        if not is_remote(target):  # or a machine that stops could leave an empty file of that name
          file.flush()
          os.fsync(file.fileno())
    for temporary, target in moves:
      temporary.replace(target)
  finally:
    for temporary, _ in moves:
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def delete(path: PathLike) -> None:
  """Deletes a file where there is one."""
  place = as_path(path)
  try:
    place.unlink(missing_ok=True)
  except _errors(path) as error:
    raise UserError(f"{path}: cannot delete: {reason(error)}") from error


def move_folder(source: Any, target: Any) -> None:
  """Moves a folder or file; in an object store, which renames nothing, by copying each object.

  Raises:
    OSError: it cannot be done.
  """
  if not is_remote(source):
    source.rename(target)
    return
  _copy(source, target)
  source.rmtree() if source.is_dir() else source.unlink()


def _copy(source: Any, target: Any) -> None:
  if not source.is_dir():
    source.copy(target, overwrite=True)
    return
  target.mkdir(parents=True, exist_ok=True)
  for path in source.iterdir():
    _copy(path, target / path.name)


def list_files(folder: PathLike, *, may_be_empty: bool = False) -> list[Any]:
  """Lists the files of a folder that are not hidden, without its subfolders, sorted by name.

  Args:
    folder: the folder.
    may_be_empty: in an object store an empty folder is no folder: take none for an empty one.

  Raises:
    UserError: there is no such folder, or it cannot be listed.
  """
  place = as_path(folder)
  try:
    if is_remote(folder):
      if not place.is_dir():
        if may_be_empty:
          return []
        raise FileNotFoundError
      # No test of each entry: on an object store that is a request apiece.
      files = list(place.iterdir())
    else:
      with os.scandir(folder) as entries:
        files = [pathlib.Path(entry.path) for entry in entries if entry.is_file()]
    shown = [path for path in files if not path.name.startswith(".")]
    return sorted(shown, key=lambda path: path.name)  # quicker than comparing paths
  except FileNotFoundError:
    raise UserError(f"{folder}: no such folder") from None
  except NotADirectoryError:
    raise UserError(f"{folder}: is not a folder") from None
  except _errors(folder) as error:
    raise UserError(f"{folder}: cannot list: {reason(error)}") from error


def file_stem(path: Any) -> str:
  """What stands before the last dot of a file's name: the name of its pair.

  Composed, because macOS stores names decomposed and pairs must still match across systems.
  """
  return compose(path.stem)


def compose(name: str) -> str:
  """A name in Unicode's composed form (NFC)."""
  return unicodedata.normalize("NFC", name)


def reason(error: Exception) -> str:
  """What an error of the system or of a library says, in one line."""
  return getattr(error, "strerror", None) or one_line(error)
