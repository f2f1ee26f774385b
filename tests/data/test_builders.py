"""The datasets: found, paired, divided by case, written once and read without TensorFlow."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmfnet_jax import cli
from dmfnet_jax.data import builders, pipeline
from dmfnet_jax.data.builders import harvard_mmif, infrared_visible, paired_folder
from dmfnet_jax.data.datasets import DATASETS
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.familiar import Familiarity
from dmfnet_jax.fusing.match import Pair

ROOT = Path(__file__).resolve().parents[2]


def write_picture(path: Path, seed: int = 0, colour: bool = False, size=(18, 16)):
  path.parent.mkdir(parents=True, exist_ok=True)
  shape = (*size, 3) if colour else size
  pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  Image.fromarray(pixels).save(path)
  return pixels


def write_harvard(root: Path, places: dict[str, list[str]], mri="mri", other="other"):
  for folder, stems in places.items():
    for seed, stem in enumerate(stems):
      write_picture(root / folder / mri / f"{stem}.png", seed)
      write_picture(root / folder / other / f"{stem}.png", seed + 100, "ct" not in folder.lower())


def divide(pairs):
  divided: dict[str, list[str]] = {}
  for pair in pairs:
    divided.setdefault(pair.split, []).append(pair.name)
  return divided


def test_a_divided_copy_is_taken_as_it_is_divided(tmp_path):
  places = {
    "some/level/train/ct": ["16003", "28006"],
    "some/level/train/spect": ["28006"],
    "some/level/val/ct": ["2004"],
    "some/level/reference/ct": ["16005"],
  }
  write_harvard(tmp_path, places)
  pairs = harvard_mmif.find_pairs(tmp_path)
  assert divide(pairs) == {
    "train": ["ct_16003", "ct_28006", "spect_28006"],
    "validation": ["ct_2004"],
    "test": ["ct_16005"],
  }
  assert harvard_mmif.shared_cases(pairs) == {}


def test_a_patient_in_two_splits_is_noticed(tmp_path):
  write_harvard(tmp_path, {"train/pet": ["25098"], "train/spect": ["25009"], "val/pet": ["25099"]})
  assert harvard_mmif.shared_cases(harvard_mmif.find_pairs(tmp_path)) == {
    25: ["train (PET, SPECT)", "validation (PET)"]
  }


def test_the_public_layout_is_divided_by_the_lists_of_cases(tmp_path):
  write_harvard(tmp_path, {"CT-MRI": ["2006", "16003", "16005", "20004", "21004"]}, "MRI", "CT")
  write_harvard(tmp_path, {"PET-MRI": ["25015", "25033", "30028"]}, "MRI", "PET")
  # Some copies add a division by slice: not ours, and not twice the same pair.
  write_harvard(tmp_path, {"Mine/CT-MRI/train": ["2006"]}, "MRI", "CT")
  write_harvard(tmp_path, {"Mine/SPECT-MRI/test": ["3008", "9008", "21010"]}, "MRI", "SPECT")
  pairs = harvard_mmif.find_pairs(tmp_path)
  assert divide(pairs) == {
    "train": ["ct_20004", "pet_30028", "spect_3008"],
    "validation": ["ct_2006", "ct_21004", "pet_25015", "spect_21010"],
    "test": ["ct_16005", "pet_25033"],
    "cddfuse_test": ["ct_16003", "ct_16005", "spect_9008"],
  }
  assert harvard_mmif.shared_cases(pairs) == {}
  (case_2,) = (pair for pair in pairs if pair.name == "ct_2006")
  assert case_2.a == tmp_path / "CT-MRI" / "MRI" / "2006.png"
  assert case_2.b == tmp_path / "CT-MRI" / "CT" / "2006.png"


def test_the_atlas_pairs_are_counted(shared_dir):
  pairs = harvard_mmif.find_pairs(shared_dir / "data" / "harvard")
  assert {split: len(names) for split, names in divide(pairs).items()} == {
    "train": 578,
    "validation": 48,
    "test": 12,
  }
  assert {pair.case for pair in pairs if pair.split == "validation"} == {2, 21, 25}
  tests = {pair.stem for pair in pairs if pair.split == "test"}
  assert tests == frozenset.union(*harvard_mmif.TEST_STEMS.values())
  # Case 25 is in both, as the copy was divided: the builder says so.
  assert list(harvard_mmif.shared_cases(pairs)) == [25]


@pytest.mark.parametrize(
  ("prepare", "message"),
  [
    (lambda root: None, "no pairs under"),
    (lambda root: write_picture(root / "CT-MRI/CT/2006.png"), "no pairs under"),
    (
      lambda root: (
        write_harvard(root, {"CT-MRI": ["2006"]}, "MRI", "CT"),
        write_picture(root / "CT-MRI/MRI/2007.png"),
      ),
      r"MRI.2007\.png has no partner",
    ),
    (
      lambda root: write_harvard(root, {"CT-MRI": ["brain"]}, "MRI", "CT"),
      r"brain\.png: the name must be a case number",
    ),
  ],
)
def test_an_unusable_folder_is_named(tmp_path, prepare, message):
  prepare(tmp_path)
  with pytest.raises(UserError, match=message) as caught:
    harvard_mmif.find_pairs(tmp_path)
  assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A small harvard_mmif: (data_dir, manual_dir)."""
  root = tmp_path_factory.mktemp("harvard")
  write_harvard(
    root / "manual",
    {"train/ct": [f"16{i:03}" for i in range(5)], "train/pet": ["30028"], "val/ct": ["2004"]},
  )
  counts = builders.prepare("harvard_mmif", root / "data", root / "manual")
  assert counts == {"train": 6, "validation": 1}
  return root / "data", root / "manual"


