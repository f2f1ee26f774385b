"""NIfTI files: `.nii` and `.nii.gz`, versions 1 and 2, in and out.

What is read: a volume of three dimensions (of two: one slice; further dimensions of length one are
dropped), of any real type, scaled by the header's slope and intercept; or RGB24 and RGBA32, of
which the alpha is dropped. What is not a number or infinite counts as no signal: it gets the
smallest finite value, with a note. Files of more than one volume and complex ones are refused.

The place is the header's sform, or else its qform, as most programs choose. What is written keeps
the header of A as far as it tells of geometry and units; free text, intents and extensions, which
may name a patient, are left out.
"""

import contextlib
import dataclasses
import gzip
import math
import os
import zlib
from collections.abc import Iterator
from typing import Any

import nibabel
import numpy as np

import dmfnet_jax
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import modalities, nifti_header, paths
from dmfnet_jax.io.grids import Volume, is_usable

MAX_VOXELS = 1 << 29
"""Larger volumes are refused before they are read: a small file may claim any size."""

_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_LEVEL = 6
_SLACK = 1 << 16  # beyond the voxels: enough for a gzip file to end, where its checksum stands


def read_nifti(path: paths.PathLike) -> Volume:
  """Reads one file; whether it is compressed is told by its content.

  Returns:
    The volume; its `source` is the header, its `modality` what the name says.

  Raises:
    UserError: the file is missing, broken or of a kind that is refused, named with the reason.
  """
  data = paths.read_bytes(path)
  with named(path, "NIfTI file"):
    return dataclasses.replace(read_parts(data), modality=modalities.of_name(paths.as_path(path)))


@contextlib.contextmanager
def named(path: paths.PathLike, what: str) -> Iterator[None]:
  """Turns what goes wrong while reading a file into a line with its name, and silences nibabel."""
  logger = nibabel.imageglobals.logger
  disabled, logger.disabled = logger.disabled, True  # its remarks on headers that it mends
  try:
    yield
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  except Exception as error:
    # nibabel answers broken files with anything from ImageFileError to OverflowError.
    raise UserError(f"{path}: broken {what}: {paths.reason(error)}") from error
  finally:
    logger.disabled = disabled


def write_nifti(
  path: paths.PathLike, data: np.ndarray, like: Volume, *, as_4d: bool = False
) -> None:
  """Writes a volume with the place of another; the file appears whole or not at all.

  The same data give the same bytes. Compressed where the name ends in .gz.

  Args:
    path: in a folder that exists.
    data: uint8 or float32 [I, J, K], or uint8 [I, J, K, 3], which is written as RGB24.
    like: gives the affine, and the header where it was read from a NIfTI file.
    as_4d: write colours as three volumes, red, green and blue, and not as RGB24.

  Raises:
    UserError: the file cannot be written.
  """
  encoded = to_image(data, like, as_4d=as_4d).to_bytes()
  if os.fspath(path).lower().endswith(".gz"):
    encoded = gzip.compress(encoded, _GZIP_LEVEL, mtime=0)
  paths.write_bytes(path, encoded)


def to_image(data: np.ndarray, like: Volume, *, as_4d: bool = False) -> Any:
  """Returns the nibabel image, NIfTI-1 or where needed NIfTI-2, that `write_nifti` writes."""
  large = max(data.shape) > np.iinfo(np.int16).max  # NIfTI-1 counts voxels in 16 bits
  second = large or isinstance(like.source, nibabel.Nifti2Header)
  kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
  header = _clean_header(like, kind)
  if data.ndim == 4 and not as_4d:
    data = np.ascontiguousarray(data).view(_RGB)[..., 0]
  header.set_data_dtype(data.dtype)
  if data.dtype.names is None:
    header["cal_max"] = 255 if data.dtype == np.uint8 else max(float(data.max()), 1e-6)
  # Without a place none is made up: nibabel would add one that differs from the header's.
  image = kind(data, like.affine if like.placed else None, header)
  image.header.set_slope_inter(1, 0)  # values mean themselves, whatever A's were scaled by
  return image


