"""Time and memory of fusing, by the size of the pictures and by the batch.

  python tests/benchmarks/bench_growth.py [--width 32] [--repeats 5] [--plot growth.png]

Random weights at `small`'s width by default. Medians of runs that take turns; compiling is not
counted. The memory is what XLA plans for the activations on a device. Seconds a megapixel would be
constant but for the attention, whose arithmetic grows with the square of the pixels.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import measuring  # noqa: E402

from dmfnet_jax.inference.engine import Engine, example_keys  # noqa: E402

SIZES = (128, 256, 512, 1024)
BATCHES = (1, 2, 4, 8)


def main() -> None:
  """Prints both tables and draws them."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--width", type=int, default=32, help="of the finest level (%(default)s)")
  parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
  parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
  parser.add_argument("--batch-size", type=int, default=256, help="the side for the batches")
  parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--plot", metavar="FILE", help="also draw both")
  args = parser.parse_args()
  config = measuring.model_config(args.width)
  engine = Engine(measuring.drawn_params(config), config, compute_dtype=args.precision)

  print(f"width {args.width}, {args.precision}, medians of {args.repeats}")
  print(measuring.machine(), flush=True)
  by_size = dict(
    zip(args.sizes, _measure(engine, [(s, 1) for s in args.sizes], args.repeats), strict=True)
  )
  print(f"{'pixels':>12} {'s a pair':>9} {'s a megapixel':>14} {'MB':>8} {'MB a megapixel':>15}")
  for size, (seconds, memory) in by_size.items():
    pixels = size * size / 1e6
    print(
      f"{size:>5} x {size:<4} {seconds:9.2f} {seconds / pixels:14.2f} {memory:8.0f} "
      f"{memory / pixels:15.0f}",
      flush=True,
    )
  batches = [(args.batch_size, count) for count in args.batches]
  by_batch = dict(zip(args.batches, _measure(engine, batches, args.repeats), strict=True))
  print(f"{'batch':>12} {'s':>9} {'s a pair':>14} {'MB':>8} {'MB a pair':>15}")
  for count, (seconds, memory) in by_batch.items():
    print(
      f"{count:>12} {seconds:9.2f} {seconds / count:14.2f} {memory:8.0f} {memory / count:15.0f}"
    )
  if args.plot:
    _plot(args, by_size, by_batch)


def _measure(
  engine: Engine, cases: Sequence[tuple[int, int]], repeats: int
) -> list[tuple[float, float]]:
  """Seconds and planned megabytes of each (side, pairs in a batch), which take turns."""
  runs = {}
  for size, count in cases:
    a, b = (measuring.pictures(count, size, seed)[..., None] for seed in range(2))
    sources = [{"a": x, "b": y} for x, y in zip(a, b, strict=True)]
    keys = example_keys(0, [str(i) for i in range(count)])
    runs[f"{size} {count}"] = functools.partial(engine.run, sources, keys, batch_size=count)
  seconds = measuring.interleaved_medians(runs, repeats).values()
  devices = jax.local_device_count()
  memory = [
    engine.temporary_bytes((size, size), -(-count // devices)) / 1e6 for size, count in cases
  ]
  return list(zip(seconds, memory, strict=True))


def _plot(args: argparse.Namespace, by_size: dict, by_batch: dict) -> None:
  """Draws time and memory over pixels and over the batch, relative to the first of each."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.6), layout="constrained")
  axes = figure.subplots(1, 2)
  side = args.batch_size
  panels = (
    (axes[0], by_size, {size: size * size for size in by_size}, "side of one pair, pixels"),
    (axes[1], by_batch, {n: n for n in by_batch}, f"pairs of {side} x {side} in a batch"),
  )
  for axis, measured, amounts, label in panels:
    x = np.array([amounts[name] / amounts[min(amounts)] for name in measured])
    seconds, memory = np.array(list(measured.values())).T
    axis.loglog(x, x, color="lightgrey", linewidth=5, label="linear")
    axis.loglog(x, seconds / seconds[0], "o-", label=f"time; first {seconds[0]:.2f} s")
    axis.loglog(x, memory / memory[0], "s--", label=f"memory; first {memory[0]:.0f} MB")
    axis.set_xticks(x, list(map(str, measured)))
    axis.set_yticks(x, [f"{multiple:g}" for multiple in x])
    axis.minorticks_off()
    axis.set_xlabel(label)
    axis.set_ylabel("times the first")
    axis.legend(frameon=False)
  figure.suptitle(f"width {args.width}, {args.precision}, {measuring.processor()}", fontsize=9)
  figure.savefig(args.plot, dpi=120)
  print(f"plot: {args.plot}")


if __name__ == "__main__":
  main()
