"""Noise of a part of a picture, without drawing the rest: noise belongs to the picture."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

Array = jax.Array


def normal_window(key: Array, shape: tuple[int, ...], window: Array) -> Array:
  """Draws what `jax.random.normal` draws for a whole picture, where a window of it lies.

  JAX's threefry makes each number of the key and the number's place alone (with
  `jax_threefry_partitionable`, the default), so a part costs no more than its own size. Places are
  counted modulo 2^32.

  Args:
    key: a threefry key, see `gaussian.make_key`.
    shape: of the window, (..., H, W, C).
    window: int32 [4], its first row and column, and the height and width of the whole picture.

  Returns:
    float32 [..., H, W, C], cut out of `jax.random.normal(key, (..., height, width, C))`.
  """
  row, column, height, width = window.astype(jnp.uint32)
  *leading, rows, columns, channels = shape
  n, y, x, c = (
    jax.lax.broadcasted_iota(jnp.uint32, (math.prod(leading), rows, columns, channels), axis)
    for axis in range(4)
  )
  place = ((n * height + row + y) * width + column + x) * jnp.uint32(channels) + c
  first, second = jax.random.key_data(key)
  halves = threefry2x32_p.bind(first, second, jnp.zeros_like(place), place)
  bits = halves[0] ^ halves[1]
  # As `jax.random.uniform` within (-1, 1): random digits behind 1., and the rest.
  digits = (bits >> np.uint32(9)) | np.float32(1).view(np.uint32)
  unit = jax.lax.bitcast_convert_type(digits, jnp.float32) - 1
  low = np.nextafter(np.float32(-1), np.float32(0))
  uniform = jnp.maximum(low, unit * (np.float32(1) - low) + low)
  return (np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)).reshape(shape)
