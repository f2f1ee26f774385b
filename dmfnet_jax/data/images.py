"""Reading and writing of picture files, and the value range of the network.

A picture in memory is a uint8 array, [H, W] grey or [H, W, 3] RGB, red first; `decoding` says how
the kinds of files map to it. Rows and columns are never resampled, and files written here carry no
EXIF orientation, so they show the way their sources show.

Paths with a scheme (`gs://bucket/x.png`) go through `etils.epath`, all others through `pathlib`.
"""

import contextlib
import io
import os
import pathlib
import secrets
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from dmfnet_jax.data import decoding
from dmfnet_jax.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""What is a picture in a folder, in lower case; the case of a file's suffix does not matter."""

# No chroma subsampling: a fused picture's colours are as sharp as its luma.
_WRITE_OPTIONS: dict[str, dict[str, Any]] = {
  ".png": {"format": "PNG"},
  ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
  ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
  ".tif": {"format": "TIFF", "compression": "tiff_deflate"},
  ".tiff": {"format": "TIFF", "compression": "tiff_deflate"},
  ".bmp": {"format": "BMP"},
}

PathLike = str | os.PathLike[str]


def as_path(path: PathLike) -> Any:
  """Returns a `pathlib.Path`, or an `epath.Path` where the path names a remote place.

  Raises:
    UserError: `epath` does not know the path's scheme.
  """
  if "://" in os.fspath(path):
    # Loaded only when asked for: local work needs nothing of it.
    from etils import epath

    try:
      return epath.Path(path)
    except KeyError:
      scheme = os.fspath(path).partition("://")[0]
      raise UserError(f"{path}: {scheme}:// is not a place that files can be read from") from None
  return pathlib.Path(path)


def make_folder(path: PathLike) -> Any:
  """Makes a folder, with those above it, where it is missing; returns it as `as_path` does.

  Raises:
    UserError: it cannot be made.
  """
  folder = as_path(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"{folder}: cannot make this folder: {error.strerror or error}") from error
  return folder


def read_image(path: PathLike) -> np.ndarray:
  """Reads one PNG, JPEG, TIFF or BMP file (told by its content, not by its suffix).

  Args:
    path: the file.

  Returns:
    uint8 [H, W] for a grey picture, uint8 [H, W, 3] (red first) for a colour one.

  Raises:
    UserError: the file is missing, unreadable, broken or of a kind that is refused. The message
      begins with the file's name.
  """
  data = read_bytes(path)
  try:
    return decoding.decode(data)
  except decoding.DecodeError as error:
    raise UserError(f"{path}: {error}") from error


def read_values(path: PathLike) -> np.ndarray:
  """Reads one picture file whose numbers are measurements, unscaled: see `decode_values`.

  Args:
    path: the file.

  Returns:
    [H, W], uint8, int64 or float32; uint8 [H, W, 3] (red first) for a colour picture.

  Raises:
    UserError: as `read_image`, but no depth is refused.
  """
  data = read_bytes(path)
  try:
    return decoding.decode_values(data)
  except decoding.DecodeError as error:
    raise UserError(f"{path}: {error}") from error


def read_bytes(path: PathLike) -> bytes:
  """Reads a whole file.

  Raises:
    UserError: it is missing, a folder or unreadable; the message begins with its name.
  """
  try:
    return as_path(path).read_bytes()
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except IsADirectoryError:
    raise UserError(f"{path}: is a folder, not a file") from None
  except OSError as error:
    raise UserError(f"{path}: cannot read: {_reason(error)}") from error


def write_image(path: PathLike, image: np.ndarray) -> None:
  """Writes one picture; the suffix picks the format. The file appears whole or not at all.

  A local file is written beside its final place under a hidden name and then moved over it; a
  remote object appears when its upload is complete. JPEG is written at quality 95 without chroma
  subsampling, everything else without loss.

  Args:
    path: where to; its folder exists. An older file there is replaced.
    image: uint8 [H, W] or [H, W, 3] (red first); or float32 [H, W], which only TIFF holds.

  Raises:
    UserError: the suffix is not one of `IMAGE_SUFFIXES`, or the file cannot be written.
    ValueError: the array is not such a picture.
  """
  target = as_path(path)
  options = _WRITE_OPTIONS.get(target.suffix.lower())
  if options is None:
    raise UserError(f"{path}: cannot write this format: use one of {', '.join(IMAGE_SUFFIXES)}")
  image = np.asarray(image)
  is_grey_or_rgb = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)
  is_picture = image.dtype == np.uint8 and is_grey_or_rgb
  is_float_tiff = image.dtype == np.float32 and image.ndim == 2 and options["format"] == "TIFF"
  if image.size == 0 or not (is_picture or is_float_tiff):
    raise ValueError(f"{path}: no picture of this format: {image.dtype} {image.shape}")

  encoded = io.BytesIO()
  try:
    Image.fromarray(np.ascontiguousarray(image)).save(encoded, **options)
  except OSError as error:  # such as a side beyond what the format can hold
    raise UserError(f"{path}: cannot write: {_reason(error)}") from error
  write_bytes(path, encoded.getvalue())


