"""What is uploaded to the page: pictures, NIfTI volumes, and DICOM series as zip files.

Everything comes from strangers: sizes are looked at before anything is unpacked, files of an
archive get names of our own, and messages name the upload without its place on this machine.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import pictures

if TYPE_CHECKING:
  from dmfnet_jax.io.grids import Volume  # whose module loads nibabel

MAX_PIXELS = 1024 * 1024
"""Of a picture or slice that is fused here; the command line takes larger ones."""

MAX_VOXELS = 1 << 25
"""Of a volume; the last two pairs are kept in memory, so that the slider is quick."""

_MAX_UNPACKED = 512 * 2**20  # bytes of an archive's files
_MAX_FILES = 5000
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".zip")


class Slices(NamedTuple):
  """Two volumes as the page shows them.

  Attributes:
    a: uint8 [N, H, W], the slices of A through its window.
    b: uint8 [N, H, W], or [N, H, W, 3] where B is coloured.
    plane: of the slices.
    aspect: width over height of a slice in mm.
    titles: of A and B, such as "A: T1w".
    note: the windows in words, and what else is to be known.
  """

  a: np.ndarray
  b: np.ndarray
  plane: str
  aspect: float
  titles: tuple[str, str]
  note: str


def is_volume(path: str) -> bool:
  """Whether an upload is a volume, by its name; else it is a picture."""
  return path.lower().endswith(VOLUME_SUFFIXES)


def stem_of(path: str) -> str:
  """The name of an upload without its suffixes, as the command names a pair."""
  from dmfnet_jax.fusing import kinds

  kind = kinds.NIFTI if path.lower().endswith((".nii", ".nii.gz")) else kinds.PICTURE
  return kinds.stem_of(kind, Path(path))


def read_picture(path: str) -> np.ndarray:
  """Reads an uploaded picture as `pictures.read_image`, if it is not too large for this page.

  Raises:
    UserError: it is no readable picture or has too many pixels.
  """
  try:
    # Only the header: the picture may claim any size.
    with Image.open(path) as image:
      width, height = image.size
  except Exception:  # Pillow raises anything; `read_image` says below what is wrong
    width = height = 0
  with _named(path):
    _check_pixels(height, width)
    return pictures.read_image(path)


@functools.lru_cache(maxsize=2)
def read_slices(path_a: str, path_b: str, window_a: str, window_b: str) -> Slices:
  """Reads two uploaded volumes and shows them through windows, B on A's grid.

  Args:
    path_a: of A.
    path_b: of B.
    window_a: in the words of `windows.parse_window`; "" for the default.
    window_b: of B.

  Raises:
    UserError: one of them cannot be read or shown, or they do not fit together.
  """
  from dmfnet_jax.inference.volumes import by_plane, show
  from dmfnet_jax.io import color, grids, windows

  a, b = _read_pair(path_a, path_b)
  notes = []
  if grids.difference(a, b):
    b = grids.resample(b, a)
    notes.append("B was put on A's grid by their headers")
  shown, titles = [], []
  for letter, path, volume, text in (("A", path_a, a, window_a), ("B", path_b, b, window_b)):
    asked = windows.parse_window(text) if text.strip() else None
    values, used = show(os.path.basename(path), volume, asked)
    if letter == "A" and volume.is_rgb:
      values = by_plane(color.rgb_to_luma, values)
    shown.append(values)
    titles.append(f"{letter}: {volume.modality}" if volume.modality else letter)
    if used is not None:
      above = f", {used.above:,} voxels above" if used.above else ""
      notes.append(f"{letter}: {used}{above}")
    notes += [f"{letter}: {note}" for note in volume.notes]
  plane = grids.find_plane(None, a)
  if a.placed:
    left, _, upper, _ = grids.edge_letters(a, plane)
    notes.insert(0, f"left is {left}, up is {upper}")
  stacks = [grids.to_pictures(values, a.affine, plane) for values in shown]
  height, width = stacks[0].shape[1:3]
  _check_pixels(height, width)
  square = grids.square_size(grids.pixel_size(a, plane), height, width)
  return Slices(
    stacks[0], stacks[1], plane, square[0] / square[1], (titles[0], titles[1]), "; ".join(notes)
  )


@functools.lru_cache(maxsize=2)
def _read_pair(path_a: str, path_b: str) -> tuple[Volume, Volume]:
  from dmfnet_jax.io import grids

  a, b = _read_volume(path_a), _read_volume(path_b)
  if apart := grids.other_frame(a, b):
    raise UserError(f"{apart}; dmfnet fuse takes them all the same with --same-frame")
  return a, b


def _read_volume(path: str) -> Volume:
  import nibabel

  from dmfnet_jax.io import nifti

  if path.lower().endswith(".zip"):
    return _read_archive(path)
  with _named(path):
    try:
      image: Any = nibabel.load(path)  # only the header
      voxels = math.prod(image.shape)
    except Exception:  # nibabel raises anything; `read_nifti` says below what is wrong
      voxels = 0
    if voxels > MAX_VOXELS:
      raise UserError(f"{voxels:,} voxels; this page takes {MAX_VOXELS:,}, dmfnet fuse takes more")
    return nifti.read_nifti(path)


def _read_archive(path: str) -> Volume:
  """Reads the DICOM series in a zip file."""
  from dmfnet_jax.io.dicom import read_dicom

  with tempfile.TemporaryDirectory(prefix="dmfnet_zip_") as folder, _named(path, folder):
    try:
      with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and _is_shown(m.filename)]
        if len(members) > _MAX_FILES or sum(m.file_size for m in members) > _MAX_UNPACKED:
          raise UserError(
            f"unpacks to more than {_MAX_FILES} files or {_MAX_UNPACKED // 2**20} MiB, the limits "
            "of this page; dmfnet fuse takes more"
          )
        for number, member in enumerate(members):
          # A name of our own in front: files of two folders may have one name.
          target = Path(folder, f"{number:04d}_{os.path.basename(member.filename)}")
          with archive.open(member) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
      raise UserError(f"no zip file that can be unpacked: {error}") from None
    return read_dicom(folder, max_voxels=MAX_VOXELS)


def _is_shown(name: str) -> bool:
  return not os.path.basename(name).startswith(".") and "__MACOSX" not in name.split("/")


def _check_pixels(height: int, width: int) -> None:
  if height * width > MAX_PIXELS:
    raise UserError(
      f"{width} x {height} pixels; this page takes {MAX_PIXELS:,}, dmfnet fuse takes more"
    )


@contextmanager
def _named(path: str, folder: str = "") -> Iterator[None]:
  """Begins errors with an upload's name alone, and takes its place out of them."""
  name = os.path.basename(path)
  try:
    yield
  except UserError as error:
    message = str(error).removeprefix(f"{path}: ")
    if folder:
      message = message.removeprefix(f"{folder}: ").replace(folder, name)
    raise UserError(f"{name}: {message.replace(path, name)}") from error
