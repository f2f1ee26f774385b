"""What lies at a path, told by names where possible: pictures, NIfTI volumes, DICOM series."""

import mimetypes
import os
from collections.abc import Sequence
from typing import Any

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths, pictures

PICTURE, NIFTI, DICOM, FOLDER = "picture", "NIfTI volume", "DICOM series", "folder"

_NIFTI_SUFFIXES = (".nii", ".nii.gz")
# Read as well, but not written; of a pair the .hdr stands for both.
_PAIR_SUFFIXES = (".hdr", ".hdr.gz")
_IMG_SUFFIXES = (".img", ".img.gz")
_OTHER_SUFFIXES = (*_PAIR_SUFFIXES, ".mgz", ".mgh", ".mgh.gz")
# What users have and is not read: what it is, and the way out.
_TO_NIFTI = "save it as .nii.gz (3D Slicer, SimpleITK)"
_UNREAD = {
  ".nrrd": f"an NRRD volume, which is not read: {_TO_NIFTI}",
  ".nhdr": f"an NRRD volume, which is not read: {_TO_NIFTI}",
  ".mha": f"a MetaImage volume, which is not read: {_TO_NIFTI}",
  ".mhd": f"a MetaImage volume, which is not read: {_TO_NIFTI}",
  ".mnc": "a MINC volume, which is not read: save it as .nii.gz (mnc2nii)",
  ".v": "an ECAT volume, which is not read: save it as .nii.gz (nibabel)",
  ".npy": "a NumPy array, which does not say what it is: save it as .png, .tif or .nii.gz",
  ".npz": "NumPy arrays, which do not say what they are: save them as .png, .tif or .nii.gz",
  ".mat": "a MATLAB file, which is not read: save it as .png, .tif or .nii.gz",
}
_BESIDE_VOLUMES = ("_rgb", "_resampled", "_resampled_c")
# As in io/dicom/headers.py, which loads pydicom.
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def kind_of(path: Any, files: list[Any] | None = None) -> str:
  """Says what a path is; it exists.

  Args:
    path: a file or a folder.
    files: of a folder what `paths.list_files` says of it, where that is known.

  Returns:
    `PICTURE`, `NIFTI` or `DICOM` for a file (a picture where nothing says otherwise), `DICOM` for a
    folder of a series, and `FOLDER` for any other. A folder of a series is one with DICOM files and
    neither pictures nor NIfTI files; or with fewer of those than slices of one series: previews.

  Raises:
    UserError: a file of a format that is known and not read.
  """
  if path.is_dir():
    files = paths.list_files(path) if files is None else files
    others = sum(_kind_by_name(file) in (PICTURE, NIFTI) for file in files)
    if not files or (others and not holds_series(files, max(2, others))):
      return FOLDER
    return DICOM if others or _looks_like_dicom(path) else FOLDER
  if why := _UNREAD.get(path.suffix.lower()):
    raise UserError(f"{path}: {why}")
  by_name = _kind_by_name(path)
  if by_name is None:
    if _looks_like_dicom(path):
      return DICOM
    return NIFTI if path.name.lower().endswith(_IMG_SUFFIXES) else PICTURE
  return by_name


def holds_series(files: Sequence[Any], at_least: int) -> bool:
  """Whether a folder's DICOM files, so many at least, are of one series, whatever lies beside."""
  candidates = [file for file in files if _kind_by_name(file) in (None, DICOM)]
  if len(candidates) < at_least:
    return False
  from dmfnet_jax.io.dicom.headers import count_in_series

  return count_in_series(candidates) >= min(at_least, len(candidates))


def why_unread(path: Any) -> str:
  """What a folder's file is and what to do where its format is known and not read, or ""."""
  suffix = path.suffix.lower()
  is_picture = (mimetypes.guess_type(path.name)[0] or "").startswith("image/")
  if is_picture and suffix not in pictures.READ_SUFFIXES:
    return f"a picture in a format that is not read, {suffix}: save it as .png"
  return _UNREAD.get(suffix, "")


def list_sources(folder: Any, files: Sequence[Any]) -> dict[str, tuple[str, Any]]:
  """Lists the pictures and volumes of a folder: files by their suffix, and subfolders of a series.

  What fusing writes beside STEM is left out: `pictures.BESIDE`, and of volumes some more.

  Args:
    folder: the folder.
    files: what `paths.list_files` says of it.

  Returns:
    stem -> (kind, path), pictures first, in the order of the stems.

  Raises:
    UserError: the folder cannot be read, or two of them have the same stem.
  """
  entries = [(_kind_by_name(path), path) for path in files]
  entries += [(DICOM, path) for path in folders(folder) if _is_series(path)]
  found: dict[str, list[tuple[str, Any]]] = {}
  for kind, path in entries:
    if kind is not None:
      found.setdefault(stem_of(kind, path), []).append((kind, path))
  for stem, ((kind, _), *_) in list(found.items()):
    for ending in pictures.BESIDE if kind == PICTURE else (*pictures.BESIDE, *_BESIDE_VOLUMES):
      if stem.endswith(ending) and stem.removesuffix(ending) in found:
        found.pop(stem, None)
  for same in found.values():
    if len(same) > 1:
      first, second = sorted(path.name for _, path in same)[:2]
      raise UserError(f"{folder}: {first} and {second} have the same stem: keep one of them")
  listed = {stem: source for stem, (source,) in found.items()}
  return dict(sorted(listed.items(), key=lambda item: (item[1][0] != PICTURE, item[0])))


def folders(folder: Any) -> list[Any]:
  """The subfolders of a local folder that are not hidden; a remote one is not searched."""
  if paths.is_remote(folder):
    return []
  with os.scandir(folder) as entries:  # it knows what is a folder without asking for each file
    names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
  return [folder / name for name in names]


def stem_of(kind: str, path: Any) -> str:
  """The name of what lies at a path, and of its pair: a file's without suffix, a folder's name."""
  name = path.name
  if kind == PICTURE:
    return paths.file_stem(path)
  if kind == NIFTI:
    name = name[:-3] if name.lower().endswith(".gz") else name
    name = name.rpartition(".")[0]
  elif path.is_dir():
    name = name if name not in ("", "..") else path.resolve().name
  elif path.suffix.lower() in _DICOM_SUFFIXES:
    return paths.file_stem(path)
  # Other DICOM files are named with dots, as 1.2.840.113619, and without a suffix.
  return paths.compose(name)


def is_nifti_name(path: Any) -> bool:
  """Whether a path ends as NIfTI files do."""
  return path.name.lower().endswith(_NIFTI_SUFFIXES)


def is_unwritten_volume(path: Any) -> bool:
  """Whether a path ends as volumes do that are read or known, but not written."""
  return path.name.lower().endswith((*_OTHER_SUFFIXES, *_IMG_SUFFIXES, *_UNREAD))


def _is_series(folder: Any) -> bool:
  try:
    return kind_of(folder) == DICOM
  except UserError:  # it cannot be read: none of ours
    return False


def _kind_by_name(path: Any) -> str | None:
  if path.name.lower().endswith((*_NIFTI_SUFFIXES, *_OTHER_SUFFIXES)):
    return NIFTI
  suffix = path.suffix.lower()
  if suffix in pictures.READ_SUFFIXES:
    return PICTURE
  return DICOM if suffix in _DICOM_SUFFIXES else None


def _looks_like_dicom(path: Any) -> bool:
  from dmfnet_jax.io.dicom.headers import looks_like_dicom

  return looks_like_dicom(path)
