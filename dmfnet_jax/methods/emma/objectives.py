"""EMMA's losses and transformations, as its published program computes them (kornia 0.2.0).

Pictures are [B, H, W, 1] float32 in [0, 1].
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import ndimage

from dmfnet_jax import losses

Array = jax.Array


def distance(a: Array, b: Array) -> tuple[Array, Array]:
  """Mean absolute difference of the pictures, and of their spatial gradients, each [B]."""
  losses.check_same_shape(a, b)
  gradients = losses.spatial_gradient(a) - losses.spatial_gradient(b)
  intensity, gradient = (jnp.mean(losses.absolute(x), axis=(1, 2, 3)) for x in (a - b, gradients))
  return intensity, gradient


def draw_shifts(keys: Array, size: tuple[int, int], count: int) -> tuple[Array, Array]:
  """Draws how far each picture is shifted, each time another way and never not at all.

  Args:
    keys: [B] PRNG keys.
    size: height and width.
    count: shifts of a picture, at most 2 (side - 1).

  Returns:
    Rows and columns, int32 [B, count] each.
  """

  def draw(key: Array, side: int) -> Array:
    others = np.concatenate([np.arange(1 - side, 0), np.arange(1, side)]).astype(np.int32)
    return jax.random.choice(key, jnp.asarray(others), (count,), replace=False)

  by_axis = jax.vmap(jax.random.split, out_axes=1)(keys)
  rows, columns = (
    jax.vmap(lambda key, side=side: draw(key, side))(of_axis)
    for of_axis, side in zip(by_axis, size, strict=True)
  )
  return rows, columns


def transform(
  pictures: Array, rows: Array, columns: Array, rotations: Sequence[float], flips: bool
) -> Array:
  """The pictures as they are, shifted, rotated and flipped.

  Args:
    pictures: [B, H, W, 1].
    rows: [B, K] how far down each is shifted, K times; what falls out comes in at the other side.
    columns: [B, K] how far to the right.
    rotations: degrees, counter-clockwise.
    flips: whether to flip: left to right, upside down, and both.

  Returns:
    [T, B, H, W, 1], in this order.
  """
  roll = jax.vmap(lambda picture, down, right: jnp.roll(picture, (down, right), (0, 1)))
  found = [pictures]
  found += [roll(pictures, rows[:, k], columns[:, k]) for k in range(rows.shape[1])]
  found += [rotate(pictures, degrees) for degrees in rotations]
  if flips:
    found += [pictures[:, :, ::-1], pictures[:, ::-1], pictures[:, ::-1, ::-1]]
  return jnp.stack(found)


def rotate(pictures: Array, degrees: float) -> Array:
  """Rotates [B, H, W, 1] about the centre, counter-clockwise; bilinear, and black outside."""
  _, height, width, _ = pictures.shape
  centre = (height - 1) / 2, (width - 1) / 2
  y, x = np.mgrid[:height, :width] - np.reshape(centre, (2, 1, 1))
  cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  source = [  # y points down
    jnp.asarray(sin * x + cos * y + centre[0], jnp.float32),
    jnp.asarray(cos * x - sin * y + centre[1], jnp.float32),
  ]
  one = lambda picture: ndimage.map_coordinates(picture[..., 0], source, order=1)  # noqa: E731
  return jax.vmap(one)(pictures)[..., None]
