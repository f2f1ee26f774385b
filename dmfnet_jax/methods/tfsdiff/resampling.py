"""Pillow's bicubic resizing of 8-bit pictures, as products with two matrices.

The method's low resolution is this and nothing else: a picture is shrunk, and what is left of it is
enlarged again, each time along the width, then along the height, and rounded to whole grey levels
in between and after.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_REACH = 2.0  # of the cubic, in pixels of the coarser picture
_BITS = 22  # Pillow's weights are whole numbers of 2^-22


def _cubic(x: np.ndarray) -> np.ndarray:
  """Keys' kernel (1981) with a = -1/2."""
  x = np.abs(x)
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x < 1, near, np.where(x < _REACH, far, 0.0))


@functools.cache
def weights(before: int, after: int) -> np.ndarray:
  """The weights [after, before], int32, by which a side of so many pixels gets another length.

  The kernel is widened where the side shrinks, cut off at the borders, and its sum is 1, or 2^22.
  """
  ratio = before / after
  wide = max(ratio, 1.0)
  centre = (np.arange(after)[:, None] + 0.5) * ratio
  pixel = np.arange(before)[None]
  first = np.floor(np.maximum(centre - _REACH * wide + 0.5, 0))
  end = np.floor(np.minimum(centre + _REACH * wide + 0.5, before))
  found = np.where((first <= pixel) & (pixel < end), _cubic((pixel - centre + 0.5) / wide), 0.0)
  found /= found.sum(1, keepdims=True)
  # Half away from zero, as C casts what 0.5 has been added to or taken from.
  return np.trunc(found * 2**_BITS + np.copysign(0.5, found)).astype(np.int32)


def resize(pictures: Array, height: int, width: int) -> Array:
  """Resizes pictures [B, H, W, C] in [-1, 1] to [B, height, width, C], whole grey levels.

  In whole numbers as Pillow does: sums often end half-way between two levels.
  """
  levels = jnp.round(127.5 * pictures + 127.5).astype(jnp.int32)
  for axis, length in ((2, width), (1, height)):
    before = levels.shape[axis]
    if before != length:
      product = {1: "ij,bjwc->biwc", 2: "ij,bhjc->bhic"}[axis]
      levels = jnp.einsum(product, weights(before, length), levels)
      levels = jnp.clip((levels + (1 << _BITS - 1)) >> _BITS, 0, 255)
  return levels.astype(jnp.float32) / 127.5 - 1


def enlarge(pictures: Array, factor: int) -> Array:
  """[B, H, W, C] to [B, factor H, factor W, C]; a factor of 1 leaves them as they are."""
  _, height, width, _ = pictures.shape
  return pictures if factor == 1 else resize(pictures, factor * height, factor * width)


def coarsen(pictures: Array, factor: int) -> Array:
  """[B, H, W, C] to [B, H / factor, W / factor, C]; the sides are multiples of the factor."""
  _, height, width, _ = pictures.shape
  return pictures if factor == 1 else resize(pictures, height // factor, width // factor)
