"""What the measures take: pictures of one size, made float32 and checked once."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def of_pictures(function: Callable) -> Callable:
  """Jits `function` over float32 [B, H, W] images, having checked their shapes."""
  jitted = jax.jit(function)

  @functools.wraps(function)
  def call(*images: ArrayLike):
    # Converted here and not inside, so that uint8 and float32 share one compilation.
    arrays = [jnp.asarray(image, jnp.float32) for image in images]
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 3 or 0 in shapes[0] or len(set(shapes)) > 1:
      raise ValueError(f"want pictures [B, H, W] of one shape, got {shapes}")
    return jitted(*arrays)

  return call