def write_bytes(path: PathLike, data: bytes) -> None:
  """Writes a file that appears whole or not at all, as `write_image` does; its folder exists.

  Raises:
    UserError: it cannot be written.
  """
  try:
    if "://" in os.fspath(path):
      as_path(path).write_bytes(data)
    else:
      _write_atomically(pathlib.Path(path), data)
  except OSError as error:
    raise UserError(f"{path}: cannot write: {_reason(error)}") from error


def delete(path: PathLike) -> None:
  """Deletes a file where there is one.

  Raises:
    UserError: it cannot be deleted.
  """
  try:
    as_path(path).unlink(missing_ok=True)
  except OSError as error:
    raise UserError(f"{path}: cannot delete: {_reason(error)}") from error


def list_images(folder: PathLike, files: list[Any] | None = None) -> dict[str, Any]:
  """Lists the pictures of a folder, without its subfolders.

  Hidden files and files with other suffixes are left out, and so is `STEM_std` where there is a
  STEM: the deviations that `fuse_files` writes beside its pictures are not pictures to fuse.

  Args:
    folder: the folder.
    files: what `list_files` says of it, where that is known: a folder may hold a million.

  Returns:
    `file_stem` -> path, in the order of the stems.

  Raises:
    UserError: there is no such folder, or two files have the same stem.
  """
  found: dict[str, list[Any]] = {}
  for path in list_files(folder) if files is None else files:
    if path.suffix.lower() in IMAGE_SUFFIXES:
      found.setdefault(file_stem(path), []).append(path)
  for stem in list(found):
    if stem.endswith("_std") and stem.removesuffix("_std") in found:
      del found[stem]
  for paths in found.values():
    if len(paths) > 1:
      first, second = sorted(path.name for path in paths)[:2]
      raise UserError(f"{folder}: {first} and {second} have the same stem: keep one of them")
  return {stem: found[stem][0] for stem in sorted(found)}


def list_files(folder: PathLike) -> list[Any]:
  """Lists the files of a folder that are not hidden, without its subfolders, sorted by name.

  Raises:
    UserError: there is no such folder, or it cannot be read.
  """
  try:
    files = (path for path in _files(folder) if not path.name.startswith("."))
    return sorted(files, key=lambda path: path.name)  # quicker than comparing paths
  except FileNotFoundError:
    raise UserError(f"{folder}: no such folder") from None
  except NotADirectoryError:
    raise UserError(f"{folder}: is not a folder") from None
  except OSError as error:
    raise UserError(f"{folder}: cannot list: {_reason(error)}") from error


def file_stem(path: Any) -> str:
  """What stands before the last dot of a file's name: the name of its pair.

  Composed, because macOS stores names decomposed and pairs must still match across systems.
  """
  return compose(path.stem)


def compose(name: str) -> str:
  """A name in Unicode's composed form (NFC)."""
  return unicodedata.normalize("NFC", name)


def to_float(image: np.ndarray) -> np.ndarray:
  """Maps uint8 0..255 to float32 [-1, 1], the range of the network; any shape."""
  return np.asarray(image).astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


def from_float(image: np.ndarray) -> np.ndarray:
  """Maps float [-1, 1] to uint8 0..255, clipping what lies outside and rounding; any shape."""
  clipped = np.clip(np.asarray(image, np.float32), -1, 1)
  return np.rint((clipped + 1) * np.float32(127.5)).astype(np.uint8)


def _reason(error: OSError) -> str:
  return error.strerror or " ".join(str(error).split()) or type(error).__name__


def _files(folder: PathLike) -> Iterator[Any]:
  """Yields the files of a folder, in no order."""
  if "://" in os.fspath(folder):
    remote = as_path(folder)
    if not remote.is_dir():
      raise FileNotFoundError(folder)
    # No test of each entry: on an object store that is a request apiece.
    yield from remote.iterdir()
    return
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.is_file():
        yield pathlib.Path(entry.path)


def _write_atomically(target: pathlib.Path, data: bytes) -> None:
  """Writes the file under a hidden name beside its place and moves it there when it is whole."""
  # Not tempfile: its files are readable by their owner alone, and these are to be shared.
  temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
  try:
    with open(temporary, "xb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())  # or a machine that stops could leave an empty file of the final name
    os.replace(temporary, target)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise
