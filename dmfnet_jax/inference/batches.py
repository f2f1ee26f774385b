"""How many pictures to fuse at a time, and what a full memory looks like."""

# On an accelerator: eight pictures of 256 x 256, which the model's noise draws make 48. On a CPU a
# batch gains nothing (small model, two cores, 256 x 256: 2.9 s a pair alone, 4.5 s in eights).
_PIXELS_PER_BATCH = 8 * 256 * 256
_MAX_PAIRS = 64


def pairs_per_batch(height: int, width: int) -> int:
  """How many pairs of a size to fuse at a time where the user does not say."""
  import jax  # not above: a mistyped path should not wait for it

  if jax.default_backend() == "cpu":
    return 1
  return max(1, min(_MAX_PAIRS, _PIXELS_PER_BATCH // (height * width)))


def is_out_of_memory(error: Exception) -> bool:
  """Whether the memory was full, the host's or a device's, which XLA tells by its status."""
  return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
