"""What lies at a path, told by names where possible: pictures, NIfTI volumes, DICOM series."""

import os
from typing import Any

from dmfnet_jax.data import images
from dmfnet_jax.errors import UserError

PICTURE, NIFTI, DICOM, FOLDER = "picture", "NIfTI volume", "DICOM series", "folder"

_NIFTI_SUFFIXES = (".nii", ".nii.gz")
# As in data/dicom_headers.py, which loads pydicom.
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def kind_of(path: Any, files: list[Any] | None = None) -> str:
  """Says what a path is; it exists.

  Args:
    path: a file or a folder.
    files: of a folder what `images.list_files` says of it, where that is known.

  Returns:
    `PICTURE`, `NIFTI` or `DICOM` for a file (a picture where nothing says otherwise), `DICOM` for a
    folder of a series, that is one with DICOM files and neither pictures nor NIfTI files, and
    `FOLDER` for any other.
  """
  if path.is_dir():
    files = images.list_files(path) if files is None else files
    if any(_kind_by_name(file) in (PICTURE, NIFTI) for file in files) or not files:
      return FOLDER
    return DICOM if _looks_like_dicom(path) else FOLDER
  by_name = _kind_by_name(path)
  if by_name is None:
    return DICOM if _looks_like_dicom(path) else PICTURE
  return by_name


def list_volumes(folder: Any, files: list[Any]) -> dict[str, tuple[str, Any]]:
  """Lists the volumes of a folder: NIfTI files, DICOM files, and subfolders that hold a series.

  DICOM files here count by their suffix, since a folder may hold thousands of other files. The
  deviations and coloured volumes that fusing writes beside `STEM.nii.gz` are left out.

  Args:
    folder: the folder.
    files: what `images.list_files` says of it.

  Returns:
    stem -> (kind, path), in the order of the stems.

  Raises:
    UserError: the folder cannot be read, or two volumes have the same stem.
  """
  found: dict[str, tuple[str, Any]] = {}
  entries = [(_kind_by_name(path), path) for path in files]
  entries += [(DICOM, path) for path in _folders(folder) if _is_series(path)]
  for kind, path in entries:
    if kind not in (NIFTI, DICOM):
      continue
    stem = stem_of(kind, path)
    if stem in found:
      first, second = sorted((found[stem][1].name, path.name))
      raise UserError(f"{folder}: {first} and {second} have the same stem: keep one of them")
    found[stem] = (kind, path)
  for stem in list(found):
    for ending in ("_std", "_rgb"):
      if stem.endswith(ending) and stem.removesuffix(ending) in found:
        found.pop(stem, None)
  return dict(sorted(found.items()))


def stem_of(kind: str, path: Any) -> str:
  """The name of a source's pair: a file's without suffix, a series' folder's name."""
  name = path.name
  if kind == NIFTI:
    name = name[: -len(".nii.gz" if name.lower().endswith(".gz") else ".nii")]
  elif path.is_dir():
    name = path.name if path.name not in ("", "..") else path.resolve().name
  elif kind == PICTURE or path.suffix.lower() in _DICOM_SUFFIXES:
    return images.file_stem(path)
  # Other DICOM files are named with dots, as 1.2.840.113619, and without a suffix.
  return images.compose(name)


def is_nifti_name(path: Any) -> bool:
  """Whether a path ends as NIfTI files do."""
  return path.name.lower().endswith(_NIFTI_SUFFIXES)


def _is_series(folder: Any) -> bool:
  try:
    return kind_of(folder) == DICOM
  except UserError:  # it cannot be read: none of ours
    return False


def _kind_by_name(path: Any) -> str | None:
  if is_nifti_name(path):
    return NIFTI
  suffix = path.suffix.lower()
  if suffix in images.IMAGE_SUFFIXES:
    return PICTURE
  return DICOM if suffix in _DICOM_SUFFIXES else None


def _looks_like_dicom(path: Any) -> bool:
  from dmfnet_jax.data.dicom_headers import looks_like_dicom

  return looks_like_dicom(path)


def _folders(folder: Any) -> list[Any]:
  """The subfolders of a local folder that are not hidden; a remote one is not searched."""
  if "://" in os.fspath(folder):
    return []
  with os.scandir(folder) as entries:  # it knows what is a folder without asking for each file
    names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
  return [folder / name for name in names]