def test_what_is_read_is_what_was_there(prepared):
  data_dir, manual_dir = prepared
  source = builders.open_source("harvard_mmif", data_dir, "train")
  examples = {example["name"].decode(): example for example in source}
  assert sorted(examples) == [*(f"ct_16{i:03}" for i in range(5)), "pet_30028"]
  pet = examples["pet_30028"]
  mri, other = (
    np.asarray(Image.open(manual_dir / "train/pet" / kind / "30028.png"))
    for kind in ("mri", "other")
  )
  np.testing.assert_array_equal(pet["a"], mri[..., None])
  np.testing.assert_array_equal(pet["b"], other)
  assert pet["modality"] == b"PET"
  ct = examples["ct_16003"]
  grey = np.asarray(Image.open(manual_dir / "train/ct/other/16003.png"))
  np.testing.assert_array_equal(ct["b"], np.repeat(grey[..., None], 3, axis=-1))
  assert ct["a"].dtype == ct["b"].dtype == np.uint8
  assert len(builders.open_source("harvard_mmif", data_dir, "train[:50%]")) == 3


def test_a_prepared_dataset_is_left_alone(prepared, capsys):
  data_dir, manual_dir = prepared
  before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
  for folder in ((), (manual_dir,)):
    assert builders.prepare("harvard_mmif", data_dir, *folder) == {"train": 6, "validation": 1}
    printed = capsys.readouterr()
    assert "prepared already" in printed.out
    assert "train: 6 examples" in printed.out
    assert not printed.err
  assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before


def test_pictures_that_came_since_are_told(prepared, tmp_path, capsys):
  data_dir, manual_dir = prepared
  shutil.copytree(manual_dir, tmp_path / "manual")
  for kind in ("mri", "other"):
    write_picture(tmp_path / "manual" / "train/ct" / kind / "16900.png")
  (tmp_path / "manual" / "val/ct/mri/2004.png").unlink()
  write_picture(tmp_path / "manual" / "train/pet/mri/30028.png", size=(20, 20))
  builders.prepare("harvard_mmif", data_dir, tmp_path / "manual")
  told = capsys.readouterr().err
  assert "2 added (train/ct/mri/16900.png, train/ct/other/16900.png)" in told
  assert "1 gone (val/ct/mri/2004.png), 1 changed (train/pet/mri/30028.png)" in told


def test_the_newest_version_is_opened(prepared, tmp_path):
  data_dir, _ = prepared
  for version in ("2.0.0", "2.9.0", "2.10.0"):
    shutil.copytree(data_dir / "harvard_mmif" / "2.0.0", tmp_path / "harvard_mmif" / version)
    info = tmp_path / "harvard_mmif" / version / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"version": version}))
  (tmp_path / "harvard_mmif" / "3.0.0").mkdir()  # nothing in it: not a prepared dataset
  source = builders.open_source("harvard_mmif", tmp_path, "validation")
  assert source.name == "harvard_mmif/2.10.0 validation"


