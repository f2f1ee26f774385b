"""`dmfnet demo`: from nothing to fused pictures, with no data to bring."""

from pathlib import Path

import numpy as np

from dmfnet_jax import DEFAULT_MODEL, metrics
from dmfnet_jax.data.builders import mni_template
from dmfnet_jax.fusing.evaluate import format_table
from dmfnet_jax.fusing.measure import BASELINES, baselines
from dmfnet_jax.inference.model import load_model
from dmfnet_jax.io import color, paths, pictures
from dmfnet_jax.io.panels import panel
from dmfnet_jax.plot import difference


def demo(out: str | Path) -> None:
  """Fuses simulated pairs of the ICBM152 brain with the released model and shows the result.

  Writes OUT/demo.png (a row a pair: A, B, fused, and fused minus the maximum of the sources) and
  one OUT/fused/NAME.png a pair, and prints the metrics beside those of what needs no network, see
  `fusing.measure.BASELINES`. OUT is made where needed.

  Raises:
    UserError: the folder cannot be written.
  """
  folder = paths.as_path(out)
  paths.make_folder(folder / "fused")
  model = load_model(DEFAULT_MODEL)
  print(f"model: {DEFAULT_MODEL}")

  rows, titles, lumas = [], [], []
  for a, b, pair_name in mni_template.demo_pairs():
    fused = model.fuse(a, b, names=pair_name)
    pictures.write_image(folder / "fused" / f"{pair_name}.png", fused)
    change = difference(a, b, fused)
    rows.append([a, b, fused, np.clip(128 + change, 0, 255).astype(np.uint8)])
    titles.append(pair_name.split("_")[0].upper())
    lumas.append({"a": a, "b": color.to_grey(b), "fused": color.to_grey(fused)} | baselines(a, b))

  columns = ["A: MRI", "B", "fused", "fused - max(A, B)"]
  pictures.write_image(folder / "demo.png", panel(rows, column_titles=columns, row_titles=titles))
  a, b, *results = (np.stack([luma[name] for luma in lumas]) for name in lumas[0])
  table = {}
  for label, result in zip(("fused", *BASELINES), results, strict=True):
    values = metrics.compute_metrics(a, b, result)
    table[label] = {metric: float(np.mean(value)) for metric, value in values.items()}
  print(format_table(table))
  print(f"pictures: {folder / 'demo.png'}, {folder / 'fused'}")
