"""Measures how well a model fuses a prepared split: metrics, loss, distance from the maximum.

  python tests/benchmarks/quality.py --model small --data-dir data --split validation
  python tests/benchmarks/quality.py --model small --data-dir data --split test --seeds 16

A row a modality for the model and one for the trivial fusion max(A, B). `--published FILE` adds the
rows of other pictures of the same pairs, from a JSON file {"ct/16005": {metric: value}, ...}, and
names the metrics in which the model is worse; pairs that the file lacks are left out of every row.
With `--seeds N` the standard deviation of each mean over N seeds follows. Pictures are measured as
`dmfnet evaluate` measures files: fused in colour, rounded to 0..255, then turned to grey.
"""

import argparse
import collections
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dmfnet_jax import losses, metrics
from dmfnet_jax.data import builders
from dmfnet_jax.inference.model import Model, load_model
from dmfnet_jax.io import color
from dmfnet_jax.io.pictures import to_float

# What a row holds besides the metrics: Stage II's loss, and mean |F - max(A, B)| in grey levels.
EXTRA = ("loss", "from max")
LOWER_IS_BETTER = ("MSE", "loss", "from max")

Rows = dict[str, dict[str, float]]
Pairs = dict[str, list[tuple[str, np.ndarray, np.ndarray]]]


def read_pairs(
  data_dir: str, split: str, *, every: int = 1, dataset: str = "harvard_mmif"
) -> Pairs:
  """Pairs by modality, or every n-th of each: (name, A [H, W], B [H, W, 3]), uint8."""
  pairs: Pairs = collections.defaultdict(list)
  for example in builders.open_source(dataset, data_dir, split):
    modality = example["modality"].decode()
    pairs[modality].append((example["name"].decode(), example["a"][..., 0], example["b"]))
  return {modality: chosen[::every] for modality, chosen in sorted(pairs.items())}


def stem(name: str) -> str:
  """The stem of a pair's files, from which `dmfnet fuse` draws its noise."""
  return name.partition("_")[2]


def fuse_pairs(model: Model, pairs: Pairs, seed: int = 0) -> dict[str, np.ndarray]:
  """Fused pictures uint8 [B, H, W] by modality, with the noise that `dmfnet fuse` would draw."""
  coloured = {
    modality: model.fuse(
      np.stack([a for _, a, _ in chosen]),
      np.stack([b for _, _, b in chosen]),
      seed=seed,
      names=[stem(name) for name, _, _ in chosen],
    )
    for modality, chosen in pairs.items()
  }
  return {modality: to_grey(pictures) for modality, pictures in coloured.items()}


def to_grey(pictures: Iterable[np.ndarray]) -> np.ndarray:
  """Pictures of one size as one array of grey ones, uint8 [B, H, W]."""
  return np.stack([color.to_grey(picture) for picture in pictures])


def measure(pairs: Pairs, fused: Mapping[str, np.ndarray]) -> Rows:
  """Means by modality, and over all pairs as "all"."""
  every: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  rows: Rows = {}
  fusion_loss = jax.jit(losses.fusion_loss)
  for modality, chosen in pairs.items():
    a, b = (to_grey(pair[i] for pair in chosen) for i in (1, 2))
    f = fused[modality]
    values = {k: np.asarray(v) for k, v in metrics.compute_metrics(a, b, f).items()}
    values["loss"] = np.asarray(fusion_loss(*(to_float(x)[..., None] for x in (f, a, b)))[0])
    away = np.abs(f.astype(np.float32) - np.maximum(a, b))
    values["from max"] = away.mean(axis=(1, 2))
    rows[modality] = {k: float(v.mean()) for k, v in values.items()}
    for k, v in values.items():
      every[k].append(v)
  if len(rows) > 1:
    rows["all"] = {k: float(np.concatenate(v).mean()) for k, v in every.items()}
  return rows


def markdown(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
  """A table with a row a name."""
  lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
  for name, row in rows.items():
    cells = [f"{row[c]:.4g}" if c in row else "" for c in columns]
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def worse(ours: Mapping[str, float], theirs: Mapping[str, float]) -> list[str]:
  """The metrics in which `ours` is worse."""
  return [
    name
    for name in theirs
    if (ours[name] > theirs[name] if name in LOWER_IS_BETTER else ours[name] < theirs[name])
  ]


def read_published(path: str, pairs: Pairs) -> tuple[Rows, Pairs]:
  """Means by modality of another program's values, and the pairs that it has values of."""
  values: dict[str, dict[str, Any]] = json.loads(Path(path).read_text())
  rows: Rows = {}
  common: Pairs = {}
  for modality, chosen in pairs.items():
    of_both = [pair for pair in chosen if _key(pair) in values]
    if of_both:
      found = [values[_key(pair)] for pair in of_both]
      rows[modality] = {k: float(np.mean([row[k] for row in found])) for k in found[0]}
      common[modality] = of_both
  return rows, common


def _key(pair: tuple[str, np.ndarray, np.ndarray]) -> str:
  """A pair's name in the file of another program's values."""
  return pair[0].replace("_", "/", 1)


def _count(pairs: Pairs) -> int:
  return sum(map(len, pairs.values()))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="small")
  parser.add_argument("--data-dir", required=True)
  parser.add_argument("--split", default="validation")
  parser.add_argument("--every", type=int, default=1, help="take every n-th pair of a modality")
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--published", metavar="FILE.json")
  args = parser.parse_args()
  pairs = read_pairs(args.data_dir, args.split, every=args.every)
  others: dict[str, Rows] = {}
  if args.published:
    total = _count(pairs)
    others["published"], pairs = read_published(args.published, pairs)
    if not pairs:
      sys.exit(f"{args.published}: has values of no pair of the {args.split} split")
    if total > _count(pairs):
      print(f"{total - _count(pairs)} of {total} pairs left out: not in {args.published}")
  model = load_model(args.model)
  columns = [*metrics.METRIC_NAMES, *EXTRA]

  draws = [measure(pairs, fuse_pairs(model, pairs, seed)) for seed in range(args.seeds)]
  largest = {
    modality: np.stack([np.maximum(a, color.to_grey(b)) for _, a, b in chosen])
    for modality, chosen in pairs.items()
  }
  others = {"max": measure(pairs, largest)} | others
  table = {}
  for modality, row in draws[0].items():
    table[f"{modality}, model"] = row
    table |= {
      f"{modality}, {name}": rows[modality] for name, rows in others.items() if modality in rows
    }
  counts = ", ".join(f"{len(chosen)} {modality}" for modality, chosen in pairs.items())
  print(f"{args.model} on {args.split}: means over {counts} pairs, seed 0\n")
  print(markdown(table, columns))
  for name, rows in others.items():
    for modality, row in rows.items():
      found = worse(draws[0][modality], {k: v for k, v in row.items() if k != "from max"})
      print(f"\n{modality}: worse than {name} in {', '.join(found) or 'nothing'}")
  if args.seeds > 1:
    spread = {
      modality: {c: float(np.std([draw[modality][c] for draw in draws])) for c in columns}
      for modality in draws[0]
    }
    print(f"\nstandard deviation of each mean over {args.seeds} seeds\n")
    print(markdown(spread, columns))


if __name__ == "__main__":
  main()
