"""One DICOM file: its header, its tags, where its images lie; `pixels` decodes them.

A header holds the patient's name, and pydicom quotes offending values in its warnings and errors.
So everything that touches a header runs inside `quiet()`, and what goes wrong is told in our words:
tags, UIDs and file names, never values. Sections are those of DICOM PS3.3.

Coordinates are DICOM's patient coordinates in mm: LPS, that is x to the patient's left, y to the
back, z to the head (C.7.6.2.1.1).
"""

import contextlib
import itertools
import logging
import math
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dmfnet_jax.io import paths, pictures
from dmfnet_jax.io.decoding import MAX_PIXELS

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Suffixes that announce DICOM, in lower case; most DICOM files have none, or a running number."""

MAX_VOXELS = 1 << 30
"""Larger volumes are refused (4 GiB as float32): a small file may claim any size."""

_OTHER_SUFFIXES = (*pictures.READ_SUFFIXES, ".nii", ".gz", ".json", ".txt", ".csv", ".npy", ".md")
_MOST_OPENED = 64
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66."
_NEEDED = ("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated")
# Where enhanced multi-frame objects keep, in one group a frame and one shared, what we look for.
_MACROS = """
  PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence FrameVOILUTSequence
  PixelValueTransformationSequence RealWorldValueMappingSequence
""".split()

_lock = threading.RLock()


class BadFileError(Exception):
  """Why one file is left out: one line, without the file's name and without patient data."""


class Tags:
  """Looks tags up in datasets, the first that has one; what is missing or broken is None or "".

  Those of `of_frame` are an image's functional groups, its header, and what else may say where the
  image lies.
  """

  def __init__(self, *places: pydicom.Dataset):
    self.places = places

  @classmethod
  def of_frame(cls, header: pydicom.Dataset, index: int) -> "Tags":
    """Of an image of a file: number `index`, from 0."""
    whole = cls(header)
    groups = (
      whole.item("PerFrameFunctionalGroupsSequence", index),
      whole.item("SharedFunctionalGroupsSequence"),
      whole,
    )
    macros = [place for group in groups for key in _MACROS for place in group.item(key).places]
    # Nuclear medicine places its images by the detector.
    return cls(*macros, header, *whole.item("DetectorInformationSequence").places)

  def __bool__(self) -> bool:
    return bool(self.places)

  @property
  def is_little_endian(self) -> bool:
    """The byte order of the file that the first of the datasets was read from."""
    return (
      not self.places or getattr(self.places[0], "original_encoding", (None, True))[1] is not False
    )

  @property
  def modality(self) -> str:
    """In upper case."""
    return self.code("Modality").upper()

  @property
  def is_coloured(self) -> bool:
    """Whether the pixels have three samples, or a palette."""
    return (self.number("SamplesPerPixel") or 1) > 1 or self.photometric == "PALETTE COLOR"

  @property
  def photometric(self) -> str:
    """The photometric interpretation, in upper case."""
    return self.text("PhotometricInterpretation").upper()

  def value(self, keyword: str) -> Any:
    """Returns what pydicom makes of a tag; None where it is nowhere or empty."""
    for place in self.places:
      # pydicom parses values on access, and a broken one may raise anything.
      with contextlib.suppress(Exception):
        value = place.get(keyword)
        if value not in (None, ""):
          return value
    return None

  def number(self, keyword: str) -> float | None:
    """Returns a finite number, the first one of several."""
    values = self.numbers(keyword, 1)
    return None if values is None else float(values[0])

  def numbers(self, keyword: str, count: int) -> np.ndarray | None:
    """Returns the first `count` numbers as float64 [count]; None where there are fewer."""
    value = self.value(keyword)
    if isinstance(value, bytes):  # a tag of unknown type
      value = value.decode("ascii", "replace").strip(" \0").split("\\")
    try:
      values = [value] if isinstance(value, str | int | float) else list(value or ())
      result = np.array([float(v) for v in values[:count]], np.float64)
    except (TypeError, ValueError):
      return None
    return result if len(result) == count and np.isfinite(result).all() else None

  def text(self, keyword: str) -> str:
    """Returns a value as text, stripped, several joined by a backslash."""
    value = self.value(keyword)
    parts = value if isinstance(value, pydicom.multival.MultiValue) else [value]
    return "" if value is None else "\\".join(str(part).strip() for part in parts)

  def code(self, keyword: str) -> str:
    """Returns a short code such as a modality or a unit; "" for whatever else stands there.

    For what is printed: in a damaged header the bytes of another tag may stand in any place.
    """
    found = self.text(keyword)
    return found if re.fullmatch(r"[\w/{}\[\]'%.^-]{1,16}", found, re.ASCII) else ""

  def uid(self, keyword: str) -> UID:
    """Returns a UID, an empty one where there is none or no valid one; printable, as `code`."""
    found = UID(self.text(keyword))
    return found if found.is_valid else UID("")

  def item(self, keyword: str, index: int = 0) -> "Tags":
    """Returns the tags of one item of a sequence; of nothing where there is none."""
    value = self.value(keyword)
    is_there = isinstance(value, pydicom.Sequence) and index < len(value)
    return Tags(value[index]) if is_there else Tags()


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


