"""Decoding of picture files: what the many kinds of PNG, JPEG, TIFF, BMP, GIF and WebP mean.

A picture in memory is a uint8 array, [H, W] grey or [H, W, 3] RGB, red first. How files map to it:

| in the file | read as |
|---|---|
| 8-bit grey or RGB | as it is |
| 1-bit | 0 and 255 |
| palette | RGB |
| WebP whose channels differ by one level at most | grey |
| CMYK, YCbCr | RGB, by Pillow's conversion (no colour profile is applied) |
| transparency (alpha channel, or a transparent colour) | laid over black, then dropped |
| 16-bit grey | value / 257, rounded: the full 16-bit range becomes the full 8-bit range |
| grey TIFF of 9 to 15 bits | the same, from its own full range |
| 16-bit RGB | the high byte, which is all that Pillow decodes: within one level of value / 257 |
| float TIFF (32 or 64 bits) | must lie in [0, 1]; value * 255, rounded |
| signed integers, 32-bit integers, float outside [0, 1] | refused: they have no agreed white |
| more than one page or frame | refused |

Read as values, for pictures that are measurements and will be shown through a window, the stored
numbers are neither scaled nor refused (16 bits as 0..65535, signed and 32-bit integers and floats
as they are; where white is stored as 0, the numbers count down from the top).

An EXIF orientation, which says that the stored rows are not the rows as seen, is applied.
"""

import contextlib
import io
import sys

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths

MAX_PIXELS = 89_478_485
"""Larger pictures are refused: a small file may claim any size (Pillow's own warning limit)."""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
_WAYS_OUT = "save as 8 or 16 bits, or fuse with a window (--window-a, --window-b)"
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLES, _TIFF_SAMPLE_FORMAT = 258, 262, 277, 339
_TIFF_KINDS = {1: "integers", 2: "signed integers", 3: "floats", 5: "complex integers"}
_TIFF_KINDS |= {6: "complex floats"}

_TURNED = {"F;32BF": "F;32F", "F;64BF": "F;64F", "I;16BS": "I;16S", "I;32BS": "I;32S"}

# Grey TIFFs of 64-bit floats, as NumPy and MATLAB write them: Pillow unpacks these pixels, to 32
# bits, but its table of TIFFs lacks them (in either byte order, black as 0 or white as 0).
for _order, _raw in ((b"II", "F;64F"), (b"MM", "F;64BF")):
  for _black in (0, 1):
    TiffImagePlugin.OPEN_INFO.setdefault((_order, _black, (3,), 1, (64,), ()), ("F", _raw))


def decode(data: bytes, *, as_values: bool = False) -> np.ndarray:
  """Decodes the content of one file; what it is follows from the content.

  Returns:
    uint8 [H, W] for a grey picture, uint8 [H, W, 3] (red first) for a colour one. Grey ones as
    values may be int64 or float32, too.

  Raises:
    UserError: it is broken, or of a kind that is refused; without the file's name.
  """
  if not data:
    raise UserError("the file is empty")
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
      return _decode(image, as_values)
  except UserError:
    raise
  except Image.UnidentifiedImageError as error:
    if known := _describe_tiff(data):
      raise UserError(known) from error
    raise UserError("not a readable PNG, JPEG, TIFF, BMP, GIF or WebP picture") from error
  except Image.DecompressionBombError as error:
    raise UserError(_too_large(f"more than {2 * MAX_PIXELS}")) from error
  except Exception as error:
    # Pillow's decoders answer broken files with anything from SyntaxError to struct.error.
    reason = paths.reason(error)
    if "truncated" in reason.lower():  # Pillow adds how many bytes its buffer held
      reason = "the file is truncated"
    raise UserError(f"broken picture: {reason}") from error


def _mend_byte_order(image: Image.Image) -> None:
  """Lets Pillow unpack compressed big-endian TIFFs as the numbers that libtiff has turned already.

  It does so for unsigned 16 bits alone, and would turn the others once more.
  """
  if sys.byteorder == "little" and isinstance(image, TiffImagePlugin.TiffImageFile):
    image.tile = [
      tile._replace(args=(_TURNED.get(tile.args[0], tile.args[0]), *tile.args[1:]))
      if tile.codec_name == "libtiff" and isinstance(tile.args, tuple)
      else tile
      for tile in image.tile
    ]


