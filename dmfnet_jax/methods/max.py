"""The brighter of both sources at each pixel: no network, no weights."""

import jax.numpy as jnp

from dmfnet_jax.methods import pixelwise

METHOD = pixelwise.method(jnp.maximum)
