"""Times one pair with each released model, and with `small` at other widths (random weights).

  python tests/benchmarks/bench_models.py [--widths 16 48 64] [--size 256] [--repeats 5]

One process, taking turns, medians; float32; memory kept as by the command.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import measuring  # noqa: E402
import tiny  # noqa: E402

from dmfnet_jax import backend  # noqa: E402
from dmfnet_jax.configs import dmfnet  # noqa: E402
from dmfnet_jax.inference.model import Model, load_model  # noqa: E402
from dmfnet_jax.training import setup  # noqa: E402
from dmfnet_jax.weights.find import released_names  # noqa: E402
from dmfnet_jax.weights.workdir import model_config  # noqa: E402


def small_at(width: int) -> Model:
  """`small` at another width, with drawn weights."""
  stage1 = dmfnet.get_config("stage=1,size=small")
  stage1.unet.width = width
  stage2 = setup.with_sections(
    dmfnet.get_config("stage=2,size=small"), model_config(stage1.to_dict())
  )
  params = {"unet": tiny.draw_params(stage1), "fusion_head": tiny.draw_params(stage2)}
  return Model(params, json.loads(json.dumps(model_config(stage2.to_dict()))))


def main() -> None:
  """Prints a line a model."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--widths", type=int, nargs="*", default=[16, 48, 64])
  parser.add_argument("--size", type=int, default=256)
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args()
  backend.keep_memory()
  models = {name: load_model(name) for name in released_names()}
  models |= {f"small at width {width}": small_at(width) for width in args.widths}
  a, b = (
    np.rint((measuring.pictures(1, args.size, seed)[0] + 1) * 127.5).astype(np.uint8)
    for seed in range(2)
  )
  runs = {name: lambda model=model: model.fuse(a, b) for name, model in models.items()}
  seconds = measuring.interleaved_medians(runs, args.repeats)
  print(f"one pair of {args.size} x {args.size}, float32, medians of {args.repeats}")
  print(measuring.machine())
  for name, value in seconds.items():
    print(f"{name:20} {value:6.2f} s")


if __name__ == "__main__":
  main()
