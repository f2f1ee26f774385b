"""Several noise draws, and slices of a volume, with a real model of random weights."""

import nibabel
import numpy as np
import pytest
import tiny

from dmfnet_jax.cli import main
from dmfnet_jax.inference.model import Model


@pytest.fixture(scope="module")
def tiny_model() -> Model:
  """A DM-FNet of two levels with random weights."""
  return Model(*tiny.model())


def _pictures(count, height=12, width=10):
  rng = np.random.default_rng(0)
  return rng.integers(1, 256, (2, count, height, width), np.uint8)


def test_more_draws_contain_the_fewer(tiny_model):
  """Draw k has the same noise however many there are: means and deviations follow from it."""
  a, b = _pictures(1)[:, 0] / 127.5 - 1
  means, deviations = {}, {}
  for samples in (1, 2, 4):
    means[samples], deviations[samples] = tiny_model.fuse(a, b, names="x", samples=samples)
  np.testing.assert_allclose(means[1], tiny_model.fuse(a, b, names="x"), atol=1e-6)
  assert not deviations[1].any()
  # Of two draws the deviation is half their distance, so both can be told from it.
  second = 2 * means[2] - means[1]
  np.testing.assert_allclose(np.abs(second - means[1]) / 2 * 127.5, deviations[2], atol=1e-3)
  assert deviations[4].max() > 0
  assert np.abs(means[4] - means[2]).max() > 1e-6  # the further draws are others


def test_a_volume_does_not_depend_on_the_batch(tiny_model, tmp_path, monkeypatch):
  """Only on the seed and the names: a slice is what `model.fuse` makes of it alone."""
  monkeypatch.setattr("dmfnet_jax.inference.model.load_model", lambda spec, **options: tiny_model)
  a, b = _pictures(5)
  for name, slices in (("a", a), ("b", b)):
    # Stored so that pictures are [z, y from the front, x from the right] as they stand.
    volume = slices[:, ::-1, ::-1].transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"{name}.nii")
  fused = {}
  for size in (1, 2):
    out = tmp_path / f"{size}.nii"
    arguments = [str(tmp_path / "a.nii"), str(tmp_path / "b.nii"), "-o", str(out), "--samples=2"]
    windows = ["--window-a=0,255", "--window-b=0,255"]
    assert main(["fuse", *arguments, *windows, "--batch-size", str(size)]) == 0
    fused[size] = np.asarray(nibabel.load(out).dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]
    std = nibabel.load(tmp_path / f"{size}_std.nii.gz").get_fdata()
    assert std.max() > 0
  # XLA may round differently from batch size to batch size.
  assert np.abs(fused[1].astype(int) - fused[2]).max() <= 1
  for i in range(5):
    alone, _ = tiny_model.fuse(a[i], b[i], names=f"a/axial/{i}", samples=2)
    np.testing.assert_array_equal(fused[1][i], alone)
  assert np.abs(fused[1].astype(int) - _other_seed(tiny_model, a, b)).max() > 0


def _other_seed(model, a, b):
  names = [f"a/axial/{i}" for i in range(len(a))]
  return model.fuse(a, b, names=names, seed=1)