def looks_like_dicom(path: paths.PathLike) -> bool:
  """Says whether a file is DICOM, or a folder holds at least one such file (not its subfolders).

  A file counts by its suffix, so that a broken `.dcm` is named as such and not taken for a broken
  picture, even where there is none; or by its content (the marker `DICM`, or a first tag that only
  DICOM has). Of a folder a few dozen files are opened at most, and none whose suffix says that it
  is something else: it may hold a million pictures.
  """
  place = paths.as_path(path)
  try:
    if not place.is_dir():
      return _is_dicom_file(place)
    files = (file for file in place.iterdir() if not file.name.startswith("."))
    unknown = (file for file in files if file.suffix.lower() not in _OTHER_SUFFIXES)
    return any(_is_dicom_file(file) for file in itertools.islice(unknown, _MOST_OPENED))
  except OSError:
    return False


def count_in_series(files: Sequence[Any]) -> int:
  """How many files are DICOM images of one series; 0 where there are several series.

  A few dozen, spread over all, stand for the rest: it may be a million.
  """
  step = -(-len(files) // _MOST_OPENED)
  series = set()
  count = 0
  with quiet():
    for file in files[::step]:
      with contextlib.suppress(BadFileError):
        series.add(Tags(read_file(file)).uid("SeriesInstanceUID"))
        count += step
  return count if len(series) == 1 else 0


def read_file(path: Any, *, pixels: bool = False) -> pydicom.Dataset:
  """Reads the header of an image, or the whole file, its pixels still encoded.

  What is returned has a transfer syntax, assumed from the encoding where the file names none.

  Raises:
    BadFileError: no DICOM file, broken, or no image.
  """
  try:
    with path.open("rb") as file:
      start = file.read(132)
      if not start:
        raise BadFileError("the file is empty")
      if not _is_dicom_start(start):
        raise BadFileError("not a DICOM file: it lacks the marker DICM")
      file.seek(0)
      dataset = pydicom.dcmread(file, stop_before_pixels=not pixels, force=True)
  except BadFileError:
    raise
  except FileNotFoundError:
    raise BadFileError("no such file") from None
  except OSError as error:
    raise BadFileError(f"cannot read: {error.strerror or type(error).__name__}") from None
  except EOFError:
    raise BadFileError("the file is truncated") from None
  except MemoryError:
    raise BadFileError("broken DICOM file: it claims more memory than there is") from None
  except Exception as error:  # its own words may quote the header
    raise BadFileError(f"broken DICOM file ({type(error).__name__} while parsing)") from None
  if not Tags(dataset.file_meta).text("TransferSyntaxUID"):
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRBigEndian if little is False else ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
  _check_is_image(dataset)
  return dataset


def size_of(tags: Tags) -> tuple[int, int]:
  """Rows and columns, 0 where unknown."""
  return int(tags.number("Rows") or 0), int(tags.number("Columns") or 0)


def frame_count(header: pydicom.Dataset) -> int:
  """The number of images in a file.

  Raises BadFileError where the header announces more than it describes, or more than we take.
  """
  tags = Tags(header)
  count = max(1, int(tags.number("NumberOfFrames") or 1))
  pixels = math.prod(size_of(tags))
  if pixels > MAX_PIXELS or count * pixels > MAX_VOXELS:
    raise BadFileError(f"claims {count} x {pixels} pixels, over the limit: cut it up")
  described = len(tags.value("PerFrameFunctionalGroupsSequence") or ())
  if "PerFrameFunctionalGroupsSequence" in header and described < count:
    raise BadFileError(f"announces {count} frames and describes {described}")
  return count


def place_of(
  tags: Tags, header: pydicom.Dataset, index: int, count: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Where one of the `count` images of a file lies; None for what is unknown.

  float64 [3], the centre of its first voxel, and float64 [6], the directions of a row (increasing
  column) and of a column (increasing row), unit vectors.
  """
  position = tags.numbers("ImagePositionPatient", 3)
  orientation = _unit_vectors(tags.numbers("ImageOrientationPatient", 6))
  groups = itertools.takewhile(lambda place: place is not header, tags.places)
  has_own = any("ImagePositionPatient" in group for group in groups)
  if has_own or position is None or orientation is None or count == 1:
    return position, orientation

  # One position for all frames: where the others lie depends on the kind of object.
  offset = None
  if "GridFrameOffsetVector" in header:
    # Dose, C.8.8.3.2: distances from the first frame, or the z of each where the first is not 0.
    offsets = tags.numbers("GridFrameOffsetVector", count)
    if offsets is not None:
      along = np.sign(normal_of(orientation)[2]) if offsets[0] else 1
      offset = (offsets[index] - offsets[0]) * along
  elif "RECON TOMO" in tags.text("ImageType").upper():
    # Nuclear medicine, C.8.4.15: the sign of the spacing is the direction of stacking.
    spacing = tags.number("SpacingBetweenSlices")
    offset = None if spacing is None else index * spacing
  return None if offset is None else position + offset * normal_of(orientation), orientation


def normal_of(orientation: np.ndarray) -> np.ndarray:
  """The unit normal of slices: row direction x column direction of float64 [6]."""
  normal = np.cross(orientation[:3], orientation[3:])
  return normal / np.linalg.norm(normal)


def private_text(header: pydicom.Dataset, group: int, creator: str, element: int) -> str:
  """A private tag as text, "" where there is none."""
  try:
    value = header.private_block(group, creator)[element].value
  except Exception:  # no such block, no such tag, or a value that cannot be parsed
    return ""
  return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip(" \0")


def _is_dicom_file(path: Any) -> bool:
  if path.suffix.lower() in DICOM_SUFFIXES:
    return True
  with contextlib.suppress(OSError), path.open("rb") as file:
    return _is_dicom_start(file.read(132))
  return False


def _is_dicom_start(start: bytes) -> bool:
  """The marker; or as in old files the first tag, little-endian: group 2 or 8, a low element."""
  is_tag = len(start) >= 8 and start[:2] in (b"\2\0", b"\x08\0") and start[3] == 0
  return start[128:] == b"DICM" or (is_tag and start[2] < 32)


def _check_is_image(dataset: pydicom.Dataset) -> None:
  tags = Tags(dataset)
  kind = tags.uid("SOPClassUID") or Tags(dataset.file_meta).uid("MediaStorageSOPClassUID")
  # The dictionary's name of the class, or the bare UID where it knows none.
  name = kind.name or f"modality {tags.code('Modality') or 'unknown'}"
  if kind == _MEDIA_DIRECTORY or "DirectoryRecordSequence" in dataset:
    raise BadFileError("an index of files (DICOMDIR), not an image: name the folder of a series")
  if kind.startswith(_SEGMENTATION):
    raise BadFileError(f"a segmentation, not an image ({name})")
  sizes = {keyword: tags.number(keyword) for keyword in ("Rows", "Columns")}
  if set(sizes.values()) == {None} and "BitsAllocated" not in dataset:
    if not kind and not tags.code("Modality"):
      raise BadFileError("broken or truncated: no tags of an image follow the start of the file")
    without = ": its image tags are missing" if name.endswith("Image Storage") else ""
    raise BadFileError(f"holds no image ({name}{without})")
  missing = [keyword for keyword in _NEEDED if not tags.text(keyword)]
  missing += [keyword for keyword, size in sizes.items() if size is None]
  if missing:
    raise BadFileError(f"lacks {', '.join(missing)}, without which pixels cannot be decoded")
  if min(size_of(tags)) < 1:
    raise BadFileError("claims an image without rows or columns")
  if tags.text("NumberOfFrames") and tags.number("NumberOfFrames") is None:
    raise BadFileError("NumberOfFrames is no number")


def _unit_vectors(orientation: np.ndarray | None) -> np.ndarray | None:
  """Returns an orientation, None where it is not two perpendicular directions."""
  if orientation is None:
    return None
  vectors = orientation.reshape(2, 3)
  lengths = np.linalg.norm(vectors, axis=1)
  error = np.abs(lengths - 1).max()
  if error > 0.01 or abs(vectors[0] @ vectors[1]) > 0.01:
    return None
  # As written where possible: what is copied to a result stays the same.
  return orientation if error < 1e-4 else (vectors / lengths[:, None]).ravel()
