"""Times all twelve metrics against the NumPy, SciPy and scikit-image version of the same.

  python tests/benchmarks/bench_metrics.py [--pairs 64] [--size 256] [--repeats 3]

Prints both medians, their ratio and the machine. Compiling is not counted but printed, too.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import numpy as np
from scipy import ndimage

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import measuring  # noqa: E402
from oracles import metrics_numpy  # noqa: E402

from dmfnet_jax.metrics import compute_metrics  # noqa: E402


def pictures(num_pairs: int, size: int) -> list[np.ndarray]:
  """Smooth blobs on black, as A, B and their mean: [num_pairs, size, size] each, whole values."""
  rng = np.random.default_rng(0)
  noise = ndimage.gaussian_filter(rng.standard_normal((2, num_pairs, size, size)), (0, 0, 3, 3))
  a, b = np.clip(np.rint(60 + 600 * noise), 0, 255).astype(np.float32)
  return [a, b, np.rint((a + b) / 2)]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pairs", type=int, default=64)
  parser.add_argument("--size", type=int, default=256)
  parser.add_argument("--repeats", type=int, default=3)
  args = parser.parse_args()
  batches = pictures(args.pairs, args.size)

  def with_jax():
    jax.block_until_ready(compute_metrics(*batches))

  def with_numpy():
    for triple in zip(*batches, strict=True):
      metrics_numpy.compute_metrics(*triple)

  start = time.perf_counter()
  with_jax()
  compiling = time.perf_counter() - start
  seconds = measuring.interleaved_medians({"jax": with_jax, "numpy": with_numpy}, args.repeats)
  fast, slow = seconds["jax"], seconds["numpy"]
  print(f"all twelve metrics, {args.pairs} pairs of {args.size} x {args.size}, medians")
  print(measuring.machine())
  print(f"first call, with compiling: {compiling:8.3f} s")
  print(f"dmfnet_jax.metrics:         {fast:8.3f} s  {args.pairs / fast:8.1f} pairs/s")
  print(f"NumPy, SciPy, scikit-image: {slow:8.3f} s  {args.pairs / slow:8.1f} pairs/s")
  print(f"ratio: {slow / fast:.1f}")


if __name__ == "__main__":
  main()
