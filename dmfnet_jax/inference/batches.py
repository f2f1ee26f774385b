"""How many pictures and passes to compute at a time, and what memory that takes."""

from collections.abc import Mapping
from typing import Any

# On an accelerator: eight pictures of 256 x 256, which the model's noise draws make 48. On a CPU a
# batch gains nothing (width 64, two cores, 256 x 256: 2.9 s a pair alone, 4.5 s in eights).
_PIXELS_PER_BATCH = 8 * 256 * 256
_MAX_PAIRS = 64

# The largest activations (the finest level's) that are held at once: so many a pass that runs, and
# so many for the sums over the timesteps or the head. From compiled programs; a test compares.
_ACTIVATIONS_PER_PASS = 4.0
_ACTIVATIONS_BESIDES = 4.5
# The estimate is of what the graph holds; an accelerator's convolutions want room to work in.
_USABLE_MEMORY = 0.5


def pairs_per_batch(height: int, width: int) -> int:
  """How many pairs of a size to fuse at a time on a device where the user does not say."""
  import jax  # not above: a mistyped path should not wait for it

  if jax.default_backend() == "cpu":
    return 1
  return max(1, min(_MAX_PAIRS, _PIXELS_PER_BATCH // (height * width)))


def pairs_at_once(size: tuple[int, int], batch_size: int | None = None) -> int:
  """How many pairs of a size keep all devices of this process busy.

  Args:
    size: height and width of the pictures.
    batch_size: pairs at a time on a device; by default `pairs_per_batch`.
  """
  import jax

  return (batch_size or pairs_per_batch(*size)) * jax.local_device_count()


def choose_passes(config: Mapping[str, Any], size: tuple[int, int], pairs: int, dtype: Any) -> int:
  """How many of the UNet's 2 T passes to run as one batch on the device at hand.

  On a CPU one after the other: it takes the least memory and is no slower (the activations of one
  pass stay nearer to the cores). So on a TPU, whose compiler expects 81 million cycles of a single
  pair that way and 138 with all six passes at once, and the same of eight pairs either way
  (`tests/benchmarks/NOTES.md`). On a GPU as many as fit half of the memory that is free.

  Args:
    config: the model config.
    size: height and width of the padded pictures.
    pairs: fused at a time on a device.
    dtype: the compute dtype.

  Returns:
    A divisor of 2 T.
  """
  import jax

  passes = 2 * len(config["features"]["timesteps"])
  if jax.default_backend() in ("cpu", "tpu"):
    return 1
  stats = jax.local_devices()[0].memory_stats() or {}
  if "bytes_limit" not in stats:
    return passes
  free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
  fitting = [
    chunk
    for chunk in range(1, passes + 1)
    if passes % chunk == 0
    and estimate_bytes(config, size, pairs, chunk, dtype) <= _USABLE_MEMORY * free
  ]
  return max(fitting, default=1)


def estimate_bytes(
  config: Mapping[str, Any], size: tuple[int, int], pairs: int, passes: int, dtype: Any
) -> int:
  """About how much memory the activations take at their peak, without compiling.

  Args:
    config: the model config.
    size: height and width of the padded pictures.
    pairs: fused at a time.
    passes: of the UNet that run as one batch.
    dtype: the compute dtype.

  Returns:
    Bytes: at least what XLA's CPU compiler plans (`Engine.temporary_bytes`), and at most twice that
    for pictures that are not tiny.
  """
  import jax.numpy as jnp

  unet = config["unet"]
  pixels = size[0] * size[1]
  activation = pixels * unet["width"] * unet["multipliers"][0] * 4
  positions = pixels // 4 ** (len(unet["multipliers"]) - 1)
  attention = 2 * 4 * positions**2 * passes  # scores and weights, float32
  # Norms and sums over timesteps are float32 in every dtype, the rest follows it.
  halves = jnp.dtype(dtype).itemsize / 4
  activations = (0.3 + 0.7 * halves) * _ACTIVATIONS_PER_PASS * passes + _ACTIVATIONS_BESIDES
  return int(pairs * (activation * activations + attention))


def is_out_of_memory(error: Exception) -> bool:
  """Whether the memory was full, the host's or a device's, which XLA tells by its status."""
  return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