def test_training_batches_come_without_tensorflow(prepared):
  data_dir, _ = prepared
  script = f"""
    import sys

    sys.modules["tensorflow"] = None
    from dmfnet_jax.data import builders, pipeline

    if __name__ == "__main__":  # worker processes load this file, too
      source = builders.open_source("harvard_mmif", {str(data_dir)!r}, "train")
      for workers in (0, 1):
        batches = pipeline.make_train_dataset(
          source, crop_size=16, batch_size=6, seed=0, num_workers=workers)
        assert sorted(next(batches)["record"]) == [0, 1, 2, 3, 4, 5]
        batches.close()
      assert len(list(pipeline.make_eval_batches(source, batch_size=4))) == 2
      assert batches.get_state()["dataset"] == "harvard_mmif/2.0.0 train"
      assert sys.modules["tensorflow"] is None
  """
  file = data_dir.parent / "script.py"
  file.write_text(textwrap.dedent(script))
  run = subprocess.run(
    [sys.executable, str(file)],
    env={"PYTHONPATH": str(ROOT), "PATH": ""},
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr


def test_an_interrupted_preparation_leaves_nothing_prepared(prepared, tmp_path, monkeypatch):
  _, manual_dir = prepared
  read_pair = builders.read_pair
  calls = []

  def interrupted(*paths):
    calls.append(paths)
    if len(calls) == 4:
      raise KeyboardInterrupt
    return read_pair(*paths)

  monkeypatch.setattr(builders, "read_pair", interrupted)
  with pytest.raises(KeyboardInterrupt):
    builders.prepare("harvard_mmif", tmp_path, manual_dir)
  with pytest.raises(UserError, match="no prepared dataset"):
    builders.open_source("harvard_mmif", tmp_path)
  monkeypatch.undo()
  assert builders.prepare("harvard_mmif", tmp_path, manual_dir)["train"] == 6
  assert len(builders.open_source("harvard_mmif", tmp_path)) == 6


def test_mistakes_when_opening_are_named(prepared, tmp_path):
  data_dir, _ = prepared
  with pytest.raises(
    UserError, match="unknown dataset 'harvard'; known ones: derm7pt, harvard_mmif"
  ):
    builders.open_source("harvard", data_dir)
  with pytest.raises(
    UserError, match=f"dmfnet data prepare harvard_mmif --data-dir {tmp_path} --manual-dir"
  ):
    builders.open_source("harvard_mmif", tmp_path)
  with pytest.raises(UserError, match=r"no split 'test' in .*2\.0\.0; it has train, validation"):
    builders.open_source("harvard_mmif", data_dir, "test")


def test_mistakes_when_preparing_are_named(tmp_path, monkeypatch):
  with pytest.raises(UserError, match="unknown dataset 'nothing'"):
    builders.prepare("nothing", tmp_path)
  with pytest.raises(UserError, match=r"no such folder: .*missing"):
    builders.prepare("paired_folder", tmp_path, tmp_path / "missing")
  with pytest.raises(UserError, match="paired_folder needs --manual-dir FOLDER"):
    builders.prepare("paired_folder", tmp_path)
  with pytest.raises(UserError, match="paired_folder needs both a_dir and b_dir"):
    builders.prepare("paired_folder", tmp_path, a_dir=tmp_path)
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  with pytest.raises(UserError, match=r"needs TensorFlow .*: pip install 'dmfnet_jax\[data\]'$"):
    builders.prepare("paired_folder", tmp_path, tmp_path)


def test_broken_pictures_are_named_and_nothing_is_left(tmp_path):
  for stem, seed in (("one", 0), ("two", 1)):
    write_picture(tmp_path / "a" / f"{stem}.png", seed)
    write_picture(tmp_path / "b" / f"{stem}.png", seed, colour=True)
  folders = {"a_dir": tmp_path / "a", "b_dir": tmp_path / "b"}

  broken = tmp_path / "b" / "two.png"
  whole = broken.read_bytes()
  broken.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r"two\.png"):
    builders.prepare("paired_folder", tmp_path / "data", **folders)

  write_picture(broken, size=(9, 16))
  with pytest.raises(UserError, match=r"is 16 x 18 but .*two\.png is 16 x 9"):
    builders.prepare("paired_folder", tmp_path / "data", **folders)

  broken.unlink()
  with pytest.raises(UserError, match=r"a.two\.png has no partner"):
    builders.prepare("paired_folder", tmp_path / "data", **folders)
  with pytest.raises(UserError, match="no prepared dataset"):
    builders.open_source("paired_folder", tmp_path / "data")


