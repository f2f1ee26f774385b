"""DICOM headers: reading one file, and taking values out of it without ever showing them.

A header holds the patient's name, and pydicom quotes offending values in its warnings and errors.
So everything that touches a header runs inside `quiet()`, and what goes wrong is told in our words:
tags, UIDs and file names, never values.
"""

import contextlib
import itertools
import logging
import math
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dmfnet_jax.data import images

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Suffixes that announce DICOM, in lower case; most DICOM files have none, or a running number."""

_OTHER_SUFFIXES = (*images.IMAGE_SUFFIXES, ".nii", ".gz", ".json", ".txt", ".csv", ".npy", ".md")
_MOST_OPENED = 64

_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66."
_NEEDED = (
  "SamplesPerPixel",
  "PhotometricInterpretation",
  "BitsAllocated",
)

_lock = threading.RLock()


class BadFileError(Exception):
  """Why one file is left out: one line, without the file's name and without patient data."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences pydicom's warnings and log lines, which quote the values of the header.

  One thread at a time: Python's warning filters are the process's.
  """
  logger = logging.getLogger("pydicom")
  with _lock, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    disabled, logger.disabled = logger.disabled, True
    try:
      yield
    finally:
      logger.disabled = disabled


def looks_like_dicom(path: images.PathLike) -> bool:
  """Says whether a file is DICOM, or a folder holds at least one such file (not its subfolders).

  A file counts by its content (the marker `DICM`, or a first tag that only DICOM has) or by its
  suffix, so that a broken `.dcm` is named as such and not taken for a broken picture. A path that
  does not exist counts by its suffix. Of a folder a few dozen files are opened at most, and none
  whose suffix says that it is something else: it may hold a million pictures.
  """
  place = images.as_path(path)
  try:
    if not place.is_dir():
      return _is_dicom_file(place)
    files = (file for file in place.iterdir() if not file.name.startswith("."))
    unknown = (file for file in files if file.suffix.lower() not in _OTHER_SUFFIXES)
    return any(_is_dicom_file(file) for file in itertools.islice(unknown, _MOST_OPENED))
  except OSError:
    return False


def read_header(path: Any) -> pydicom.Dataset:
  """Reads everything of a file up to its pixels; call inside `quiet()`.

  Args:
    path: a `pathlib` or `epath` path.

  Returns:
    The header; it has a transfer syntax, assumed from the encoding where the file names none.

  Raises:
    BadFileError: no DICOM file, broken, or no image.
  """
  header = _read(path, stop_before_pixels=True)
  _check_is_image(header)
  return header


def read_whole(path: Any) -> pydicom.Dataset:
  """Reads a file with its (still encoded) pixels; otherwise as `read_header`."""
  return _read(path, stop_before_pixels=False)


def number(source: pydicom.Dataset | None, keyword: str) -> float | None:
  """Returns a finite number, the first one of several; None where there is none."""
  values = numbers(source, keyword, 1)
  return None if values is None else float(values[0])


def numbers(source: pydicom.Dataset | None, keyword: str, count: int) -> np.ndarray | None:
  """Returns the first `count` numbers as float64 [count]; None where there are fewer."""
  value = _value(source, keyword)
  if value is None:
    return None
  if isinstance(value, bytes):  # a tag of unknown type, private ones for example
    value = value.decode("ascii", "replace").strip(" \0").split("\\")
  try:
    values = [value] if isinstance(value, str | int | float) else list(value)
    result = np.array([float(v) for v in values[:count]], np.float64)
  except (TypeError, ValueError):
    return None
  return result if len(result) == count and np.isfinite(result).all() else None


def text(source: pydicom.Dataset | None, keyword: str) -> str:
  """Returns a value as text, stripped, several joined by a backslash; "" where there is none."""
  value = _value(source, keyword)
  if value is None:
    return ""
  parts = value if isinstance(value, pydicom.multival.MultiValue) else [value]
  return "\\".join(str(part).strip() for part in parts)


def code(source: pydicom.Dataset | None, keyword: str) -> str:
  """Returns a short code such as a modality or a unit; "" for whatever else stands there.

  For what is printed: in a damaged header the bytes of another tag may stand in any place.
  """
  found = text(source, keyword)
  return found if re.fullmatch(r"[\w/{}\[\]'%.^-]{1,16}", found, re.ASCII) else ""


def uid(source: pydicom.Dataset | None, keyword: str) -> pydicom.uid.UID:
  """Returns a UID, an empty one where there is none or no valid one; printable, as `code`."""
  found = pydicom.uid.UID(text(source, keyword))
  return found if found.is_valid else pydicom.uid.UID("")


def item(source: pydicom.Dataset | None, keyword: str, index: int = 0) -> pydicom.Dataset | None:
  """Returns one item of a sequence; None where there is none."""
  value = _value(source, keyword)
  if isinstance(value, pydicom.Sequence) and index < len(value):
    return value[index]
  return None


def item_count(source: pydicom.Dataset, keyword: str) -> int:
  """The number of items of a sequence, 0 where there is none."""
  value = _value(source, keyword)
  return len(value) if isinstance(value, pydicom.Sequence) else 0


def frame_count(header: pydicom.Dataset) -> int:
  """The number of frames that a header announces, at least 1."""
  return max(1, int(number(header, "NumberOfFrames") or 1))


def holder(header: pydicom.Dataset, frame: int, macro: str, keyword: str) -> pydicom.Dataset | None:
  """Finds what holds a tag of one frame: its functional group, the shared one, or the header.

  Args:
    header: of the file.
    frame: number of the frame in the file, from 0.
    macro: the sequence of a functional group in which an enhanced object keeps the tag.
    keyword: the tag.

  Returns:
    The dataset that has the tag, or None.
  """
  groups = (
    item(header, "PerFrameFunctionalGroupsSequence", frame),
    item(header, "SharedFunctionalGroupsSequence"),
  )
  for place in (*(item(group, macro) for group in groups), header):
    if _value(place, keyword) not in (None, ""):
      return place
  return None


def is_rgb(header: pydicom.Dataset) -> bool:
  """Says whether the pixels are coloured: three samples, or a palette."""
  return (number(header, "SamplesPerPixel") or 1) > 1 or photometric(header) == "PALETTE COLOR"


def photometric(header: pydicom.Dataset) -> str:
  """The photometric interpretation, in upper case."""
  return text(header, "PhotometricInterpretation").upper()


def _value(source: pydicom.Dataset | None, keyword: str) -> Any:
  if source is None:
    return None
  try:
    return source.get(keyword)
  except Exception:  # pydicom parses values on access, and a broken one may raise anything
    return None


def _is_dicom_file(path: Any) -> bool:
  try:
    with path.open("rb") as file:
      return _has_dicom_start(file) or path.suffix.lower() in DICOM_SUFFIXES
  except OSError:
    return path.suffix.lower() in DICOM_SUFFIXES


def _has_dicom_start(file: BinaryIO) -> bool:
  start = file.read(132)
  return start[128:] == b"DICM" or _is_without_preamble(start)


def _is_without_preamble(start: bytes) -> bool:
  """Old files begin with their first tag, little-endian: group 0002 or 0008, a low element."""
  return len(start) >= 8 and start[:2] in (b"\2\0", b"\x08\0") and start[3] == 0 and start[2] < 32


def _read(path: Any, *, stop_before_pixels: bool) -> pydicom.Dataset:
  try:
    with path.open("rb") as file:
      start = file.read(132)
      if not start:
        raise BadFileError("the file is empty")
      if start[128:] != b"DICM" and not _is_without_preamble(start):
        raise BadFileError("not a DICOM file: it lacks the marker DICM")
      file.seek(0)
      dataset = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels, force=True)
  except BadFileError:
    raise
  except FileNotFoundError:
    raise BadFileError("no such file") from None
  except OSError as error:
    # No text of a decoder's: what the system says about the file itself is enough.
    raise BadFileError(f"cannot read: {error.strerror or type(error).__name__}") from None
  except EOFError:
    raise BadFileError("the file is truncated") from None
  except MemoryError:
    raise BadFileError("broken DICOM file: it claims more memory than there is") from None
  except Exception as error:
    raise BadFileError(f"broken DICOM file ({type(error).__name__} while parsing)") from None
  if _value(dataset, "file_meta") is None:
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
  if not text(dataset.file_meta, "TransferSyntaxUID"):
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRBigEndian if little is False else ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
  return dataset


def _check_is_image(header: pydicom.Dataset) -> None:
  kind = uid(header, "SOPClassUID") or uid(header.file_meta, "MediaStorageSOPClassUID")
  # The dictionary's name of the class, or the bare UID where it knows none.
  name = kind.name or f"modality {code(header, 'Modality') or 'unknown'}"
  if kind == _MEDIA_DIRECTORY or "DirectoryRecordSequence" in header:
    raise BadFileError("an index of files (DICOMDIR), not an image: name the folder of a series")
  if kind.startswith(_SEGMENTATION):
    raise BadFileError(f"a segmentation, not an image ({name})")
  rows, columns = number(header, "Rows"), number(header, "Columns")
  if rows is None and columns is None and "BitsAllocated" not in header:
    if not kind and not code(header, "Modality"):
      raise BadFileError("broken or truncated: no tags of an image follow the start of the file")
    without = ": its image tags are missing" if name.endswith("Image Storage") else ""
    raise BadFileError(f"holds no image ({name}{without})")
  missing = [keyword for keyword in _NEEDED if not text(header, keyword)]
  missing += [key for key, size in (("Rows", rows), ("Columns", columns)) if size is None]
  if missing:
    raise BadFileError(f"lacks {', '.join(missing)}, without which pixels cannot be decoded")
  if not all(size is not None and math.floor(size) > 0 for size in (rows, columns)):
    raise BadFileError("claims an image without rows or columns")
  if text(header, "NumberOfFrames") and number(header, "NumberOfFrames") is None:
    raise BadFileError("NumberOfFrames is no number")
