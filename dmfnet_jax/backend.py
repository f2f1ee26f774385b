"""Settings of JAX that belong to the process: compilation cache, and no TPU where there is none."""

import hashlib
import importlib.util
import os
import platform
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
  """Keeps compiled programs between processes, in a per-user folder.

  The folder is `$JAX_COMPILATION_CACHE_DIR` where that is set (an empty value turns the cache
  off), else `dmfnet_jax` under `$XDG_CACHE_HOME` or `~/.cache`. Programs compiled for CPU use the
  instructions of the machine at hand, so processors of another kind, which may share a home
  folder, get another folder.
  """
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "dmfnet_jax" / _processor()))
  # The default of one second leaves out most of what a small model compiles.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def has_tpu() -> bool:
  """Whether this machine is a host of TPU chips, by its device files."""
  devices = Path("/dev")
  has_chips = any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))
  return has_chips and importlib.util.find_spec("libtpu") is not None


def ignore_absent_tpu() -> None:
  """Keeps JAX from trying libtpu where it is installed for preflight and there is no TPU.

  It would print a page of remarks at every start, and JAX's profiler would crash.
  """
  if os.environ.get("JAX_PLATFORMS") or has_tpu() or not importlib.util.find_spec("libtpu"):
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