def test_two_folders_are_paired_and_divided_by_hash(tmp_path):
  pixels = {}
  for seed in range(30):
    pixels[f"{seed}"] = write_picture(tmp_path / "a" / f"{seed}.png", seed)
    write_picture(tmp_path / "b" / f"{seed}.bmp", seed, colour=True)
  counts = builders.prepare("paired_folder", tmp_path / "data", tmp_path)
  assert sum(counts.values()) == 30
  assert 0 < counts["validation"] < 10
  source = builders.open_source("paired_folder", tmp_path / "data", "train")
  for example in source:
    np.testing.assert_array_equal(example["a"][..., 0], pixels[example["name"].decode()])
    assert example["modality"] == b"other"


def test_further_folders_are_further_fields(tmp_path, capsys):
  """Where they are complete; a name that a batch has for something else is none."""
  for split, stems in (("train", "pq"), ("validation", "r")):
    for stem in stems:
      for folder in ("a", "b", "saliency", "mask"):
        write_picture(tmp_path / split / folder / f"{stem}.png", ord(stem) + len(folder))
  write_picture(tmp_path / "train" / "drafts" / "p.png")
  builders.prepare("paired_folder", tmp_path / "data", tmp_path)
  assert "pictures besides a and b: saliency" in capsys.readouterr().out
  source = builders.open_source("paired_folder", tmp_path / "data", "train")
  for example in source:
    assert sorted(example) == ["a", "b", "modality", "name", "saliency"]
    expected = builders.read_image(
      tmp_path / "train" / "saliency" / f"{example['name'].decode()}.png"
    )
    np.testing.assert_array_equal(example["saliency"], builders.three_channels(expected))
  (batch,) = pipeline.make_eval_batches(
    source, batch_size=2, crop_size=16, fields={"a": 1, "saliency": 1, "b": 3}
  )
  assert {name: batch[name].shape[-1] for name in ("a", "saliency", "b")} == {
    "a": 1,
    "saliency": 1,
    "b": 3,
  }
  with pytest.raises(
    UserError, match=r"paired_folder/1.0.0 train has no field 'fused', .* it has a, "
  ):
    pipeline.make_train_dataset(source, crop_size=16, batch_size=1, seed=0, fields={"fused": 1})


def test_the_hash_is_stable_and_leaves_neither_split_empty():
  pairs = {f"case{i}": (Path("a"), Path("b")) for i in range(1000)}
  divided = paired_folder.divide_by_hash(pairs)
  assert sorted(divided["train"] | divided["validation"]) == sorted(pairs)
  assert 70 < len(divided["validation"]) < 130
  # Pinned: a change would move patients between splits of a dataset that is prepared again.
  assert list(divided["validation"])[:3] == ["case8", "case10", "case25"]
  # More pictures do not move those that were there.
  some = paired_folder.divide_by_hash(dict(list(pairs.items())[:500]))
  assert some["validation"].items() <= divided["validation"].items()
  for count in (1, 2, 3):
    few = paired_folder.divide_by_hash(dict(list(pairs.items())[:count]))
    assert [len(few["train"]), len(few["validation"])] == [max(1, count - 1), int(count > 1)]


def test_folders_that_are_divided_stay_so(tmp_path):
  for split, stems in (("train", "ab"), ("validation", "cd"), ("test", "e")):
    for stem in stems:
      write_picture(tmp_path / split / "a" / f"{stem}.png")
      write_picture(tmp_path / split / "b" / f"{stem}.png")
  pairs = paired_folder.find_pairs(tmp_path)
  assert {split: list(members) for split, members in pairs.items()} == {
    "train": ["a", "b"],
    "validation": ["c", "d"],
    "test": ["e"],
  }
  with pytest.raises(UserError, match="no such folder"):
    paired_folder.find_pairs(tmp_path / "train" / "a")


def write_photographs(root: Path, places: dict[str, list[str]]):
  """Pairs of an infrared PNG and a visible JPEG; a place is "INFRARED VISIBLE"."""
  for folders, stems in places.items():
    infrared, visible = folders.split()
    for seed, stem in enumerate(stems):
      write_picture(root / infrared / f"{stem}.png", seed, size=(4, 4))
      write_picture(root / visible / f"{stem}.jpg", seed, colour=True, size=(4, 4))


TEN = [f"{i:02}" for i in range(10)]  # the hash picks 03


