"""How many examples and parts of a method to compute at a time, by the memory that there is."""

import jax
import jax.numpy as jnp

from dmfnet_jax.methods.method import Config, Method

# On an accelerator: eight pictures of 256 x 256. On a CPU a batch gains nothing
# (`tests/benchmarks/NOTES.md`).
_PIXELS_PER_BATCH = 8 * 256 * 256
_MAX_EXAMPLES = 64
# The estimate is of what the graph holds; an accelerator's convolutions want room to work in.
_USABLE_MEMORY = 0.5


def examples_per_device(height: int, width: int) -> int:
  """How many examples of a size to take at a time on a device where the user does not say."""
  if jax.default_backend() == "cpu":
    return 1
  return max(1, min(_MAX_EXAMPLES, _PIXELS_PER_BATCH // (height * width)))


def divisors(number: int) -> list[int]:
  """The divisors of a number, ascending."""
  return [n for n in range(1, number + 1) if number % n == 0]


def choose_parts(
  method: Method,
  config: Config,
  size: tuple[int, ...],
  examples: int,
  dtype: str,
  device: jax.Device,
) -> int:
  """How many of a method's parts to run as one batch on a device.

  On a CPU one after the other: it takes the least memory and is no slower (the activations of one
  part stay nearer to the cores). So on a TPU by its compiler's estimate
  (`tests/benchmarks/NOTES.md`). On a GPU as many as fit half of the memory that is free.

  Args:
    method: the method.
    config: the model config.
    size: the padded size.
    examples: taken at a time on a device.
    dtype: the compute dtype.
    device: one of those that compute.

  Returns:
    A divisor of the method's `parts`.
  """
  parts = method.parts(config)
  if device.platform in ("cpu", "tpu"):
    return 1
  stats = device.memory_stats() or {}
  if "bytes_limit" not in stats or method.memory is None:
    return parts
  usable = _USABLE_MEMORY * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
  width = jnp.dtype(dtype).itemsize
  needed = {n: method.memory(config, size, examples, n, width) for n in divisors(parts)}
  return max((n for n, estimate in needed.items() if estimate <= usable), default=1)


def is_out_of_memory(error: Exception) -> bool:
  """Whether the memory was full, the host's or a device's, which XLA tells by its status."""
  return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
