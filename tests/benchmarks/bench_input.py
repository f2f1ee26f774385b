"""Measures the input pipeline beside the train step that it feeds, in crops (pairs) per second.

Generates a dataset in a temporary folder, so that it runs anywhere TensorFlow is installed:

  python tests/benchmarks/bench_input.py

"read" decodes both PNGs of every example, "cached" finds them in memory. The first batch is not
counted; "start" is the time until it is there. "times" is how often the pipeline, reading, feeds
the train step of a recipe (its crop, model and precision) on this machine's devices: at least
three is wanted. The step is timed alone, after its first two runs.
"""

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from flax import jax_utils
from PIL import Image

from dmfnet_jax.data import builders, pipeline
from dmfnet_jax.training import setup, steps
from dmfnet_jax.training.config import parse_config
from dmfnet_jax.training.loop import shard


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


def measure_step(config, source, num_steps: int) -> float:
  """Returns the pairs per second that the train step takes in."""
  batches = pipeline.make_train_dataset(
    source, seed=0, crop_size=config.crop_size, batch_size=config.batch_size
  )
  batch = next(batches)
  batches.close()
  batch.pop("record")
  batch = jax.device_put(shard(batch, jax.local_device_count()))
  run = setup.set_up(config, Path("no workdir"))
  state = jax_utils.replicate(setup.init_state(run), axis_name=steps.AXIS)
  train_step = setup.pmap_train_step(run)
  for step in range(num_steps + 2):
    if step == 2:
      jax.block_until_ready(state)
      begin = time.perf_counter()
    state, _ = train_step(state, batch)
  jax.block_until_ready(state)
  return num_steps * config.batch_size / (time.perf_counter() - begin)


def main() -> None:
  """Prints the step's rate and a line for each number of workers."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pairs", type=int, default=128)
  parser.add_argument("--size", type=int, default=256)
  parser.add_argument("--config", default="configs/dmfnet.py:size=tiny", help="a first stage")
  parser.add_argument("--batch-size", type=int, default=16)
  parser.add_argument("--steps", type=int, default=5, help="train steps that are timed")
  parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
  args = parser.parse_args()
  config = parse_config(["--config", args.config, f"--config.batch_size={args.batch_size}"])

  with tempfile.TemporaryDirectory() as folder:
    write_pictures(Path(folder), args.pairs, args.size)
    builders.prepare("paired_folder", Path(folder) / "data", folder)
    source = builders.open_source("paired_folder", Path(folder) / "data", "train")
    print(
      f"{len(source)} pairs of {args.size}, crops of {config.crop_size}, batch {args.batch_size}"
    )
    step = measure_step(config, source, args.steps)
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    print(f"train step of {args.config} on {devices}: {step:.2f} crops/s")
    print(
      f"{'workers':>8} {'start, s':>9} {'read, crops/s':>14} {'cached, crops/s':>16} {'times':>7}"
    )
    for workers in args.workers:
      options = {
        "crop_size": config.crop_size,
        "batch_size": args.batch_size,
        "num_workers": workers,
      }
      with mock.patch.object(pipeline, "CACHE_BYTES", 0):
        start, read = measure(source, args.seconds, **options)
      _, cached = measure(source, args.seconds, **options)
      times = f"{read / step:.1f}"
      print(f"{workers:>8} {start:>9.1f} {read:>14.0f} {cached:>16.0f} {times:>7}", flush=True)


if __name__ == "__main__":  # worker processes load this file, too
  main()
