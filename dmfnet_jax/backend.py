"""What belongs to the process: JAX's compilation cache, its platforms, its rank among others."""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import jax

from dmfnet_jax.errors import UserError

_MAX_HOST_DEVICES = 16  # each holds the activations of what it computes


def enable_compilation_cache() -> None:
  """Keeps compiled programs between processes, in a per-user folder.

  The folder is `$JAX_COMPILATION_CACHE_DIR` where that is set (an empty value turns the cache
  off), else `dmfnet_jax` under `$XDG_CACHE_HOME` or `~/.cache`. Programs compiled for CPU use the
  instructions of the machine at hand, so processors of another kind, which may share a home
  folder, get another folder. A program that has chosen a folder for JAX keeps it, and a user
  without a home folder has no cache.
  """
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
      return
    try:
      root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
      return
    jax.config.update("jax_compilation_cache_dir", str(root / "dmfnet_jax" / _processor()))
  # The default of one second leaves out most of what a small model compiles.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def use_all_cores() -> None:
  """Makes of the CPU one JAX device a core, where JAX has not started; another's choice stands.

  XLA runs many operations of one device on one core only.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  is_chosen = jax.config.jax_num_cpu_devices != -1  # type: ignore[attr-defined]
  if is_chosen or "host_platform_device_count" in flags:
    return
  has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
  cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
  with contextlib.suppress(RuntimeError):  # JAX has started
    jax.config.update("jax_num_cpu_devices", min(cores, _MAX_HOST_DEVICES))


def keep_memory() -> None:
  """Lets the process keep what it frees, up to 1 GiB at a time, where it runs on glibc.

  A program's activations are otherwise given back to the system after each call and fetched anew,
  page by page, at the next: a tenth of the time of fusing a pair on two cores. A user's own
  settings win. For commands, before other threads start; a library leaves its user's malloc alone.
  """
  if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
  if platform.libc_ver()[0] != "glibc" or mallopt is None:
    return
  trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
  mallopt(mmap_threshold, 2**30)
  mallopt(trim_threshold, 2**31 - 1)
  mallopt(arena_max, 1)  # another thread's arena holds 64 MiB; more comes from the system


def find_process(environment: Mapping[str, str]) -> tuple[int, int] | None:
  """This process's number and how many there are: JAX_PROCESS_ID and so on, or else `find_rank`.

  Raises:
    UserError: JAX_PROCESS_ID and JAX_NUM_PROCESSES contradict each other.
  """
  index, count = (environment.get(f"JAX_{x}") for x in ("PROCESS_ID", "NUM_PROCESSES"))
  if index is None and count is None:
    return find_rank(environment)
  numbers = [int(word) if word and word.isdecimal() else -1 for word in (index, count)]
  if not 0 <= numbers[0] < numbers[1]:
    raise UserError(
      "JAX_PROCESS_ID and JAX_NUM_PROCESSES must be a number and a larger one, "
      f"not {index} and {count}"
    )
  return numbers[0], numbers[1]


def find_rank(environment: Mapping[str, str]) -> tuple[int, int] | None:
  """This process's number and how many there are, where SLURM or Open MPI started several."""
  # A plain command in an allocation is a step of one task, whatever the allocation is for.
  tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
  if int(tasks) > 1 and "SLURM_STEP_NODELIST" in environment:
    return int(environment["SLURM_PROCID"]), int(tasks)
  size = int(environment.get("OMPI_COMM_WORLD_SIZE", "1"))
  return (int(environment["OMPI_COMM_WORLD_RANK"]), size) if size > 1 else None


def has_tpu() -> bool:
  """Whether this machine is a host of TPU chips, by its device files."""
  devices = Path("/dev")
  has_chips = any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))
  return has_chips and importlib.util.find_spec("libtpu") is not None


def ignore_absent_tpu() -> None:
  """Keeps JAX from trying libtpu where it is installed for preflight and there is no TPU.

  It would print a page of remarks at every start, and JAX's profiler would crash.
  """
  is_chosen = jax.config.jax_platforms  # type: ignore[attr-defined]  # JAX_PLATFORMS, too
  if is_chosen or has_tpu() or not importlib.util.find_spec("libtpu"):
    return
  has_gpu = any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))
  jax.config.update("jax_platforms", "cuda,cpu" if has_gpu else "cpu")


def _processor() -> str:
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:  # not Linux
    lines = []
  features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
  digest = hashlib.sha256(features.encode()).hexdigest()[:12]
  return f"{platform.machine()}-{digest}"
