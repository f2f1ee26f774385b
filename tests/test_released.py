"""The released models: what is in the package, and that it fuses as its card says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dmfnet_jax import DEFAULT_MODEL, metrics
from dmfnet_jax.data.builders import mni_template
from dmfnet_jax.inference.model import load_model
from dmfnet_jax.io import color
from dmfnet_jax.io.pictures import read_image
from dmfnet_jax.training.config import parse_config
from dmfnet_jax.weights import find

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "dmfnet_jax" / "weights"
NAMES = find.released_names()
# The metrics by which the cards compare the models with the authors' pictures, and in how many of
# them they are no worse.
COMPARED = ("EN", "MI", "VIFF", "Qabf", "SSIM", "PSNR", "CC", "SCD", "SD", "SF", "AG")
NO_WORSE = {
  "small": {"ct": 8, "pet": 6, "spect": 7},
  "small-v2": {"ct": 7, "pet": 9, "spect": 9},
  "fast": {"ct": 7, "pet": 8, "spect": 7},
  "waveae-small": {"ct": 7, "pet": 9, "spect": 9},
}


@pytest.fixture(scope="module", params=NO_WORSE)
def small(request):
  model = load_model(request.param)
  return request.param, model


def test_small_is_released_and_all_are_small():
  assert {"small", "small-fast", DEFAULT_MODEL} <= set(NAMES)
  assert sum((FOLDER / f"{name}.safetensors").stat().st_size for name in NAMES) < 16e6


@pytest.mark.parametrize("name", NAMES)
def test_every_model_says_what_it_was_trained_on(name):
  assert find.trained_on(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_has_a_card(name):
  """With the commands that made it, and whose pictures are there."""
  text = (FOLDER / f"{name}.md").read_text()
  configs = re.findall(r"--config (configs/\S+\.py\S*)", text)
  assert len(configs) >= len(load_model(name).method.stages)
  for config in configs:
    parse_config(["--config", config])
  for link in re.findall(r"!\[.*?\]\((.+?)\)", text):
    assert (FOLDER / link).exists(), link


def test_small_fuses_what_it_never_saw(small):
  """Simulated pairs of another template: no tint, black stays black, edges of both are kept."""
  for a, b, name in mni_template.demo_pairs():
    fused = small[1].fuse(a, b, names=name)
    luma_a, luma_b, luma = (color.to_grey(x).astype(np.float32) for x in (a, b, fused))
    largest = np.maximum(luma_a, luma_b)
    assert luma[largest == 0].mean() < 1, name
    assert 0.5 < np.abs(luma - largest).mean() < 12, name  # near the maximum, not the maximum
    kept = metrics.qabf(luma_a[None], luma_b[None], luma[None])[0]
    assert kept > metrics.qabf(luma_a[None], luma_b[None], ((luma_a + luma_b) / 2)[None])[0], name
    if b.ndim == 3:
      grey = np.ptp(b.astype(int), axis=-1) == 0
      assert np.ptp(fused.astype(int), axis=-1)[grey].max(initial=0) <= 1, name


@pytest.mark.parametrize("modality", ["ct", "pet", "spect"])
def test_small_is_as_good_as_its_card_says(small, shared_dir, modality):
  """On the pairs of which the authors published pictures."""
  folder = shared_dir / "data/harvard/reference"
  published = json.loads((folder / "metrics.json").read_text())
  paths = sorted((folder / modality / "mri").glob("*.png"))
  a = np.stack([color.to_grey(read_image(path)) for path in paths])
  b = np.stack([read_image(folder / modality / "other" / path.name) for path in paths])
  name, model = small
  fused = model.fuse(a, b, names=[path.stem for path in paths])
  b, fused = (np.stack([color.to_grey(image) for image in images]) for images in (b, fused))
  ours = {k: float(np.mean(v)) for k, v in metrics.compute_metrics(a, b, fused).items()}
  rows = [published[f"{modality}/{path.stem}"] for path in paths]
  theirs = {name: np.mean([row[name] for row in rows]) for name in COMPARED}
  no_worse = {name for name in COMPARED if ours[name] >= theirs[name]}
  assert no_worse >= {"Qabf", "VIFF"}
  assert len(no_worse) >= NO_WORSE[name][modality]
  assert ours["SSIM"] >= 0.99 * theirs["SSIM"]
  if name != DEFAULT_MODEL:
    return
  theirs_read = [read_image(folder / modality / "fused" / f"{path.stem}.jpg") for path in paths]
  shown = np.stack([color.to_grey(image) for image in theirs_read])
  seen, theirs_seen = (metrics.compute_reader_metrics(a, b, f) for f in (fused, shown))
  for measure in ("lost_brightness", "invention"):
    assert np.mean(seen[measure]) <= np.mean(theirs_seen[measure]), measure
