"""Where the visible picture is too dark to be enhanced: the dark channel, smoothed by its luma.

As the published program has it with OpenCV's functions: He et al. 2009 (dark channel prior) and
2010 (guided filter), in 8 bits up to the filter, whose products wrap. Pictures are [B, H, W, C],
int32 in 0..255 unless said.
"""

import jax
import jax.numpy as jnp
from jax import lax

from dmfnet_jax.io import color

Array = jax.Array

_BOX = 30
_ERODED = 10
_EPSILON = 0.01


def to_bytes(image: Array) -> Array:
  """A picture in [-1, 1] in 0..255."""
  return jnp.round(127.5 * image + 127.5).astype(jnp.int32)


def _scaled(x: Array, weight: int) -> Array:
  return (x * weight + (1 << (color.YCRCB_BITS - 1))) >> color.YCRCB_BITS


def rgb_to_ycrcb(rgb: Array) -> Array:
  """OpenCV's luma, Cr and Cb [B, H, W, 3] of red, green and blue."""
  red, green, blue = (rgb[..., i] for i in range(3))
  weighted = sum(x * weight for x, weight in zip((red, green, blue), color.Y_WEIGHTS, strict=True))
  luma = _scaled(jnp.asarray(weighted), 1)
  chroma = [
    jnp.clip(_scaled(x - luma, weight) + 128, 0, 255)
    for x, weight in ((red, color.CR_WEIGHT), (blue, color.CB_WEIGHT))
  ]
  return jnp.stack([luma, *chroma], axis=-1)


def ycrcb_to_rgb(ycrcb: Array) -> Array:
  """The way back, rounded again."""
  luma, cr, cb = ycrcb[..., 0], ycrcb[..., 1] - 128, ycrcb[..., 2] - 128
  green = _scaled(cr * color.CR_TO_G + cb * color.CB_TO_G, 1)
  offsets = (_scaled(cr, color.CR_TO_R), green, _scaled(cb, color.CB_TO_B))
  return jnp.stack([jnp.clip(luma + offset, 0, 255) for offset in offsets], axis=-1)


def dark_channel(rgb: Array) -> Array:
  """The least of the channels within 10 x 10 pixels, five before to four behind; [B, H, W, 1]."""
  least = jnp.min(rgb, axis=-1, keepdims=True)
  reach = (_ERODED // 2, _ERODED - 1 - _ERODED // 2)
  return lax.reduce_window(
    least,
    jnp.int32(255),
    lax.min,
    (1, _ERODED, _ERODED, 1),
    (1, 1, 1, 1),
    ((0, 0), reach, reach, (0, 0)),
  )


def box_mean(x: Array) -> Array:
  """Means of 30 x 30 pixels, 15 before to 14 behind, over reflected borders; float32."""
  reach = (_BOX // 2, _BOX - 1 - _BOX // 2)
  x = jnp.pad(x.astype(jnp.float32), ((0, 0), reach, reach, (0, 0)), mode="reflect")
  for window in ((1, _BOX, 1, 1), (1, 1, _BOX, 1)):
    x = lax.reduce_window(x, 0.0, lax.add, window, (1, 1, 1, 1), "VALID")
  return x / _BOX**2


def guided_filter(dark: Array, luma: Array) -> Array:
  """Smooths the dark channel along the luma's edges; float32 [B, H, W, 1], about 0..255."""
  mean_luma, mean_dark = box_mean(luma), box_mean(dark)
  covariance = box_mean(luma * dark % 256) - mean_luma * mean_dark
  variance = box_mean(luma * luma % 256) - mean_luma**2
  slope = covariance / (variance + _EPSILON)
  offset = mean_dark - slope * mean_luma
  return box_mean(slope) * luma.astype(jnp.float32) + box_mean(offset)


def dark_prior(ycrcb: Array) -> Array:
  """The prior of a picture, float32 [B, H, W, 1]; large where it is bright in all channels."""
  return guided_filter(dark_channel(ycrcb_to_rgb(ycrcb)), ycrcb[..., :1])
