"""Settings of JAX that belong to the process: the persistent compilation cache."""

import hashlib
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


def _processor() -> str:
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:  # not Linux
    lines = []
  features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
  digest = hashlib.sha256(features.encode()).hexdigest()[:12]
  return f"{platform.machine()}-{digest}"
