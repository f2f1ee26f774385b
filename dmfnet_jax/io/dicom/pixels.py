"""The pixels of a DICOM file: decoding, palettes. Called inside `headers.quiet()`."""

from typing import Any

import numpy as np
import pydicom
import pydicom.pixels
from pydicom.pixels.utils import get_expected_length

from dmfnet_jax.io.dicom.headers import BadFileError, Tags, read_file


def read_pixels(path: Any) -> np.ndarray:
  """Decodes the pixels of a file: stored values, or colours of any depth, as pydicom shapes them.

  Raises BadFileError where they cannot be decoded.
  """
  dataset = read_file(path, pixels=True)
  syntax = Tags(dataset.file_meta).uid("TransferSyntaxUID")
  # The usual obstacles are told apart before decoding, which would only raise.
  if not any(f"{kind}PixelData" in dataset for kind in ("", "Float", "DoubleFloat")):
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
  try:
    if "PixelData" in dataset and not syntax.is_encapsulated:
      expected, found = get_expected_length(dataset), len(dataset.PixelData)
      if found < expected:
        raise BadFileError(f"the file is truncated: {found} of {expected} bytes of pixel data")
    # Not `iter_pixels`: in pydicom 3.0 it fails for JPEG 2000 whose sign has to be mended.
    decoded = pydicom.pixels.pixel_array(dataset)
    if Tags(dataset).photometric == "PALETTE COLOR":
      decoded = _apply_palette(decoded, dataset)
    return decoded
  except BadFileError:
    raise
  except MemoryError:
    raise BadFileError("claims more pixels than fit into memory") from None
  except Exception as error:  # its own words may quote the header
    reason = f"pixel data is broken ({type(error).__name__})"
    if syntax.is_encapsulated:
      reason = f"compressed as {syntax.name}: broken, or beyond the decoders that are installed"
    raise BadFileError(reason) from None


def _apply_palette(indices: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
  """Colours [..., 3] of a palette, without alpha.

  Entries of 16 bits that all fit 8, or have nothing in their low bytes, are colours of 8 bits: some
  programs write them so, and other viewers look at the largest one, too. Big-endian ones are
  turned, which pydicom does not do.
  """
  descriptor = Tags(dataset).numbers("RedPaletteColorLookupTableDescriptor", 2)
  count, first = (
    (1, 0) if descriptor is None else (int(descriptor[0]) or 1 << 16, int(descriptor[1]))
  )
  if not Tags(dataset).is_little_endian:
    for colour in ("Red", "Green", "Blue"):
      keyword = f"{colour}PaletteColorLookupTableData"
      entries = dataset.get(keyword)
      if entries and len(entries) == 2 * count:
        dataset[keyword].value = np.frombuffer(entries, np.uint16).byteswap().tobytes()
  colours = pydicom.pixels.apply_color_lut(indices, dataset)[..., :3]
  if colours.dtype != np.uint16:
    return colours
  table = pydicom.pixels.apply_color_lut(first + np.arange(count), dataset)[..., :3]
  if table.max() < 256:
    return colours.astype(np.uint8)
  return colours if (table & 255).any() else (colours >> 8).astype(np.uint8)
