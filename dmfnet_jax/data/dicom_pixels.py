"""Decoding the pixels of DICOM files into values with a unit, or into 8-bit colour."""

from typing import Any

import numpy as np
import pydicom
import pydicom.pixels
from pydicom.pixels.utils import get_expected_length

from dmfnet_jax.data import dicom_headers as headers
from dmfnet_jax.data.dicom_frames import Frame
from dmfnet_jax.data.dicom_headers import BadFileError

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def decode_file(path: Any, frames: list[Frame]) -> list[np.ndarray]:
  """Decodes the images of one file; call inside `quiet()`.

  Args:
    path: the file.
    frames: its frames, all of them, in the file's order.

  Returns:
    One float32 array a frame, [rows, columns] in `frame.unit`, or [rows, columns, 3] in 0..255.

  Raises:
    BadFileError: it cannot be decoded.
  """
  dataset = headers.read_whole(path)
  syntax = headers.uid(dataset.file_meta, "TransferSyntaxUID")
  _check_encoding(dataset, syntax)
  try:
    # Not `iter_pixels`: in pydicom 3.0 it fails for JPEG 2000 whose sign has to be mended.
    decoded = pydicom.pixels.pixel_array(dataset)
    if headers.photometric(dataset) == "PALETTE COLOR":
      decoded = pydicom.pixels.apply_color_lut(decoded, dataset)[..., :3]  # no alpha
  except MemoryError:
    raise BadFileError("claims more pixels than fit into memory") from None
  except Exception as error:
    # Not the error's own text: it may quote the header.
    reason = f"pixel data is broken ({type(error).__name__})"
    if syntax.is_encapsulated:
      reason = f"compressed as {syntax.name}: broken, or beyond the decoders that are installed"
    raise BadFileError(reason) from None
  if len(frames) == 1 and decoded.ndim == len(frames[0].shape):
    decoded = decoded[None]
  if decoded.shape != (len(frames), *frames[0].shape):
    raise BadFileError("pixel data does not have the size that the header announces")
  convert = _to_8_bits if headers.is_rgb(dataset) else _to_unit
  return [convert(array, frame) for array, frame in zip(decoded, frames, strict=True)]


def _check_encoding(dataset: pydicom.Dataset, syntax: pydicom.uid.UID) -> None:
  """Tells the usual obstacles apart before decoding, which would only raise."""
  keyword = next((keyword for keyword in _PIXELS if keyword in dataset), None)
  if keyword is None:
    raise BadFileError("holds no pixel data: the file is truncated, or a header only")
  try:
    decoder = pydicom.pixels.get_decoder(syntax)
  except NotImplementedError:
    raise BadFileError(
      f"encoded as {syntax.name or 'unknown'}, which cannot be decoded here: save it uncompressed"
    ) from None
  if not decoder.is_available:
    raise BadFileError(
      f"compressed as {syntax.name}, for which no decoder is installed:"
      " `pip install python-gdcm`, or save it uncompressed"
    )
  if keyword != "PixelData" or syntax.is_encapsulated:
    return
  try:
    expected, found = int(get_expected_length(dataset)), len(dataset.PixelData)
  except Exception as error:
    raise BadFileError(f"pixel data is broken ({type(error).__name__})") from None
  if found < expected:
    raise BadFileError(f"the file is truncated: {found} of {expected} bytes of pixel data")


def _to_unit(stored: np.ndarray, frame: Frame) -> np.ndarray:
  """Maps stored values to the frame's unit and sets its padding to the lowest value beside it."""
  if frame.to_unit is None:
    try:
      values = np.asarray(pydicom.pixels.apply_modality_lut(stored, frame.header), np.float64)
    except Exception as error:
      raise BadFileError(f"the lookup table is broken ({type(error).__name__})") from None
  else:
    slope, intercept = frame.to_unit
    values = stored.astype(np.float64) * slope + intercept
  values = _finite(values, frame)
  if frame.pivot is not None:
    values = frame.pivot - values
  padding = _padding(stored, frame.header)
  if padding is not None and padding.any() and not padding.all():
    values[padding] = values[~padding].min()
  if np.abs(values).max() > np.finfo(np.float32).max:
    raise BadFileError("RescaleSlope and RescaleIntercept make values too large for 32 bits")
  return values.astype(np.float32)


def _finite(values: np.ndarray, frame: Frame) -> np.ndarray:
  """Replaces what float pixel data may hold and nothing behind this could use."""
  finite = np.isfinite(values)
  if finite.all():
    return values
  if not finite.any():
    raise BadFileError("holds no finite number")
  frame.notes.append("values that are no finite numbers: set to the lowest of their slice")
  return np.where(finite, values, values[finite].min())


def _padding(stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray | None:
  """Where there is no image: values outside the round field of view of a CT, for example."""
  value = headers.number(header, "PixelPaddingValue")
  if value is None:
    return None
  limit = headers.number(header, "PixelPaddingRangeLimit")
  ends = sorted((value, value if limit is None else limit))
  return (stored >= ends[0]) & (stored <= ends[1])


def _to_8_bits(colour: np.ndarray, frame: Frame) -> np.ndarray:
  """Scales colours of any depth to 0..255 by their full range."""
  if headers.photometric(frame.header) == "PALETTE COLOR":
    bits = colour.dtype.itemsize * 8  # that of the palette's entries, not of the indices
  else:
    bits = int(headers.number(frame.header, "BitsStored") or colour.dtype.itemsize * 8)
  return np.rint(colour.astype(np.float64) * (255 / ((1 << bits) - 1))).astype(np.float32)