def describe_place(like: Volume) -> str:
  """Says what a result like a volume cannot tell of its place, or ""."""
  had_both = like.placed
  if isinstance(like.source, nibabel.Nifti1Header):
    had_both = bool(like.source["sform_code"] and like.source["qform_code"])
  if not had_both or _clean_header(like, nibabel.Nifti1Image)["qform_code"]:
    return ""
  return "its place is in the sform alone: the qform cannot hold it, and has the code 0"


def from_image(image: Any) -> Volume:
  """Takes a nibabel image of any format for a volume; what is refused is as for a file.

  Returns:
    The volume; its `source` is the header.

  Raises:
    UserError: it is no volume that can be fused.
  """
  shape, _ = check_header(image.header)
  notes: list[str] = []
  is_nifti = isinstance(image.header, nibabel.Nifti1Header)
  if is_nifti and (factor := nifti_header.mm_of_unit(image.header)) != 1:
    header, affine = image.header.copy(), image.affine
    notes = nifti_header.mend(header)
    affine = None if affine is None else np.diag([factor, factor, factor, 1]) @ affine
    image = type(image)(image.dataobj, affine, header)
  return _to_volume(image, shape, notes)


def read_parts(data: bytes, voxels: bytes | None = None) -> Volume:
  """Reads the content of a file; of a pair that of its .hdr, and of its .img the voxels."""
  kind, header = _read_header(data, is_pair=voxels is not None)
  shape, dtype = check_header(header)
  if not np.isfinite(header["vox_offset"]):
    raise UserError("broken header: vox_offset, where the voxels begin, is not a number")
  offset = max(int(header["vox_offset"]), 0)
  needed = offset + math.prod(shape) * dtype.itemsize
  content = content_of(data if voxels is None else voxels, needed)
  if len(content) < needed:
    raise UserError(truncated(len(content), needed))
  notes = nifti_header.mend(header)
  # The header is written anew, so that nibabel reads what was mended, and a pair as one file.
  if voxels is not None:
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    content = bytes(header.single_vox_offset) + content[offset:]
  start = header.binaryblock
  return _to_volume(kind.from_bytes(start + content[len(start) :]), shape, notes)


def truncated(there: int, needed: int) -> str:
  """Says that a file is too short."""
  return f"is truncated: {there} of {needed} bytes are there: copy or download it again"


def check_header(header: Any) -> tuple[tuple[int, ...], np.dtype]:
  """Returns the shape in three dimensions and the type of the voxels; refuses what is not read."""
  shape = tuple(header.get_data_shape())
  while len(shape) > 3 and shape[-1] == 1:
    shape = shape[:-1]
  if len(shape) > 3:
    raise UserError(
      f"holds {math.prod(shape[3:])} volumes ({' x '.join(map(str, shape))}): save the one to fuse "
      "as a file of its own (fslroi, nibabel.four_to_three) or average them"
    )
  if len(shape) < 2 or min(shape) < 1:
    raise UserError(f"an empty volume: its shape is {shape}")
  shape = (*shape, 1) if len(shape) == 2 else shape
  if math.prod(shape) > MAX_VOXELS:
    raise UserError(f"claims {' x '.join(map(str, shape))} voxels, over the limit of {MAX_VOXELS}")
  try:
    dtype = header.get_data_dtype()
  except KeyError:  # no such code
    dtype = np.dtype(np.void)
  if dtype.itemsize == 0:  # nibabel knows the code, but cannot read it
    raise UserError(f"voxels of a type that cannot be read (code {header['datatype']})")
  if dtype.kind == "c":
    raise UserError("holds complex numbers: save the magnitude")
  return shape, dtype


def _to_volume(image: Any, shape: tuple[int, ...], notes: list[str]) -> Volume:
  affine = image.header.get_best_affine() if image.affine is None else image.affine
  if not is_usable(affine):
    raise UserError(
      "its affine is singular or not finite, so voxels have no place: repair its sform or qform"
    )
  remarks, placed = _place(image)
  notes = [*notes, *remarks]
  if image.get_data_dtype().names is not None:
    stored = np.asarray(image.dataobj).reshape(shape)
    values = np.stack([stored[name] for name in ("R", "G", "B")], axis=-1)
  else:
    values = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)
    values = _replace_nonfinite(values, notes)
  return Volume(values, affine, placed, source=image.header, notes=tuple(notes))