def _describe_tiff(data: bytes) -> str:
  """Says what the pixels of a TIFF are that Pillow does not read, or "" for other content."""
  file = io.BytesIO(data)
  try:
    tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
    file.seek(tags.next)
    tags.load(file)
    bits, count = tags.get(_TIFF_BITS, (1,))[0], tags.get(_TIFF_SAMPLES, 1)
    kind = _TIFF_KINDS.get(tags.get(_TIFF_SAMPLE_FORMAT, (1,))[0], "values of an unknown kind")
  except Exception:  # no TIFF, or a broken one
    return ""
  channels = f" in {count} channels" if count > 1 else ""
  way_out = "8 bits a channel" if count > 1 else "32-bit floats or 8 bits"
  return f"a TIFF of {bits}-bit {kind}{channels}, which is not read: save it as {way_out}"


def _decode(image: Image.Image, as_values: bool) -> np.ndarray:
  if image.width * image.height > MAX_PIXELS:
    raise UserError(_too_large(f"{image.width} x {image.height}"))
  # A camera's JPEG (MPO) may carry previews as further frames; the first is the picture.
  frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
  if frames > 1:
    raise UserError(f"holds {frames} pages or frames: save each as a file of its own")
  tags = getattr(image, "tag_v2", {})
  signed = 2 in tags.get(_TIFF_SAMPLE_FORMAT, ())
  if signed and not as_values:
    raise UserError(f"holds signed integers, which have no agreed white: {_WAYS_OUT}")
  bits = max(tags.get(_TIFF_BITS, (16,)))
  white_is_zero = tags.get(_TIFF_PHOTOMETRIC) == 0
  image_format = image.format  # what is made of it has none
  _mend_byte_order(image)
  image.load()
  if image.format != "TIFF":  # those Pillow has turned already
    with contextlib.suppress(Exception):  # a broken EXIF block says nothing about the picture
      ImageOps.exif_transpose(image, in_place=True)

  if as_values and (signed or image.mode.startswith(("I", "F"))):
    return _stored_values(np.asarray(image), bits, signed, white_is_zero)
  if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
    white = (1 << bits) - 1
    grey = (np.asarray(image, np.int64) * 255 * 2 + white) // (2 * white)
    # Pillow leaves an inverted TIFF to us.
    return (255 - grey if white_is_zero else grey).astype(np.uint8)
  if image.mode == "I":
    raise UserError(f"holds 32-bit integers, which have no agreed white: {_WAYS_OUT}")
  if image.mode == "F":
    values = np.asarray(image)
    low, high = float(np.min(values)), float(np.max(values))
    if not (low >= 0 and high <= 1):  # not a number compares false: refused as well
      raise UserError(f"holds float values {low:g} to {high:g} beyond [0, 1]: {_WAYS_OUT}")
    return np.rint(values * np.float32(255)).astype(np.uint8)
  mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
  if image.has_transparency_data and image.mode != "1":
    image = image.convert(f"{mode}A")
    black = Image.new(mode, image.size)
    black.paste(image, mask=image)
    image = black
  decoded = np.array(image.convert(mode))
  # WebP has no grey: a grey picture comes back with channels that differ by a level of rounding.
  if image_format == "WEBP" and int(np.ptp(decoded.astype(np.int16), axis=-1).max()) <= 1:
    return np.array(image.convert("L"))
  return decoded


def _stored_values(values: np.ndarray, bits: int, signed: bool, white_is_zero: bool) -> np.ndarray:
  """Undoes Pillow's idea of a sign: its 8 bits have none and its 32 bits always have one."""
  if values.dtype == np.uint8 and signed:
    values = values.view(np.int8)
  elif values.dtype == np.int32 and bits == 32 and not signed:
    values = values.view(np.uint32)
  if values.dtype.kind == "f":
    return -values if white_is_zero else values
  values = values.astype(np.int64)
  top = -1 if signed else (1 << bits) - 1
  return top - values if white_is_zero else values


def _too_large(size: str) -> str:
  return f"{size} pixels, over the limit of {MAX_PIXELS}: cut it into tiles"
