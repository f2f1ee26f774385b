"""Volumes in other formats than `.nii`: .hdr and .img pairs, FreeSurfer's .mgz and .mgh.

They become what a `.nii` file gives: values, place, and for a pair the header.
"""

import dataclasses
import io
import re
from typing import Any

import nibabel
from nibabel.freesurfer.mghformat import MGHHeader

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import modalities, nifti, paths
from dmfnet_jax.io.grids import Volume

_PAIR = re.compile(r"(.+)\.(hdr|img)(\.gz)?", re.IGNORECASE)
_MGH = re.compile(r".+\.(mgz|mgh|mgh\.gz)", re.IGNORECASE)
_MGH_VERSION = b"\0\0\0\1"
_GOOD_RAS = slice(28, 30)  # of an MGH header: whether it says where the volume lies


def is_other(path: Any) -> bool:
  """Whether a path has the name of one of these."""
  return bool(_PAIR.fullmatch(path.name) or _MGH.fullmatch(path.name))


def read_other(path: paths.PathLike) -> Volume:
  """Reads a file of which `is_other` holds; of a pair either half may be named.

  Raises:
    UserError: it is missing, broken or of a kind that is refused, named with the reason.
  """
  place = paths.as_path(path)
  with nifti.named(path, "file"):
    volume = _read_pair(place) if _PAIR.fullmatch(place.name) else _read_mgh(place)
    return dataclasses.replace(volume, modality=modalities.of_name(place))


def _read_pair(path: Any) -> Volume:
  """Reads the pair that a file is one half of."""
  match = _PAIR.fullmatch(path.name)
  assert match is not None
  halves = {}
  for kind in ("hdr", "img"):
    names = [f"{match[1]}.{kind}{gz}" for gz in ("", ".gz")]
    names += [f"{match[1]}.{kind.upper()}{gz}" for gz in ("", ".gz")]
    found = [path.with_name(name) for name in names if path.with_name(name).exists()]
    if not found:
      raise UserError(f"half of a .hdr and .img pair, of which {names[0]} is missing: copy it, too")
    halves[kind] = path if path in found else found[0]
  return nifti.read_parts(paths.read_bytes(halves["hdr"]), paths.read_bytes(halves["img"]))


def _read_mgh(path: Any) -> Volume:
  data = paths.read_bytes(path)
  start = nifti.content_of(data, MGHHeader.template_dtype.itemsize)
  if len(start) < _GOOD_RAS.stop or start[:4] != _MGH_VERSION:
    raise UserError("is no FreeSurfer volume: its header is not one")
  header = MGHHeader.from_fileobj(io.BytesIO(start), check=False)
  nifti.check_header(header)
  needed = int(header.get_footer_offset())
  content = nifti.content_of(data, needed)
  if len(content) < needed:
    raise UserError(nifti.truncated(len(content), needed))
  volume = nifti.from_image(nibabel.MGHImage.from_bytes(content))
  if any(content[_GOOD_RAS]):
    return volume
  note = "its header does not say where it lies (goodRASFlag is 0)"
  return dataclasses.replace(volume, placed=False, notes=(*volume.notes, note))
