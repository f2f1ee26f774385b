"""Measures the input pipeline: training crops per second for several numbers of worker processes.

Generates a dataset in a temporary folder, so that it runs anywhere TensorFlow is installed:

  python tests/benchmarks/bench_input.py

"read" decodes both PNGs of every example, "cached" finds them in memory. The first batch is not
counted; "start" is the time until it is there.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dmfnet_jax.data import builders, pipeline


def write_pictures(folder: Path, count: int, size: int) -> None:
  """Writes smooth random pairs, which compress about as well as brain slices do."""
  rng = np.random.default_rng(0)
  for i in range(count):
    for kind, channels in (("a", 1), ("b", 3)):
      coarse = rng.integers(0, 256, (size // 8, size // 8, channels), np.uint8)
      image = Image.fromarray(coarse[..., 0] if channels == 1 else coarse)
      (folder / kind).mkdir(exist_ok=True)
      image.resize((size, size), Image.Resampling.BICUBIC).save(folder / kind / f"{i:04}.png")


def measure(source, seconds: float, **options) -> tuple[float, float]:
  """Returns (seconds until the first batch, crops per second after it)."""
  batches = pipeline.make_train_dataset(source, seed=0, **options)
  start = time.perf_counter()
  next(batches)
  started = time.perf_counter()
  # One epoch fills the caches and empties what was made ahead.
  for _ in range(len(source) // options["batch_size"] + 1):
    next(batches)
  begin, count = time.perf_counter(), 0
  while time.perf_counter() < begin + seconds:
    count += len(next(batches)["a"])
  rate = count / (time.perf_counter() - begin)
  batches.close()
  return started - start, rate


def main() -> None:
  """Prints a line for each number of workers."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pairs", type=int, default=128)
  parser.add_argument("--size", type=int, default=256)
  parser.add_argument("--crop-size", type=int, default=160)
  parser.add_argument("--batch-size", type=int, default=16)
  parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
  args = parser.parse_args()

  with tempfile.TemporaryDirectory() as folder:
    write_pictures(Path(folder), args.pairs, args.size)
    builders.prepare("paired_folder", Path(folder) / "data", folder)
    source = builders.open_source("paired_folder", Path(folder) / "data", "train")
    print(f"{len(source)} pairs of {args.size}, crops of {args.crop_size}, batch {args.batch_size}")
    print(f"{'workers':>8} {'start, s':>9} {'read, crops/s':>14} {'cached, crops/s':>16}")
    for workers in args.workers:
      options = {
        "crop_size": args.crop_size,
        "batch_size": args.batch_size,
        "num_workers": workers,
      }
      start, read = measure(source, args.seconds, cache=False, **options)
      _, cached = measure(source, args.seconds, cache=True, **options)
      print(f"{workers:>8} {start:>9.1f} {read:>14.0f} {cached:>16.0f}", flush=True)


if __name__ == "__main__":  # worker processes load this file, too
  main()
