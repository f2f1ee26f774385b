"""Colour of the second picture: the full-range BT.601 arithmetic of OpenCV, in NumPy.

Fusion works on luma alone and colour comes back afterwards, so the two directions must agree with
what the field's programs compute. OpenCV's 8-bit paths are fixed-point; the constants below are
its own, and the results are equal to OpenCV 4.12's and 5.0's for every one of the 2^24 colours.
Note that OpenCV weighs with 15 bits for grey and with 14 for YCrCb: its grey and its Y differ by
one level in 0.26 % of the colours. Both are kept: grey is what the network and the metrics see, Y
is what the colour differences are taken against.

Images are uint8, 0..255, channels last, red first, any number of leading axes. A TypeError says
that one is not uint8, a ValueError that shapes do not fit.
"""

import numpy as np

WEIGHTS = (0.299, 0.587, 0.114)
"""BT.601's, of red, green and blue, for pictures in floats."""

_GREY_BITS = 15
_GREY = (9798, 19235, 3735)  # 0.299, 0.587, 0.114 times 2^15

YCRCB_BITS = 14
_HALF = 1 << (YCRCB_BITS - 1)
Y_WEIGHTS = (4899, 9617, 1868)  # 0.299, 0.587, 0.114 times 2^14
CR_WEIGHT, CB_WEIGHT = 11682, 9241  # 0.713, 0.564 times 2^14
CR_TO_R, CB_TO_B = 22987, 29049  # 1.403, 1.773
CR_TO_G, CB_TO_G = -11698, -5636  # -0.714, -0.344


def rgb_to_luma(rgb: np.ndarray) -> np.ndarray:
  """Returns the BT.601 grey [...] of colours [..., 3], as OpenCV's `COLOR_RGB2GRAY`."""
  red, green, blue = _channels(rgb)
  grey = red * _GREY[0] + green * _GREY[1] + blue * _GREY[2]
  return ((grey + (1 << (_GREY_BITS - 1))) >> _GREY_BITS).astype(np.uint8)


def to_grey(image: np.ndarray) -> np.ndarray:
  """Returns a picture uint8 [H, W] as it is, and one of [H, W, 3] as its `rgb_to_luma`."""
  return image if image.ndim == 2 else rgb_to_luma(image)


def is_neutral(image: np.ndarray) -> bool:
  """Whether a picture [..., 3] of any dtype is grey: its three channels are equal everywhere."""
  return bool((image == image[..., :1]).all())


def drop_neutral(image: np.ndarray, space: int = 2) -> np.ndarray:
  """Returns a picture of `space` axes, or one with colours, without colours that are all grey."""
  return image[..., 0] if image.ndim > space and is_neutral(image) else image


def replace_luma(rgb: np.ndarray, luma: np.ndarray) -> np.ndarray:
  """Returns the picture with its colour kept and its luma replaced.

  The same as OpenCV's `COLOR_RGB2YCrCb`, writing `luma` over the Y channel, `COLOR_YCrCb2RGB`:
  both conversions round to 8 bits and the last saturates. A neutral colour (red, green and blue
  equal) stays neutral and takes exactly the value of `luma`.

  Args:
    rgb: uint8 [..., 3]; gives the colour.
    luma: uint8 [...], the shape of `rgb` without its last axis; gives the brightness.

  Returns:
    uint8 [..., 3].
  """
  red, green, blue = _channels(rgb)
  luma = np.asarray(luma)
  if luma.dtype != np.uint8:
    raise TypeError(f"luma must be uint8, not {luma.dtype}")
  if luma.shape != red.shape:
    raise ValueError(f"luma {luma.shape} does not fit the colour picture {np.shape(rgb)}")

  y = (red * Y_WEIGHTS[0] + green * Y_WEIGHTS[1] + blue * Y_WEIGHTS[2] + _HALF) >> YCRCB_BITS
  # OpenCV stores Cr and Cb as saturated bytes around 128: the inverse starts from those.
  cr = np.clip(((red - y) * CR_WEIGHT + _HALF) >> YCRCB_BITS, -128, 127)
  cb = np.clip(((blue - y) * CB_WEIGHT + _HALF) >> YCRCB_BITS, -128, 127)

  y = luma.astype(np.int32)
  out = np.empty(np.shape(rgb), np.uint8)
  out[..., 0] = np.clip(y + ((cr * CR_TO_R + _HALF) >> YCRCB_BITS), 0, 255)
  out[..., 1] = np.clip(y + ((cr * CR_TO_G + cb * CB_TO_G + _HALF) >> YCRCB_BITS), 0, 255)
  out[..., 2] = np.clip(y + ((cb * CB_TO_B + _HALF) >> YCRCB_BITS), 0, 255)
  return out


def _channels(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Splits uint8 [..., 3] into three int32 arrays: the products need up to 31 bits."""
  rgb = np.asarray(rgb)
  if rgb.dtype != np.uint8:
    raise TypeError(f"a colour picture must be uint8, not {rgb.dtype}")
  if rgb.shape[-1:] != (3,):
    raise ValueError(f"a colour picture has shape [..., 3], not {rgb.shape}")
  wide = rgb.astype(np.int32)
  return wide[..., 0], wide[..., 1], wide[..., 2]
