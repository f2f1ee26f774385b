"""Trains every recipe of `configs/ablations.py` for the same few steps, and prints one table.

  python tests/benchmarks/ablations.py --stage1 runs/small_stage1 --data-dir data --out OUT

All start from the same Stage I but for the row with the untrained UNet. A second call goes on where
the first was stopped. The last row is not trained: it is the first row's model, fused without
noise.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import quality  # noqa: E402

from dmfnet_jax.backend import enable_compilation_cache  # noqa: E402
from dmfnet_jax.configs.ablations import STAGE2  # noqa: E402
from dmfnet_jax.inference.model import Model, load_model  # noqa: E402
from dmfnet_jax.metrics import METRIC_NAMES  # noqa: E402
from dmfnet_jax.training.config import parse_config  # noqa: E402
from dmfnet_jax.training.loop import train_and_evaluate  # noqa: E402

SMALL = "configs/dmfnet.py:stage=2,size=small"


def train(config: str, workdir: Path, overrides: list[str]) -> Path:
  """Trains a recipe (or goes on); returns its workdir."""
  train_and_evaluate(parse_config(["--config", config, *overrides]), workdir)
  return workdir


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--stage1", required=True, help="workdir of Stage I of `small`")
  parser.add_argument("--data-dir", required=True)
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--crop-size", type=int, default=96)
  parser.add_argument("--every", type=int, default=1, help="fuse every n-th validation pair")
  args = parser.parse_args()
  enable_compilation_cache()
  every = [f"--config.{field}_every_steps={args.steps}" for field in ("eval", "checkpoint")]
  data = [f"--config.data_dir={args.data_dir}", *every, "--config.sample_every_steps=0"]
  budget = [
    *data,
    f"--config.num_train_steps={args.steps}",
    f"--config.crop_size={args.crop_size}",
    "--config.ema_decay=0.98",
  ]
  untrained = args.out / "untrained_stage1"
  train("configs/ablations.py:untrained", untrained, data)
  runs = {"small": (SMALL, args.stage1)}
  for name in sorted(STAGE2):
    runs[name.replace("_", " ")] = (f"configs/ablations.py:{name}", args.stage1)
  runs["untrained UNet"] = (SMALL, str(untrained))

  pairs = quality.read_pairs(args.data_dir, "validation", every=args.every)
  table = {}
  for name, (config, stage1) in runs.items():
    print(f"{name}:", file=sys.stderr, flush=True)
    overrides = [*budget, f"--config.start={stage1}"]
    model = load_model(train(config, args.out / name.replace(" ", "_"), overrides))
    table[name] = quality.measure(pairs, quality.fuse_pairs(model, pairs))["all"]
    if name == "small":
      quiet = Model(
        model.params, model.config | {"features": {**model.config["features"], "noise": False}}
      )
      without_noise = quality.measure(pairs, quality.fuse_pairs(quiet, pairs))["all"]
  table["small, no noise in fusing"] = without_noise
  print(f"means over {sum(map(len, pairs.values()))} validation pairs after {args.steps} steps\n")
  print(quality.markdown(table, [*METRIC_NAMES, *quality.EXTRA]))


if __name__ == "__main__":
  main()
