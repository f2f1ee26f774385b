"""B laid over a grey A at half its opacity, as viewers do: no network, no weights.

The picture of `io.panels.overlay`: a B without colours goes through the colour map `hot`, and where
B is black A alone is seen.
"""

import jax.numpy as jnp

from dmfnet_jax.io import scaling
from dmfnet_jax.methods import pixelwise
from dmfnet_jax.methods.method import Array


def lay(a: Array, b: Array) -> Array:
  """Lays the levels of B [B, H, W, 3] over those of A [B, H, W, 1]."""
  is_grey = (b == b[..., :1]).all(axis=(1, 2, 3), keepdims=True)
  hot = jnp.asarray(scaling.read_lut("hot"), jnp.float32)[b[..., 0].astype(jnp.int32)]
  is_above = b.max(axis=-1, keepdims=True) > 0
  return jnp.where(is_above, (a + jnp.where(is_grey, hot, b)) / 2, a)


# Whether B is grey is asked of the whole picture: a tile could say otherwise.
METHOD = pixelwise.method(lay, channels=3, in_tiles="no")
