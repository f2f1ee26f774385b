"""Times the command from the shell: its help, and one pair with an empty and a warm cache.

  python tests/benchmarks/bench_cold_start.py [--model MODEL] [--size 256]

Wall time and, since others may use the machine, CPU time. Every run is a process of its own;
medians; the user's cache folder is a new one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import measuring  # noqa: E402
import numpy as np  # noqa: E402

from dmfnet_jax.io import pictures  # noqa: E402


def main() -> None:
  """Prints a line for each run."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="small")
  parser.add_argument("--size", type=int, default=256)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    for seed, file in enumerate(("a.png", "b.png")):
      picture = measuring.pictures(1, args.size, seed)[0]
      pictures.write_image(folder / file, np.rint((picture + 1) * 127.5).astype(np.uint8))
    environment = os.environ | {"XDG_CACHE_HOME": str(folder)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    fuse = ["fuse", str(folder / "a.png"), str(folder / "b.png"), "-o", str(folder / "fused.png")]
    fuse += ["--model", args.model]
    print(f"one pair of {args.size} x {args.size}, model {Path(args.model).name}")
    print(measuring.machine(), flush=True)
    for label, arguments, repeats in (
      ("--help", ["--help"], 5),
      ("fuse, empty cache", fuse, 1),
      ("fuse, warm cache", fuse, 5),
    ):
      runs = [
        _run([sys.executable, "-m", "dmfnet_jax", *arguments], environment) for _ in range(repeats)
      ]
      wall, cpu = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
      print(f"{label:20} {wall:6.2f} s wall {cpu:6.2f} s CPU", flush=True)


def _run(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
  """Seconds of a process: wall time, and CPU time."""
  start, used = time.perf_counter(), _cpu_seconds()
  subprocess.run(command, env=environment, check=True, capture_output=True)
  return time.perf_counter() - start, _cpu_seconds() - used


def _cpu_seconds() -> float:
  """CPU time of the processes that have ended."""
  times = os.times()
  return times.children_user + times.children_system


if __name__ == "__main__":
  main()
