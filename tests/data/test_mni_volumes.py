"""Volumes: the simulated ones, and how the pipeline cuts them."""

import dataclasses

import numpy as np
import pytest

from dmfnet_jax.data import pipeline
from dmfnet_jax.data.builders import mni_template, mni_volumes, simulate
from dmfnet_jax.errors import UserError

# A small box in the middle of the brain, and one that reaches out of it.
MIDDLE = ((90, 114), (100, 124), (70, 94))


def test_a_study_is_the_templates_and_the_same_again():
  mri, pet = mni_volumes.mni_volume("one", MIDDLE)
  assert mri.shape == pet.shape == (24, 24, 24)
  assert mri.dtype == pet.dtype == np.uint8
  again = mni_volumes.mni_volume("one", MIDDLE)
  other = mni_volumes.mni_volume("other", MIDDLE)
  for first, second, third in zip((mri, pet), again, other, strict=True):
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()
  t1, _, _ = mni_template.t1_volume()
  window = tuple(slice(*ends) for ends in MIDDLE)
  assert np.corrcoef(t1[window].ravel(), mri.ravel())[0, 1] > 0.95


def test_noise_of_a_uniform_volume_is_that_of_the_filter():
  """Poisson noise through a Gaussian of deviation s: 1 / (2 sqrt(pi) s) along each axis."""
  rng = np.random.default_rng(0)
  tissue = np.zeros((3, 40, 40, 40), np.float32)
  tissue[0] = 1
  tracer = simulate.PET
  far = np.full((3, 40, 40, 40), 500.0)
  plain = dataclasses.replace(tracer, variation=0.0)
  image = simulate.tracer_volume(plain, tissue, far, rng)
  sigma = tracer.filter_fwhm / simulate.FWHM_PER_SIGMA
  expected = (1 / (2 * np.sqrt(np.pi) * sigma)) ** 1.5 / np.sqrt(tracer.counts)
  assert image.mean() == pytest.approx(1, rel=0.01)
  assert image[8:-8, 8:-8, 8:-8].std() == pytest.approx(expected, rel=0.15)


def test_the_splits_share_no_voxel_and_no_point_spread():
  (_, end), (begin, _) = mni_volumes.FRONT["train"], mni_volumes.FRONT["validation"]
  assert begin - end > simulate.PET.fwhm
  t1, _, _ = mni_template.t1_volume()
  brain = np.argwhere(t1 > 0)
  for axis, (first, last) in ((0, mni_volumes.RIGHT), (2, mni_volumes.UP)):
    assert first <= brain[:, axis].min()
    assert brain[:, axis].max() < last


def volumes(count=3, size=(20, 24, 17)):
  """Voxels that say where they lie."""
  grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
  code = (grid @ np.array([10, 3, 1])).astype(np.uint8)[..., None]
  return [{"a": code, "b": code, "name": f"{i}"} for i in range(count)]


def test_volumes_are_cut_and_flipped_along_all_axes():
  batches = pipeline.make_train_dataset(volumes(), crop_size=16, batch_size=2, seed=0, space=3)
  directions = set()
  for _ in range(20):
    batch = next(batches)
    assert batch["a"].shape == (2, 16, 16, 16, 1)
    np.testing.assert_array_equal(batch["a"], batch["b"])
    for example in batch["a"][..., 0]:
      code = np.rint((example + 1) * 127.5).astype(np.uint8)
      steps = [np.diff(code, axis=axis).astype(np.int8) for axis in range(3)]
      assert [len(np.unique(step)) for step in steps] == [1, 1, 1]
      directions.add(tuple(int(step.flat[0]) for step in steps))
  batches.close()
  assert directions == {(x, y, z) for x in (10, -10) for y in (3, -3) for z in (1, -1)}


def test_the_middle_of_a_volume_is_for_evaluation():
  (batch,) = pipeline.make_eval_batches(volumes(1), batch_size=1, crop_size=16, space=3)
  code = volumes(1)[0]["a"][2:18, 4:20, 0:16] / np.float32(127.5) - 1
  np.testing.assert_allclose(batch["a"][0], code, atol=1e-6)


def test_pictures_for_a_method_of_volumes_are_refused_and_the_reverse():
  pictures = [{"a": np.zeros((16, 16, 1), np.uint8), "b": np.zeros((16, 16, 3), np.uint8)}]
  for source, space, message in (
    (pictures, 3, "has pictures, and this method is for volumes"),
    (volumes(1), 2, "has volumes, and this method is for pictures"),
  ):
    with pytest.raises(UserError, match=message):
      pipeline.make_train_dataset(source, crop_size=16, batch_size=1, seed=0, space=space)


def test_a_prepared_dataset_holds_volumes(tmp_path, monkeypatch):
  pytest.importorskip("tensorflow")
  from dmfnet_jax.data import builders

  monkeypatch.setattr(mni_volumes, "RIGHT", (90, 106))
  monkeypatch.setattr(mni_volumes, "UP", (70, 86))
  monkeypatch.setattr(mni_volumes, "FRONT", {"train": (100, 117), "validation": (150, 166)})
  counts = builders.prepare("mni_volumes", tmp_path)
  assert counts == mni_volumes.STUDIES
  source = builders.open_source("mni_volumes", tmp_path)
  example = source[0]
  assert example["a"].shape == example["b"].shape == (16, 17, 16, 1)
  assert example["a"].dtype == np.uint8
  mri, pet = mni_volumes.mni_volume(example["name"].decode(), ((90, 106), (100, 117), (70, 86)))
  np.testing.assert_array_equal(example["a"][..., 0], mri)
  np.testing.assert_array_equal(example["b"][..., 0], pet)
