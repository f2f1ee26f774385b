"""Pictures whose rows are divided over devices, for layers that run on each device's own rows.

Images are [B, H, W, C]. `rows` names the mesh axis over which H is divided, the devices in the
order of the rows; None: the pictures are whole. A layer that looks at its neighbours asks the
devices beside its own for their nearest rows, so that values are those of the whole picture.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def divided_conv(rows: str) -> Any:
  """`lax.conv_general_dilated` of stride 1 for divided rows; for `flax.linen.Conv`.

  The padding of rows, the same above and below and at most a device's rows, comes from the devices
  beside; at the picture's edges it is zeros, as it is there for the whole picture.
  """

  def conv(x: Array, kernel: Array, strides: Any, padding: Any, **options: Any) -> Array:
    of_rows, *others = padding
    above, below = exchange(x, of_rows[0], rows)
    extended = jnp.concatenate([above, x, below], axis=1)
    return lax.conv_general_dilated(extended, kernel, strides, [(0, 0), *others], **options)

  return conv


def exchange(x: Array, n: int, rows: str) -> tuple[Array, Array]:
  """The n rows above and below a device's own; zeros outside of the picture."""
  # One exchange, where sending to each side would be two; they take longer than the few bytes.
  edges = lax.all_gather(jnp.stack([x[:, :n], x[:, -n:]]), rows)
  own, last = lax.axis_index(rows), lax.axis_size(rows) - 1
  above = edges[jnp.maximum(own - 1, 0), 1]
  below = edges[jnp.minimum(own + 1, last), 0]
  return jnp.where(own > 0, above, 0), jnp.where(own < last, below, 0)


def pad_reflect(x: Array, n: int, rows: str | None = None) -> Array:
  """Reflects n rows and columns at each edge: [B, H + 2 n, W + 2 n, C].

  The same values as `jnp.pad`. That joins slices, which XLA's CPU compiler computes within the
  loops that read the result; these then take several times as long. Here edges are written into
  an array that is there. Where rows are divided, each device needs n + 1 of them, and columns.
  """
  b, h, w, c = x.shape
  if min(h, w) <= n and rows is None:  # reflected more than once
    return jnp.pad(x, ((0, 0), (n, n), (n, n), (0, 0)), mode="reflect")
  above, below = x[:, 1 : n + 1][:, ::-1], x[:, -n - 1 : -1][:, ::-1]
  if rows is not None:
    is_first = lax.axis_index(rows) == 0
    is_last = lax.axis_index(rows) == lax.axis_size(rows) - 1
    before, behind = exchange(x, n, rows)
    above, below = jnp.where(is_first, above, before), jnp.where(is_last, below, behind)
  write = lax.dynamic_update_slice
  padded = jnp.zeros((b, h + 2 * n, w + 2 * n, c), x.dtype)
  for start, part in ((0, above), (n, x), (n + h, below)):
    padded = write(padded, part, (0, start, n, 0))
  left, right = padded[:, :, n + 1 : 2 * n + 1], padded[:, :, w - 1 : n + w - 1]
  padded = write(padded, left[:, :, ::-1], (0, 0, 0, 0))
  return write(padded, right[:, :, ::-1], (0, 0, n + w, 0))


def mean(x: Array, rows: str | None = None, **options: Any) -> Array:
  """`jnp.mean` over rows and columns, which stay as axes of length 1."""
  of_own = jnp.mean(x, axis=(1, 2), keepdims=True, **options)
  return of_own if rows is None else lax.pmean(of_own, rows)
