"""How many examples and parts of a method to compute at a time, by the memory that there is."""

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from dmfnet_jax.methods.method import Config, Method

# On an accelerator: eight pictures of 256 x 256. On a CPU a batch gains nothing
# (`tests/benchmarks/NOTES.md`).
_PIXELS_PER_BATCH = 8 * 256 * 256
_MAX_EXAMPLES = 64
# The estimate is of what the graph holds; an accelerator's convolutions want room to work in.
_USABLE_MEMORY = 0.5
# The estimate of a CPU's programs is of what XLA plans; the pictures come on top.
_USABLE_HOST_MEMORY = 0.8
_MEASURED = {2: (256, 256), 3: (64, 64, 64)}  # by the axes of what is fused
_CGROUPS = Path("/sys/fs/cgroup")
# By the controller that /proc/self/cgroup names, none in the second version: the limit, the use,
# and what of it is a cache that is given up.
_CGROUP_FILES = {
  "": ("memory.max", "memory.current", "inactive_file"),
  "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def examples_per_device(size: tuple[int, ...]) -> int:
  """How many examples of a size to take at a time on a device where the user does not say."""
  if jax.default_backend() == "cpu":
    return 1
  return max(1, min(_MAX_EXAMPLES, _PIXELS_PER_BATCH // math.prod(size)))


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
  usable = usable_bytes(device)
  if usable is None or method.memory is None:
    return parts
  width = jnp.dtype(dtype).itemsize
  needed = {n: method.memory(config, size, examples, n, width) for n in divisors(parts)}
  return max((n for n, estimate in needed.items() if estimate <= usable), default=1)


def count_fitting(
  method: Method,
  config: Config,
  size: tuple[int, ...],
  dtype: str,
  device: jax.Device,
  measure: Callable[[tuple[int, ...]], int],
) -> int:
  """How many examples of a padded size fit the memory of a device, by estimate.

  Args:
    method: the method.
    config: the model config.
    size: the padded size.
    dtype: the compute dtype.
    device: one of those that compute.
    measure: tells what an example of another size takes, for methods without an estimate: what
      grows faster than the pixels, such as attention, is left out then.
  """
  usable = usable_bytes(device)
  if usable is None:
    return 1
  if method.memory is not None:
    needed = method.memory(config, size, 1, 1, jnp.dtype(dtype).itemsize)
  else:
    measured = _MEASURED[len(size)]
    needed = measure(measured) * math.prod(size) // math.prod(measured)
  return usable // max(needed, 1)


def usable_bytes(device: jax.Device) -> int | None:
  """The bytes that may be used on a device of those that are free; None where nothing says it."""
  if device.platform == "cpu":
    free = _free_host_bytes()
    return None if free is None else int(_USABLE_HOST_MEMORY * free)
  stats = device.memory_stats() or {}
  if "bytes_limit" not in stats:
    return None
  return int(_USABLE_MEMORY * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))


def _free_host_bytes() -> int | None:
  """The least of what the machine, a container and the shell's limits leave to this process."""
  found = []
  with contextlib.suppress(OSError, ValueError, StopIteration):  # Linux
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(line for line in lines if line.startswith("MemAvailable"))
    found.append(1024 * int(free.split()[1]))
  with contextlib.suppress(OSError):
    found += _left_by_cgroups(Path("/proc/self/cgroup").read_text(), _CGROUPS)
  with contextlib.suppress(ImportError, OSError):
    import resource  # not on Windows

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
      pages = int(Path("/proc/self/statm").read_text().split()[0])
      found.append(limit - pages * os.sysconf("SC_PAGE_SIZE"))
  return max(0, min(found)) if found else None


def _left_by_cgroups(text: str, root: Path) -> list[int]:
  """What the limits of a process's control groups, and of those above them, leave: of each.

  Args:
    text: of /proc/self/cgroup: lines such as "0::/job_1/step_0".
    root: where the groups are folders.
  """
  found = []
  for line in text.splitlines():
    _, controller, place = line.split(":", 2)
    if controller not in _CGROUP_FILES:
      continue
    limit, used, cache = _CGROUP_FILES[controller]
    top = root / controller
    group = top / place.lstrip("/")
    for folder in (group, *group.parents):
      if not folder.is_relative_to(top):
        break
      with contextlib.suppress(OSError, ValueError):  # no such file here, or "max"
        left = int((folder / limit).read_text()) - int((folder / used).read_text())
        stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
        found.append(left + int(stat.get(cache, 0)))
  return found


def is_out_of_memory(error: Exception) -> bool:
  """Whether the memory was full, the host's or a device's, which XLA tells by its status."""
  return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
