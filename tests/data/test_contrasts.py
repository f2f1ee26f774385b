"""Datasets of MR contrasts: found, cut, divided by subject."""

import nibabel
import numpy as np
import pytest

from dmfnet_jax.data import builders
from dmfnet_jax.data.examples import Renamed
from dmfnet_jax.errors import UserError
from dmfnet_jax.io.pictures import write_image
from dmfnet_jax.io.slice_names import subject_and_slice

pytest.importorskip("tensorflow_datasets")

from dmfnet_jax.data.builders import mni_contrasts, mni_template, mri_contrasts

NAMES = ("t1", "t1ce", "t2", "flair")


def picture(stem, contrast, size=(8, 9)):
  rng = np.random.default_rng([*stem.encode(), *contrast.encode()])
  return rng.integers(1, 256, size).astype(np.uint8)


def write(root, stems, contrasts=NAMES, size=(8, 9)):
  for contrast in contrasts:
    (root / contrast).mkdir(parents=True, exist_ok=True)
    for stem in stems:
      write_image(root / contrast / f"{stem}.png", picture(stem, contrast, size))


def write_volume(folder, name, data):
  folder.mkdir(parents=True, exist_ok=True)
  nibabel.save(nibabel.Nifti1Image(data, np.diag([-1.0, -1, 1, 1])), folder / f"{name}.nii.gz")


@pytest.mark.parametrize(
  ("stem", "expected"),
  [
    ("01030", ("01", "030")),
    ("BraTS18_CBICA_AAB_1_045", ("BraTS18_CBICA_AAB_1", "045")),
    ("sub-3 slice7", ("sub-3 slice", "7")),
    ("0123", ("0", "123")),
    ("phantom", ("phantom", "")),
    ("12", ("1", "2")),
  ],
)
def test_a_name_says_whose_slice_it_is(stem, expected):
  assert subject_and_slice(stem) == expected


def test_four_folders_are_prepared(tmp_path):
  pytest.importorskip("tensorflow", reason="preparing a dataset needs TensorFlow")
  write(tmp_path / "scans" / "train", ("01030", "01033", "02030"))
  write(tmp_path / "scans" / "val", ("03001",), size=(240, 240))
  counts = builders.prepare("mri_contrasts", tmp_path / "data", tmp_path / "scans")
  assert counts == {"train": 3, "validation": 1}
  source = builders.open_source("mri_contrasts", tmp_path / "data", "train")
  example = next(x for x in source if x["name"] == b"01033")
  for contrast in NAMES:
    np.testing.assert_array_equal(example[contrast][..., 0], picture("01033", contrast))
  # BraTS' slices are cut as the programs of this field cut them.
  (example,) = builders.open_source("mri_contrasts", tmp_path / "data", "validation")
  np.testing.assert_array_equal(
    example["t2"][..., 0], picture("03001", "t2", (240, 240))[40:200, 20:200]
  )
  renamed = Renamed(source, {"a": "t2", "target": "flair"})
  np.testing.assert_array_equal(renamed[1]["a"], source[1]["t2"])
  with pytest.raises(UserError, match=r"mri_contrasts/1.0.0 train has no field 'pd'"):
    Renamed(source, {"a": "pd"})


def test_subjects_are_not_divided(tmp_path):
  stems = [f"{subject:02d}{i:03d}" for subject in range(5) for i in range(4)]
  write(tmp_path, stems, ("t1", "t2", "flair"))
  found = mri_contrasts.find_subjects(tmp_path)
  assert sorted(found) == ["train", "validation"]
  assert not found["train"].keys() & found["validation"].keys()
  assert sum(len(scan.paths) for subjects in found.values() for scan in subjects.values()) == 20
  assert mri_contrasts.MriContrasts.find_fields(tmp_path) == ("t1", "t2", "flair")


def test_volumes_are_shown_as_the_commands_show_them(tmp_path):
  """Their axial slices, nose up, where every contrast shows something."""
  rng = np.random.default_rng(0)
  data = {name: rng.uniform(100, 900, (240, 240, 4)).astype(np.float32) for name in NAMES}
  data["t2"][..., 2] = 0
  newer = dict(zip(NAMES, ("t1n", "t1c", "t2w", "t2f"), strict=True))
  for subject, names in (
    ("A", {n: f"_{n}" for n in NAMES}),
    ("B", {n: f"-{newer[n]}" for n in NAMES}),
  ):
    for name in NAMES:
      write_volume(tmp_path / "HGG" / subject, f"{subject}{names[name]}", data[name])
  found = mri_contrasts.find_subjects(tmp_path)
  scans = {name: scan for subjects in found.values() for name, scan in subjects.items()}
  assert sorted(scans) == ["A", "B"]
  slices = dict(mri_contrasts.read_slices("B", scans["B"]))
  assert list(slices) == ["B_000", "B_001", "B_003"]
  made = slices["B_001"]["t1ce"][..., 0]
  # From an array whose axes run to the right's left and the back: 160 x 180 of it, seen from below.
  cut = data["t1ce"][40:200, 20:200, 1].T
  assert made.shape == cut.shape
  low, high = np.percentile(data["t1ce"], (0.5, 99.5))
  np.testing.assert_allclose(made, np.clip((cut - low) / (high - low), 0, 1) * 255, atol=1.5)


@pytest.mark.parametrize(
  ("prepare", "message"),
  [
    (lambda root: None, "no scans to train on under .*; expected t1/, t1ce/"),
    (lambda root: write(root, ("01001",), ("t1", "t2")), "has t1, t2 alone; expected three of"),
    (
      lambda root: (write(root, ("01001", "02001")), write(root, ("03001",), NAMES[:3])),
      "train 03 03001 has no flair, which others have",
    ),
    (
      lambda root: (write(root / "train", ("01001",)), write(root / "val", ("01002",))),
      "subject 01 is in train and in validation",
    ),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, prepare, message):
  prepare(tmp_path)
  with pytest.raises(UserError, match=message):
    mri_contrasts.find_subjects(tmp_path)


def test_contrasts_of_other_sizes_are_refused(tmp_path):
  write(tmp_path, ("01001",))
  write_image(tmp_path / "t2" / "01001.png", np.ones((4, 4), np.uint8))
  (scan,) = mri_contrasts.find_subjects(tmp_path)["train"].values()
  with pytest.raises(UserError, match=r"t2 is 4 x 4, .* contrasts must be registered"):
    list(mri_contrasts.read_slices("01", scan))


def test_the_templates_contrasts_are_ordered_as_in_a_scan():
  """Fluid is bright in T2 and dark in T1 and FLAIR; grey matter is brighter than white in FLAIR."""
  name, slices = mni_contrasts.mni_slices("axial", 96)
  assert name == "axial_096"
  grey, white, fluid = mni_template.tissue_slab("axial", 96, 0)[:, 0] > 0.95
  mean = {
    c: {k: x[m].mean() for k, m in (("grey", grey), ("white", white), ("fluid", fluid))}
    for c, x in slices.items()
  }
  assert mean["t2"]["fluid"] > mean["t2"]["grey"] > mean["t2"]["white"]
  assert mean["flair"]["grey"] > mean["flair"]["white"] > mean["flair"]["fluid"]
  assert mean["t1"]["white"] > mean["t1"]["grey"] > mean["t1"]["fluid"]
