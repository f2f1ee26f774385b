"""Reading and writing of picture files, and the value range of the networks.

A picture in memory is a uint8 array, [H, W] grey or [H, W, 3] RGB, red first; `decoding` says how
the kinds of files map to it. Rows and columns are never resampled, and files written here carry no
EXIF orientation, so they show the way their sources show.
"""

import io
from typing import Any

import numpy as np
from PIL import Image

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import decoding
from dmfnet_jax.io.paths import (
  PathLike,
  as_path,
  file_stem,
  list_files,
  read_bytes,
  reason,
  write_bytes,
)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""What pictures are written as, in lower case; the case of a file's suffix does not matter."""

READ_SUFFIXES = (*IMAGE_SUFFIXES, ".jfif", ".jpe", ".gif", ".webp")
"""What is a picture in a folder."""

BESIDE = ("_std", "_overlay")
"""Endings of the stems of what fusing writes beside STEM, which is none of its pictures to fuse."""

# No chroma subsampling: a fused picture's colours are as sharp as its luma.
_WRITE_OPTIONS: dict[str, dict[str, Any]] = {
  ".png": {"format": "PNG"},
  ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
  ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
  ".tif": {"format": "TIFF", "compression": "tiff_deflate"},
  ".tiff": {"format": "TIFF", "compression": "tiff_deflate"},
  ".bmp": {"format": "BMP"},
}


def read_image(path: PathLike, *, as_values: bool = False) -> np.ndarray:
  """Reads one PNG, JPEG, TIFF, BMP, GIF or WebP file (told by its content, not by its suffix).

  Returns:
    uint8 [H, W] for a grey picture, uint8 [H, W, 3] (red first) for a colour one.

  Raises:
    UserError: the file is missing, unreadable, broken or of a kind that is refused. The message
      begins with the file's name.
  """
  data = read_bytes(path)
  try:
    return decoding.decode(data, as_values=as_values)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error


def read_values(path: PathLike) -> np.ndarray:
  """As `read_image`, but unscaled, any depth: grey [H, W] is uint8, int64 or float32."""
  return read_image(path, as_values=True)


def write_image(path: PathLike, image: np.ndarray) -> None:
  """Writes one picture; the suffix picks the format. The file appears whole or not at all.

  JPEG is written at quality 95 without chroma subsampling, everything else without loss.

  Args:
    path: in a folder that exists. An older file there is replaced.
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
    raise UserError(f"{path}: cannot write: {reason(error)}") from error
  write_bytes(path, encoded.getvalue())


def list_images(folder: PathLike) -> dict[str, Any]:
  """Lists the pictures of a folder, without its subfolders.

  Hidden files and files with other suffixes are left out, and so is where there is a STEM what
  `fuse_files` writes beside it, see `BESIDE`.

  Returns:
    `file_stem` -> path, in the order of the stems.

  Raises:
    UserError: there is no such folder, or two files have the same stem.
  """
  found: dict[str, list[Any]] = {}
  for path in list_files(folder):
    if path.suffix.lower() in READ_SUFFIXES:
      found.setdefault(file_stem(path), []).append(path)
  for stem in list(found):
    if any(stem.endswith(end) and stem.removesuffix(end) in found for end in BESIDE):
      del found[stem]
  for paths in found.values():
    if len(paths) > 1:
      first, second = sorted(path.name for path in paths)[:2]
      raise UserError(f"{folder}: {first} and {second} have the same stem: keep one of them")
  return {stem: found[stem][0] for stem in sorted(found)}


ROUNDING = 1e-3
"""By how much pictures in floats may miss the ends of their range, [-1, 1]."""


def check_signed(name: str, lowest: float) -> None:
  """Refuses floats in [0, 1], which in [-1, 1] would be a grey veil, by their smallest value.

  Raises:
    UserError: there is no negative value.
  """
  if lowest > -ROUNDING:
    raise UserError(
      f"{name} is float and must lie in [-1, 1], but has no negative value, as in [0, 1]: give "
      f"2 * {name} - 1, or uint8"
    )


def to_float(image: np.ndarray) -> np.ndarray:
  """Maps uint8 0..255 to float32 [-1, 1], the range of the network; any shape."""
  return np.asarray(image).astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


def stretch(picture: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
  """Stretches a picture [H, W] or [H, W, C], bilinear between the centres of its pixels.

  As OpenCV's `resize` does by default: nothing is smoothed where a picture becomes smaller.

  Args:
    picture: float, or uint8, which is rounded.
    size: height and width of the result.
  """
  stretched = np.asarray(picture, np.float32)
  for axis, (side, wanted) in enumerate(zip(picture.shape, size, strict=False)):
    places = np.clip((np.arange(wanted) + 0.5) * (side / wanted) - 0.5, 0, side - 1)
    before = places.astype(int)
    behind = np.minimum(before + 1, side - 1)
    share = (places - before).astype(np.float32)
    share = share.reshape([-1 if i == axis else 1 for i in range(picture.ndim)])
    low, high = (np.take(stretched, indices, axis) for indices in (before, behind))
    stretched = low + share * (high - low)
  return np.rint(stretched).astype(np.uint8) if picture.dtype == np.uint8 else stretched


def from_float(image: np.ndarray) -> np.ndarray:
  """Maps float [-1, 1] to uint8 0..255, clipping what lies outside and rounding; any shape."""
  clipped = np.clip(np.asarray(image, np.float32), -1, 1)
  return np.rint((clipped + 1) * np.float32(127.5)).astype(np.uint8)