def _read_header(data: bytes, *, is_pair: bool) -> tuple[Any, Any]:
  """Parses the header; returns the class of image and the header."""
  if not data:
    raise UserError("the file is empty")
  start = content_of(data, 540)
  for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
    size = kind.header_class.template_dtype.itemsize
    if len(start) >= size and kind.header_class.may_contain_header(start):
      header = kind.header_class(start[:size], check=False)
      if not is_pair and header["magic"].item().startswith(b"ni"):
        raise UserError("is half of a .hdr and .img pair: save it as one .nii file")
      # nibabel guesses the byte order from the number of dimensions: a wrong one turns it over.
      if header["sizeof_hdr"] == size:
        return kind, header
  if is_pair:
    raise UserError("is no NIfTI pair: its .hdr is of Analyze or another format: save it as .nii")
  raise UserError("is no NIfTI file: its header is not one")


def content_of(data: bytes, needed: int) -> bytes:
  """Returns a file's content, of a gzip file no more than `needed` bytes and some for its end.

  A small file cannot decompress to any size: the needed length is known from the header.
  """
  if data[:2] != _GZIP_MAGIC:
    return data
  parts, size = [], 0
  while data[:2] == _GZIP_MAGIC and size < needed:  # members may follow one another
    member, room = zlib.decompressobj(wbits=31), needed - size + _SLACK
    try:
      parts.append(member.decompress(data, room))
    except zlib.error:
      raise UserError(
        "broken gzip file: it does not decompress, or its checksum is wrong"
      ) from None
    if not member.eof and len(parts[-1]) < room:
      raise UserError("the gzip file is truncated: copy or download it again")
    size += len(parts[-1])
    data = member.unused_data
  return b"".join(parts)


def _place(image: Any) -> tuple[list[str], bool]:
  """What to say about a volume's place, and whether it has one."""
  header = image.header
  if not isinstance(header, nibabel.Nifti1Header):
    return [], image.affine is not None  # other formats have one place
  codes = header["sform_code"], header["qform_code"]
  if not any(codes):
    return ["its header does not say where it lies (sform and qform codes are 0)"], False
  apart = nifti_header.forms_apart(header, image.shape)
  if apart > 0.5 * nibabel.affines.voxel_sizes(header.get_best_affine()).min():
    return [f"its sform and qform differ by {apart:.3g} mm: the sform is used"], True
  return [], True


def _replace_nonfinite(values: np.ndarray, notes: list[str]) -> np.ndarray:
  bad = ~np.isfinite(values)
  if bad.all():
    raise UserError("holds no finite value")
  count = int(bad.sum())
  if not count:
    return values
  lowest = values[~bad].min()
  notes.append(f"{count} voxels are NaN or infinite: taken as {lowest:g}, its smallest value")
  return np.where(bad, lowest, values)


def _clean_header(like: Volume, kind: Any) -> Any:
  """A header with the geometry of A and nothing that could name a patient."""
  source = like.source
  if isinstance(source, nibabel.Nifti1Header):  # NIfTI-2's is a subclass
    header = kind.header_class.from_header(source, check=False)
    header.extensions.clear()
  else:
    header = kind.header_class()
    header.set_xyzt_units("mm")
    if like.placed:
      header.set_sform(like.affine, code="scanner")
      header.set_qform(like.affine, code="scanner")
  for field in ("db_name", "data_type", "aux_file", "intent_name"):
    if field in header:
      header[field] = b""
  for field in ("intent_code", "intent_p1", "intent_p2", "intent_p3", "cal_min", "cal_max"):
    header[field] = 0
  header["descrip"] = f"dmfnet_jax {dmfnet_jax.__version__}".encode()
  if like.placed:
    _move_forms(header, like.affine)
  nifti_header.drop_false_qform(header, like.shape)
  return header


def _move_forms(header: Any, affine: np.ndarray) -> None:
  """Makes an affine, of parts of the header's voxels, that of a header; codes stay."""
  old = header.get_best_affine()
  if np.allclose(old, affine):
    return
  to_old = np.linalg.inv(old) @ affine
  codes = int(header["sform_code"]), int(header["qform_code"])
  header.set_sform(header.get_sform() @ to_old, codes[0])
  header.set_qform(header.get_qform() @ to_old, codes[1])
