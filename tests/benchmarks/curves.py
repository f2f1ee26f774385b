"""Draws the loss curves of training runs into one picture, from their `metrics.jsonl`.

python tests/benchmarks/curves.py runs/small_stage1 runs/small_stage2 -o curves.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(workdir: Path) -> dict[str, list[tuple[int, float]]]:
  """The training and validation losses of a run: (step, value) each."""
  curves: dict[str, list[tuple[int, float]]] = {"loss": [], "validation/loss": []}
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    for name, points in curves.items():
      if row.get(name) is not None:
        points.append((row["step"], row[name]))
  return curves


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdirs", nargs="+", type=Path)
  parser.add_argument("-o", "--out", required=True)
  args = parser.parse_args()
  figure, axes = plt.subplots(
    1, len(args.workdirs), figsize=(5 * len(args.workdirs), 3.2), squeeze=False
  )
  for axis, workdir in zip(axes[0], args.workdirs, strict=True):
    for (name, points), marker in zip(read(workdir).items(), ("", "o"), strict=True):
      steps, values = zip(*points, strict=True)
      label = "validation" if name.startswith("validation") else "training"
      axis.plot(steps, values, marker=marker, markersize=4, linewidth=1, label=label)
    axis.set_yscale("log")
    axis.set_title(workdir.name)
    axis.set_xlabel("step")
    axis.grid(which="both", alpha=0.3)
  axes[0, 0].set_ylabel("loss")
  axes[0, 0].legend()
  figure.tight_layout()
  figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
  main()
