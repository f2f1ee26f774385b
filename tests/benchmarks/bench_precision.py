"""What bfloat16 changes: the metric table of real pairs, and the pictures themselves.

  python tests/benchmarks/bench_precision.py --a DIR --b DIR [--pairs 12]
  python tests/benchmarks/bench_precision.py --data-dir data [--split validation] [--pairs 12]

Fuses the pairs in both precisions with the same noise. Prints the means of the twelve metrics,
their change, what another seed changes for comparison, and how far apart the pictures are. The
pairs are those of two folders, or of a prepared split, of all modalities; or else the simulated
ones that `dmfnet demo` shows. Without --model the released `small` fuses.
"""

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import measuring  # noqa: E402
import quality  # noqa: E402

from dmfnet_jax.fusing.evaluate import format_table  # noqa: E402
from dmfnet_jax.inference.model import load_model  # noqa: E402
from dmfnet_jax.io import color, pictures  # noqa: E402
from dmfnet_jax.metrics import METRIC_NAMES, compute_metrics  # noqa: E402


def read_pairs(args: argparse.Namespace) -> list[tuple]:
  """(A, B, name) of the pairs, grey: those of two folders or of a split, or simulated ones."""
  count = args.pairs
  if args.data_dir:
    split = quality.read_pairs(args.data_dir, args.split)
    every = [
      (a, color.to_grey(b), quality.stem(name))
      for chosen in split.values()
      for name, a, b in chosen
    ]
    return [every[i * len(every) // count] for i in range(count)] if count < len(every) else every
  if args.a and args.b:
    found = [pictures.list_images(folder) for folder in (args.a, args.b)]
    stems = sorted(found[0].keys() & found[1].keys())[:count]
    return [(*(color.to_grey(pictures.read_image(f[stem])) for f in found), stem) for stem in stems]
  from dmfnet_jax.data.builders import mni_template

  pairs = list(mni_template.demo_pairs())[:count]
  return [(color.to_grey(a), color.to_grey(b), name) for a, b, name in pairs]


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="small")
  parser.add_argument("--a", metavar="DIR")
  parser.add_argument("--b", metavar="DIR")
  parser.add_argument("--data-dir", metavar="DIR", help="of a prepared dataset")
  parser.add_argument("--split", default="validation")
  parser.add_argument("--pairs", type=int, default=12, help="at most (%(default)s)")
  args = parser.parse_args()
  pairs = read_pairs(args)
  runs = {"float32": ("float32", 0), "bfloat16": ("bfloat16", 0), "another seed": ("float32", 1)}
  models = {name: load_model(args.model, compute_dtype=name) for name in ("float32", "bfloat16")}
  fused = {
    label: [models[dtype].fuse(a, b, seed=seed, names=name) for a, b, name in pairs]
    for label, (dtype, seed) in runs.items()
  }
  table = {label: _means(pairs, pictures) for label, pictures in fused.items()}
  for label in ("bfloat16", "another seed"):
    change = {name: table[label][name] - table["float32"][name] for name in METRIC_NAMES}
    table[f"change, {label}"] = change
  print(f"{len(pairs)} pairs, model {args.model}")
  print(measuring.machine())
  print(format_table(table))
  for label in ("bfloat16", "another seed"):
    apart = [np.abs(x.astype(int) - y) for x, y in zip(fused["float32"], fused[label], strict=True)]
    most, mean = max(int(x.max()) for x in apart), np.mean([x.mean() for x in apart])
    print(f"grey levels apart, {label}: mean {mean:.3f}, at most {most}")


def _means(pairs: list[tuple], fused: list[np.ndarray]) -> dict[str, float]:
  values = [
    compute_metrics(*(jnp.asarray(x, jnp.float32)[None] for x in (a, b, f)))
    for (a, b, _), f in zip(pairs, fused, strict=True)
  ]
  return {name: float(np.mean([value[name] for value in values])) for name in METRIC_NAMES}


if __name__ == "__main__":
  main()
