"""How the published program makes a slice: four patches, each scaled by itself, laid together."""

import jax.numpy as jnp

from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.method import Array
from dmfnet_jax.nn import layers

SIDE = 128
# Of BraTS' 240 x 240 slices, first axis first: what is left of them is 160 x 180.
WHOLE = (240, 240)
WINDOW = (slice(40, 200), slice(20, 200))


def places(height: int, width: int) -> list[tuple[slice, slice]]:
  """Where the patches of a slice lie: in its corners, row by row.

  Raises:
    UserError: the patches do not cover the slice, or do not fit into it.
  """
  if not (SIDE <= height <= 2 * SIDE and SIDE <= width <= 2 * SIDE):
    raise UserError(
      f"config.synthesis.patched needs slices of {SIDE} to {2 * SIDE} pixels a side, not "
      f"{width} x {height}"
    )
  return [
    (slice(top, top + SIDE), slice(left, left + SIDE))
    for top in (0, height - SIDE)
    for left in (0, width - SIDE)
  ]


def cut(slices: Array) -> Array:
  """Cuts [B, H, W, C] into patches [B, 4, 128, 128, C]."""
  where = places(*slices.shape[1:3])
  return jnp.stack([slices[:, rows, columns] for rows, columns in where], axis=1)


def join(patches: Array, height: int, width: int) -> Array:
  """Scales each patch to its own range, and takes their means where they overlap.

  Args:
    patches: [B, 4, 128, 128, C] in [-1, 1], as `cut` gives them. A constant one stays as it is,
      where the published program divides by zero.
    height: of the slice.
    width: of the slice.

  Returns:
    [B, height, width, C] in [-1, 1].
  """
  stretched = layers.stretch(patches.reshape(-1, *patches.shape[2:])).reshape(patches.shape)
  total = jnp.zeros((len(patches), height, width, patches.shape[-1]), jnp.float32)
  count = jnp.zeros((1, height, width, 1), jnp.float32)
  for i, (rows, columns) in enumerate(places(height, width)):
    total = total.at[:, rows, columns].add(stretched[:, i])
    count = count.at[:, rows, columns].add(1.0)
  return total / count
