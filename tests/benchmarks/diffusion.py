"""Asks whether a diffusion-trained UNet makes better fusion than one of random weights.

  python tests/benchmarks/diffusion.py --data-dir data --out OUT [--steps 1000]

Trains Stage II of a recipe on a trained UNet and on untrained ones, with each of the two outputs
(blend, the paper's tanh), on one noise step (5) and three (5, 10, 20), each once per seed: sixteen
runs, or fewer with `--outputs` and `--timesteps`. `--unets untrained-64 untrained` compares widths
instead. Then fuses the validation pairs with every model and prints means over the seeds, and how
far the first two UNets lie apart beside how far the seeds do. What is trained already is not
trained again, and `--seeds 0` and `--seeds 1` can run beside each other before a call with both.
"""

import argparse
import collections
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import ablations  # noqa: E402
import curves  # noqa: E402
import quality  # noqa: E402

from dmfnet_jax.backend import enable_compilation_cache  # noqa: E402
from dmfnet_jax.inference.model import load_model  # noqa: E402
from dmfnet_jax.metrics import METRIC_NAMES, READER_NAMES  # noqa: E402

COLUMNS = ("validation loss", *METRIC_NAMES, *READER_NAMES, "lost bone")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--recipe", default="configs/dmfnet.py:stage=2,size=small-v2")
  parser.add_argument("--stage1", default="small", help="a model or run with the trained UNet")
  parser.add_argument("--data-dir", required=True)
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--steps", type=int, help="of Stage II; the recipe's without it")
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
  parser.add_argument("--outputs", nargs="+", default=["blend", "tanh"])
  parser.add_argument("--timesteps", nargs="+", default=["5", "5,10,20"])
  parser.add_argument(
    "--unets",
    nargs="+",
    default=["trained", "untrained"],
    help="trained (--stage1), untrained (as wide as small's), or untrained-WIDTH",
  )
  args = parser.parse_args()
  enable_compilation_cache()
  data = [f"--config.data_dir={args.data_dir}", "--config.sample_every_steps=0"]
  budget = [] if args.steps is None else [f"--config.num_train_steps={args.steps}"]

  pairs = quality.read_pairs(args.data_dir, "validation")
  found: dict[tuple[str, str, str, str], list[dict[str, float]]] = collections.defaultdict(list)
  for seed, output, timesteps in itertools.product(args.seeds, args.outputs, args.timesteps):
    seeded = [*data, f"--config.seed={seed}"]
    for unet in args.unets:
      stage1 = args.stage1 if unet == "trained" else str(_untrained(args.out, unet, seed, seeded))
      workdir = args.out / f"{unet}_{output}_{timesteps}_{seed}"
      print(f"{workdir.name}:", file=sys.stderr, flush=True)
      overrides = [
        *seeded,
        *budget,
        f"--config.start={stage1}",
        f"--config.fusion_head.output={output}",
        f"--config.features.timesteps=({timesteps},)",
      ]
      model = load_model(ablations.train(args.recipe, workdir, overrides))
      for modality, row in quality.measure(pairs, quality.fuse_pairs(model, pairs)).items():
        found[modality, output, timesteps, unet].append(row)
      losses = [loss for _, loss in curves.read(workdir)["validation/loss"]]
      found["all", output, timesteps, unet][-1]["validation loss"] = min(losses)  # as it is chosen

  table = {
    f"{modality}, {output}, t = {timesteps}, {unet}": {
      c: float(np.mean([row[c] for row in rows])) for c in COLUMNS if c in rows[0]
    }
    for (modality, output, timesteps, unet), rows in sorted(found.items())
  }
  count = sum(map(len, pairs.values()))
  print(f"means over {len(args.seeds)} seeds and the {count} pairs of val\n")
  print(quality.markdown(table, COLUMNS))
  if len(args.unets) > 1:
    print(f"\n{quality.markdown(compare(found, *args.unets[:2]), COLUMNS)}")


def _untrained(out: Path, unet: str, seed: int, seeded: list[str]) -> Path:
  """A run whose UNet has random weights; "untrained-64" is 64 channels wide."""
  width = unet.removeprefix("untrained").removeprefix("-")
  workdir = out / f"unet{width}_{seed}"
  wide = []
  if width:  # four channels a group, as in the paper
    wide = [f"--config.unet.width={width}", f"--config.unet.norm_groups={int(width) // 4}"]
  return ablations.train("configs/ablations.py:untrained", workdir, [*seeded, *wide])


def compare(
  found: Mapping[tuple[str, str, str, str], list[dict[str, float]]], first: str, second: str
) -> quality.Rows:
  """Of all pairs: what the first UNet changes, for the better in how many forms; seeds apart."""
  forms = sorted({(output, timesteps) for _, output, timesteps, _ in found})
  difference = f"{first} - {second}"
  rows: quality.Rows = {difference: {}, "better in": {}, "deviation of a seed": {}}
  for c in COLUMNS:
    runs = np.array(
      [
        [[row[c] for row in found["all", *form, unet]] for unet in (first, second)]
        for form in forms
      ]
    )  # [form, unet, seed]
    change = runs[:, 0].mean(axis=1) - runs[:, 1].mean(axis=1)
    rows[difference][c] = float(change.mean())
    lower = c in quality.LOWER_IS_BETTER or c == "validation loss"
    rows["better in"][c] = float(np.sum(change < 0 if lower else change > 0))
    if runs.shape[-1] > 1:
      rows["deviation of a seed"][c] = float(np.sqrt(runs.var(axis=2, ddof=1).mean()))
  return rows


if __name__ == "__main__":
  main()