@pytest.mark.parametrize(
  ("places", "lengths"),
  [
    # RoadScene, M3FD and TNO are not divided.
    ({"cropinfrared crop_LR_visible": TEN}, {"train": 9, "validation": 1}),
    ({"Ir Vis": TEN}, {"train": 9, "validation": 1}),
    ({"IR VI": TEN}, {"train": 9, "validation": 1}),
    # MSRS and LLVIP have no validation: it is taken from train.
    (
      {"train/ir train/vi": TEN, "test/ir test/vi": ["a"]},
      {"train": 9, "validation": 1, "test": 1},
    ),
    (
      {"infrared/train visible/train": TEN, "infrared/test visible/test": ["a", "b"]},
      {"train": 9, "validation": 1, "test": 2},
    ),
    (
      {"train/infrared train/visible": ["a", "b"], "val/infrared val/visible": ["c"]},
      {"train": 2, "validation": 1},
    ),
    ({"test/ir test/vi": ["a"]}, {"test": 1}),
  ],
)
def test_the_layouts_of_infrared_sets_are_understood(tmp_path, places, lengths):
  write_photographs(tmp_path, places)
  write_picture(tmp_path / "train/Segmentation_labels/x.png")
  write_picture(tmp_path / "crop_HR_visible/x.png")
  divided = infrared_visible.divide(infrared_visible.find_pairs(tmp_path))
  assert {split: len(pairs) for split, pairs in divided.items()} == lengths
  stems = [stem for pairs in divided.values() for stem in pairs]
  assert sorted(stems) == sorted(stem for listed in places.values() for stem in listed)
  for pairs in divided.values():
    assert {(a.suffix, b.suffix) for a, b in pairs.values()} == {(".png", ".jpg")}
  if TEN in places.values():
    assert list(divided["validation"]) == ["03"]


@pytest.mark.parametrize(
  ("prepare", "message"),
  [
    (lambda root: write_picture(root / "a/1.png"), "no pairs under .*; expected infrared/ and"),
    (lambda root: write_picture(root / "ir/1.png"), r"ir has no partner beside it: .* visible or"),
    (
      lambda root: write_photographs(root, {"ir/train vi/train": "a", "ir/test vi/old": "b"}),
      r"vi.test: no such folder",
    ),
    (lambda root: write_photographs(root, {"ir vi": "a", "ir vis": "a"}), "has vi/ and vis/: keep"),
    (
      lambda root: write_photographs(root, {"ir vi": "a", "train/ir train/vi": "b"}),
      r"pictures in .*ir and in .*train.ir: divide all of them or none",
    ),
    (
      lambda root: write_photographs(
        root, {"val/ir val/vi": "a", "validation/ir validation/vi": "b"}
      ),
      r"pictures in .*val.ir and in .*validation.ir: divide",
    ),
  ],
)
def test_an_infrared_folder_that_is_not_understood_is_named(tmp_path, prepare, message):
  prepare(tmp_path)
  with pytest.raises(UserError, match=message) as caught:
    infrared_visible.find_pairs(tmp_path)
  assert "\n" not in str(caught.value)


def test_infrared_and_visible_pictures_are_prepared(tmp_path, capsys):
  write_photographs(tmp_path / "MSRS", {"train/ir train/vi": TEN, "test/ir test/vi": ["a"]})
  data = ("data", "prepare", "infrared_visible", "--data-dir", str(tmp_path / "data"))
  assert cli.main([*data, "--manual-dir", str(tmp_path / "MSRS")]) == 0
  assert "note: every tenth file or so is for validation" in capsys.readouterr().out
  (example,) = builders.open_source("infrared_visible", tmp_path / "data", "test")
  infrared, visible = tmp_path / "MSRS/test/ir/a.png", tmp_path / "MSRS/test/vi/a.jpg"
  np.testing.assert_array_equal(example["a"][..., 0], builders.read_image(infrared))
  np.testing.assert_array_equal(example["b"], builders.read_image(visible))
  assert example["modality"] == b"infrared-visible"
  # A model that was trained on it knows such pairs.
  familiar = Familiarity("mine", DATASETS["infrared_visible"].kinds)
  familiar.check_names([Pair("a", infrared, visible, None)])
  assert not capsys.readouterr().err
  familiar.check_names([Pair("a", visible, infrared, None)])
  assert "A is visible and B is infrared" in capsys.readouterr().err
