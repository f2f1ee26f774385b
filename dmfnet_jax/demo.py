"""`dmfnet demo`: from nothing to fused pictures, with no data to bring."""

from pathlib import Path

import numpy as np

from dmfnet_jax import metrics
from dmfnet_jax.data import color, images
from dmfnet_jax.data.builders import mni_template
from dmfnet_jax.data.panels import panel
from dmfnet_jax.inference.evaluate import format_table
from dmfnet_jax.inference.model import load_model

_MODEL = "small"


def demo(out: str | Path) -> None:
  """Fuses simulated pairs of the ICBM152 brain with the released model and shows the result.

  Writes OUT/demo.png (a row a pair: A, B, fused, and fused minus the maximum of the sources) and
  one OUT/fused/NAME.png a pair, and prints the metrics beside those of two trivial fusions, the
  maximum and the mean of the sources.

  Args:
    out: a folder; made where needed.

  Raises:
    UserError: the folder cannot be written.
  """
  folder = images.make_folder(out)
  model = load_model(_MODEL)
  print(f"model: {_MODEL}")

  rows, titles = [], []
  sources: dict[str, list[np.ndarray]] = {"a": [], "b": []}
  results: dict[str, list[np.ndarray]] = {"fused": [], "max": [], "mean": []}
  images.make_folder(folder / "fused")
  for a, b, pair_name in mni_template.demo_pairs():
    fused = model.fuse(a, b, names=pair_name)
    images.write_image(folder / "fused" / f"{pair_name}.png", fused)
    luma_a, luma_b, luma_fused = (color.to_grey(x).astype(np.float32) for x in (a, b, fused))
    largest = np.maximum(luma_a, luma_b)
    sources["a"].append(luma_a)
    sources["b"].append(luma_b)
    results["fused"].append(luma_fused)
    results["max"].append(largest)
    results["mean"].append(np.round((luma_a + luma_b) / 2))
    difference = np.clip(128 + luma_fused - largest, 0, 255).astype(np.uint8)
    rows.append([a, b, fused, difference])
    titles.append(pair_name.split("_")[0].upper())

  columns = ["A: MRI", "B", "fused", "fused - max(A, B)"]
  images.write_image(folder / "demo.png", panel(rows, column_titles=columns, row_titles=titles))
  a, b = np.stack(sources["a"]), np.stack(sources["b"])
  table = {}
  for label, pictures in results.items():
    values = metrics.compute_metrics(a, b, np.stack(pictures))
    table[label] = {metric: float(np.mean(value)) for metric, value in values.items()}
  print(format_table(table))
  print(f"pictures: {folder / 'demo.png'}, {folder / 'fused'}")
