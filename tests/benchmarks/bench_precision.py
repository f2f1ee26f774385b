"""What bfloat16 changes: the metric table of real pairs, and the pictures themselves.

  python tests/benchmarks/bench_precision.py --model MODEL --a DIR --b DIR [--pairs 12]

Fuses the pairs in both precisions with the same noise. Prints the means of the twelve metrics,
their change, what another seed changes for comparison, and how far apart the pictures are. Without
--model the released `small`; without folders the simulated pairs that `dmfnet demo` shows.
"""

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import measuring  # noqa: E402

from dmfnet_jax import weights  # noqa: E402
from dmfnet_jax.data import color, images  # noqa: E402
from dmfnet_jax.inference.evaluate import format_table  # noqa: E402
from dmfnet_jax.inference.model import load_model  # noqa: E402
from dmfnet_jax.metrics import METRIC_NAMES, compute_metrics  # noqa: E402


def read_pairs(a_dir: str | None, b_dir: str | None, count: int) -> list[tuple]:
  """(A, B, name) of the pairs, grey: those of two folders, or simulated ones."""
  if a_dir and b_dir:
    found = [images.list_images(folder) for folder in (a_dir, b_dir)]
    stems = sorted(found[0].keys() & found[1].keys())[:count]
    return [(*(color.to_grey(images.read_image(f[stem])) for f in found), stem) for stem in stems]
  from dmfnet_jax.data.builders import mni_template

  pairs = list(mni_template.demo_pairs())[:count]
  return [(color.to_grey(a), color.to_grey(b), name) for a, b, name in pairs]


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="small")
  parser.add_argument("--a", metavar="DIR")
  parser.add_argument("--b", metavar="DIR")
  parser.add_argument("--pairs", type=int, default=12, help="at most (%(default)s)")
  args = parser.parse_args()
  if args.model == "small" and "small" not in weights.released_names():
    print("precision: no released model: name one of yours with --model")
    return
  pairs = read_pairs(args.a, args.b, args.pairs)
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
