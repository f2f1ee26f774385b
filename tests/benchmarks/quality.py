"""Measures how well a model fuses a prepared split: metrics, what a reader sees, loss.

  python tests/benchmarks/quality.py --model small --data-dir data --split validation
  python tests/benchmarks/quality.py --model small --data-dir data --split test --seeds 16

A row a modality for the model and one for the trivial fusion max(A, B). `--published FOLDER` adds
the rows of another program's pictures of the same pairs, FOLDER/ct/fused/16005.jpg and so on, and
names the metrics in which the model is worse; pairs that the folder lacks are left out of every
row. Where those are JPEG, `--as-jpeg` puts the model's through the same compression before. With
`--seeds N` the standard deviation of each mean over N seeds follows. Pictures are measured as
`dmfnet evaluate` measures files: fused in colour, rounded to 0..255, then turned to grey.
"""

import argparse
import collections
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dmfnet_jax import losses, metrics
from dmfnet_jax.data import builders
from dmfnet_jax.inference.model import Model, load_model
from dmfnet_jax.io import color
from dmfnet_jax.io.pictures import read_image, to_float

# What a row holds besides the metrics: what a reader sees; of CT, the share of bone (250 and above)
# that comes out below 200; Stage II's loss; and mean |F - max(A, B)| in grey levels.
EXTRA = (*metrics.READER_NAMES, "lost bone", "loss", "from max")
LOWER_IS_BETTER = ("MSE", "invention", "lost_brightness", "lost bone", "loss", "from max")

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


def fuse_pairs(
  model: Model, pairs: Pairs, seed: int = 0, saved: Callable = lambda picture: picture
) -> dict[str, np.ndarray]:
  """Fused pictures uint8 [B, H, W] by modality, with the noise that `dmfnet fuse` would draw.

  `saved` is what saving does to the coloured ones.
  """
  coloured = {
    modality: model.fuse(
      np.stack([a for _, a, _ in chosen]),
      np.stack([b for _, _, b in chosen]),
      seed=seed,
      names=[stem(name) for name, _, _ in chosen],
    )
    for modality, chosen in pairs.items()
  }
  return {modality: to_grey(map(saved, found)) for modality, found in coloured.items()}


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
    values |= {k: np.asarray(v) for k, v in metrics.compute_reader_metrics(a, b, f).items()}
    if modality == "CT":
      bone = b >= 250
      lost = (bone & (f < 200)).sum(axis=(1, 2)) / np.maximum(1, bone.sum(axis=(1, 2)))
      values["lost bone"] = np.where(bone.any(axis=(1, 2)), lost, np.nan)
    values["loss"] = np.asarray(fusion_loss(*(to_float(x)[..., None] for x in (f, a, b)))[0])
    away = np.abs(f.astype(np.float32) - np.maximum(a, b))
    values["from max"] = away.mean(axis=(1, 2))
    rows[modality] = {k: float(np.nanmean(v)) for k, v in values.items()}
    for k, v in values.items():
      every[k].append(v)
  if len(rows) > 1:
    rows["all"] = {k: float(np.nanmean(np.concatenate(v))) for k, v in every.items()}
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


def read_published(folder: str, pairs: Pairs) -> tuple[dict[str, np.ndarray], Pairs]:
  """Another program's pictures as grey by modality, and the pairs that it has pictures of."""
  found: dict[str, np.ndarray] = {}
  common: Pairs = {}
  for modality, chosen in pairs.items():
    files = {path.stem: path for path in Path(folder, modality.lower(), "fused").glob("*")}
    common_pairs = [pair for pair in chosen if stem(pair[0]) in files]
    if common_pairs:
      common[modality] = common_pairs
      found[modality] = to_grey(read_image(files[stem(pair[0])]) for pair in common_pairs)
  return found, common


def as_jpeg(picture: np.ndarray) -> np.ndarray:
  """A picture as it comes out of a JPEG file of quality 95 with halved chroma."""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "JPEG", quality=95)
  return np.asarray(Image.open(file))


def _count(pairs: Pairs) -> int:
  return sum(map(len, pairs.values()))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="small")
  parser.add_argument("--data-dir", required=True)
  parser.add_argument("--split", default="validation")
  parser.add_argument("--every", type=int, default=1, help="take every n-th pair of a modality")
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--published", metavar="FOLDER")
  parser.add_argument("--as-jpeg", action="store_true")
  args = parser.parse_args()
  pairs = read_pairs(args.data_dir, args.split, every=args.every)
  others: dict[str, Rows] = {}
  if args.published:
    total = _count(pairs)
    published, pairs = read_published(args.published, pairs)
    if not pairs:
      sys.exit(f"{args.published}: has pictures of no pair of the {args.split} split")
    others["published"] = measure(pairs, published)
    if total > _count(pairs):
      print(f"{total - _count(pairs)} of {total} pairs left out: not in {args.published}")
  model = load_model(args.model)
  columns = [*metrics.METRIC_NAMES, *EXTRA]

  saved = {"saved": as_jpeg} if args.as_jpeg else {}
  draws = [measure(pairs, fuse_pairs(model, pairs, seed, **saved)) for seed in range(args.seeds)]
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
