"""Times all twelve metrics against the NumPy, SciPy and scikit-image version of the same.

  python tests/benchmarks/bench_metrics.py [--pairs 64] [--size 256] [--repeats 5]

Prints both medians, their ratio and the machine. Compiling is not counted but printed, too.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from scipy import ndimage

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from oracles import metrics_numpy  # noqa: E402

from dmfnet_jax.metrics import compute_metrics  # noqa: E402


def pictures(num_pairs: int, size: int) -> list[np.ndarray]:
  """Smooth blobs on black, as A, B and their mean: [num_pairs, size, size] each, whole values."""
  rng = np.random.default_rng(0)
  noise = ndimage.gaussian_filter(rng.standard_normal((2, num_pairs, size, size)), (0, 0, 3, 3))
  a, b = np.clip(np.rint(60 + 600 * noise), 0, 255).astype(np.float32)
  return [a, b, np.rint((a + b) / 2)]


def median_seconds(function: Callable[[], object], repeats: int) -> float:
  """Median wall time of a call."""
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def processor() -> str:
  """What the operating system calls the processor."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:  # not Linux
    lines = []
  names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
  return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pairs", type=int, default=64)
  parser.add_argument("--size", type=int, default=256)
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args()
  batches = pictures(args.pairs, args.size)

  def with_jax():
    jax.block_until_ready(compute_metrics(*batches))

  def with_numpy():
    for triple in zip(*batches, strict=True):
      metrics_numpy.compute_metrics(*triple)

  compiling = median_seconds(with_jax, 1)
  fast = median_seconds(with_jax, args.repeats)
  slow = median_seconds(with_numpy, min(args.repeats, 3))
  print(f"all twelve metrics, {args.pairs} pairs of {args.size} x {args.size}, medians")
  print(f"machine: {platform.node()}, {processor()}; jax {jax.__version__} on {jax.devices()[0]}")
  print(f"first call, with compiling: {compiling:8.3f} s")
  print(f"dmfnet_jax.metrics:         {fast:8.3f} s  {args.pairs / fast:8.1f} pairs/s")
  print(f"NumPy, SciPy, scikit-image: {slow:8.3f} s  {args.pairs / slow:8.1f} pairs/s")
  print(f"ratio: {slow / fast:.1f}")


if __name__ == "__main__":
  main()
