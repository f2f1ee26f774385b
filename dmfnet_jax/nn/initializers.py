"""PyTorch's default initialisation, for methods whose published programs rely on it."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


@functools.partial(jax.jit, static_argnums=(1, 2))
def torch_kernel(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
  """A kernel [*window, in, out], uniform within 1 / sqrt(inputs of one output).

  This is `torch.nn.Conv2d`'s and `torch.nn.Linear`'s (He et al. 2015, with a slope of sqrt(5)).
  Jitted by itself: a model has few distinct kernel shapes. Drawn as one row: the numbers are the
  same, and what tells places in four axes takes LLVM five times as long to compile.
  """
  bound = 1 / math.sqrt(math.prod(shape[:-1]))
  return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


def torch_bias(inputs: int) -> Callable[..., Array]:
  """The initialiser of the bias of such a layer, whose outputs see so many inputs each."""

  def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    bound = 1 / math.sqrt(inputs)
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init
