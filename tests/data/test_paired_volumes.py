"""Volumes cut into slices: which pairs, which split, which slices, and what survives a stop."""

import json

import nibabel
import numpy as np
import pytest

from dmfnet_jax.data import builders
from dmfnet_jax.data.builders import paired_volumes
from dmfnet_jax.data.builders.paired_volumes import Settings, cut_pair, find_subjects
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.kinds import NIFTI
from dmfnet_jax.fusing.pairing import Naming

AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])  # the first axis leads left
SHAPE = (24, 20, 12)


def write(path, seed=0, affine=AFFINE):
  """A box of noise from 20 on, in slices 3 to 8 of twelve; returns its values."""
  data = np.zeros(SHAPE, np.float32)
  data[4:20, 5:15, 3:9] = np.random.default_rng(seed).integers(20, 200, (16, 10, 6))
  path.parent.mkdir(parents=True, exist_ok=True)
  nibabel.save(nibabel.Nifti1Image(data, affine), path)
  return data


def write_folders(root, names):
  for i, name in enumerate(names):
    for letter in "ab":
      write(root / letter / f"{name}.nii.gz", 2 * i + (letter == "b"))


def of_files(a, b):
  return (NIFTI, a), (NIFTI, b)


def test_slices_lie_as_pictures_and_empty_ones_are_left_out(tmp_path):
  a, b = tmp_path / "a.nii.gz", tmp_path / "pet.nii.gz"
  data, other = write(a), write(b, 1)
  cut = cut_pair("x", of_files(a, b), Settings(window_a=(0, 255), window_b=(0, 255)))
  np.testing.assert_array_equal(cut["index"], range(3, 9))
  assert str(cut["modality"]) == "PET"
  assert (cut["a"].dtype, cut["b"].dtype) == (np.uint8, np.uint8)
  assert cut["b"].shape == (6, SHAPE[1], SHAPE[0], 3)
  # Seen from below, as radiologists do: left on the right, the front on top.
  for i, index in enumerate(cut["index"]):
    np.testing.assert_array_equal(cut["a"][i], data[:, ::-1, index].T)
    np.testing.assert_array_equal(cut["b"][i, ..., 1], other[:, ::-1, index].T)
  coronal = cut_pair("x", of_files(a, b), Settings(axis="coronal"))
  np.testing.assert_array_equal(coronal["index"], range(5, 15))


def test_a_slice_must_show_something_in_both(tmp_path):
  a, b = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
  write(a)
  data = np.zeros(SHAPE, np.float32)
  data[:, :, 5] = 100
  # One pixel in fifty of 24 x 20 is 9.6: ten are enough, nine are not.
  data[0, :10, 6] = data[0, :9, 7] = 100
  nibabel.save(nibabel.Nifti1Image(data, AFFINE), b)
  windows = Settings(window_a=(0, 255), window_b=(0, 255))
  np.testing.assert_array_equal(cut_pair("x", of_files(a, b), windows)["index"], [5, 6])
  data[:] = 0
  data[0, 0, 0] = 100
  nibabel.save(nibabel.Nifti1Image(data, AFFINE), b)
  with pytest.raises(UserError, match="no axial slice shows something in both"):
    cut_pair("x", of_files(a, b), windows)


def test_other_grids_are_refused_or_resampled(tmp_path):
  a, b = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
  write(a)
  write(b, affine=np.diag([-2.0, 2.0, 4.0, 1.0]))
  with pytest.raises(UserError, match="different grids"):
    cut_pair("x", of_files(a, b), Settings())
  assert cut_pair("x", of_files(a, b), Settings(resample=True))["a"].shape[1:] == (20, 24)


def test_subjects_are_divided_whole(tmp_path):
  """Two sessions of a subject go together, whatever the hash says of their names."""
  for subject in range(1, 13):
    for session in (1, 2):
      start = tmp_path / f"sub-{subject:02d}" / f"ses-{session}"
      name = f"sub-{subject:02d}_ses-{session}"
      write(start / "anat" / f"{name}_T1w.nii.gz")
      write(start / "pet" / f"{name}_pet.nii.gz")
  divided = find_subjects(tmp_path)
  assert sum(map(len, divided.values())) == 24
  subjects = {split: {name[:6] for name in pairs} for split, pairs in divided.items()}
  assert subjects["train"].isdisjoint(subjects["validation"])
  assert all(len(pairs) == 2 * len(subjects[split]) for split, pairs in divided.items())
  (tmp_path / "train.txt").write_text("sub-01\nsub-03\n")
  (tmp_path / "validation.txt").write_text("sub-02\n")
  listed = find_subjects(tmp_path)
  assert {split: len(pairs) for split, pairs in listed.items()} == {"train": 4, "validation": 2}
  (tmp_path / "validation.txt").write_text("sub-03\n")
  with pytest.raises(UserError, match=r"sub-03 is in train and in validation"):
    find_subjects(tmp_path)
  (tmp_path / "validation.txt").write_text("sub-99\n")
  with pytest.raises(UserError, match=r"validation\.txt: there are no volumes of sub-99"):
    find_subjects(tmp_path)


def lay_out(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_the_layout_of_ixi(tmp_path):
  """Its archives hold IXI002-Guys-0828-T1.nii.gz and so on, one for each contrast."""
  subjects = "IXI002-Guys-0828", "IXI012-HH-1211"
  for letter, contrast in (("a", "T1"), ("b", "T2")):
    lay_out(tmp_path / letter, *(f"{subject}-{contrast}.nii.gz" for subject in subjects))
  with pytest.raises(UserError, match="add --option suffix_a=-T1 --option suffix_b=-T2"):
    find_subjects(tmp_path)
  divided = find_subjects(tmp_path, Naming("-T1", "-T2"))
  found = {name: b.name for pairs in divided.values() for name, (_, (_, b)) in pairs.items()}
  assert found == {subject: f"{subject}-T2.nii.gz" for subject in subjects}


def test_the_layout_of_adni_in_bids(tmp_path, capsys):
  """As converters write it: tracers and reconstructions are in the names, two tracers in one."""
  scans = [("002S0295", "M000"), ("002S0295", "M012"), ("011S0023", "M000")]
  for subject, session in scans:
    name = f"sub-ADNI{subject}_ses-{session}"
    folder = tmp_path / f"sub-ADNI{subject}" / f"ses-{session}"
    lay_out(folder / "anat", f"{name}_T1w.nii.gz", f"{name}_T1w.json")
    lay_out(folder / "pet", f"{name}_trc-18FFDG_rec-uniform_pet.nii.gz")
  names = [f"sub-ADNI{subject}_ses-{session}" for subject, session in scans]
  divided = find_subjects(tmp_path)
  assert sorted(name for pairs in divided.values() for name in pairs) == names
  assert "BIDS: A is *_T1w, B is *_pet; --option suffix_a and" in capsys.readouterr().err
  lay_out(folder / "pet", f"{name}_trc-18FAV45_rec-uniform_pet.nii.gz")
  with pytest.raises(UserError, match="sub-ADNI011S0023"):
    find_subjects(tmp_path)
  amyloid = Naming("_T1w", "_trc-18FAV45_rec-uniform_pet")
  ((one,),) = find_subjects(tmp_path, amyloid).values()
  assert one == names[-1]


def test_folders_and_lists_say_the_split(tmp_path):
  write_folders(tmp_path / "train", "pq")
  write_folders(tmp_path / "val", "r")
  divided = find_subjects(tmp_path)
  assert {split: sorted(pairs) for split, pairs in divided.items()} == {
    "train": ["p", "q"],
    "validation": ["r"],
  }
  listed = tmp_path / "listed"
  listed.mkdir()
  rows = [f"../train/a/{x}.nii.gz,../train/b/{x}.nii.gz,case{x}" for x in "pq"]
  (listed / "pairs.csv").write_text("\n".join(rows))
  assert sorted(name for pairs in find_subjects(listed).values() for name in pairs) == [
    "casep",
    "caseq",
  ]


def test_what_is_missing_is_named(tmp_path):
  with pytest.raises(UserError, match="no such folder"):
    find_subjects(tmp_path / "none")
  write(tmp_path / "a" / "x_T1w.nii.gz")
  with pytest.raises(UserError, match=r"b: no such folder"):
    find_subjects(tmp_path)
  write(tmp_path / "b" / "x_pet.nii.gz")
  with pytest.raises(UserError, match="add --option suffix_a=_T1w --option suffix_b=_pet"):
    find_subjects(tmp_path)
  assert list(find_subjects(tmp_path, Naming("_T1w", "_pet"))["train"]) == ["x"]
  with pytest.raises(UserError, match=r"no option 'plane'; it has axis"):
    builders.prepare("paired_volumes", tmp_path / "out", tmp_path, plane="axial")
  with pytest.raises(UserError, match=r"mni_pairs has no option 'axis'; it has none"):
    builders.prepare("mni_pairs", tmp_path / "out", axis="axial")
  with pytest.raises(UserError, match="by one process"):
    builders.prepare("mni_pairs", tmp_path / "out", workers=2)


def read(data_dir, split):
  source = builders.open_source("paired_volumes", data_dir, split)
  return {bytes(x["name"]).decode(): x for x in source}


@pytest.mark.parametrize("beam", ["", "--direct_running_mode=in_memory"])
def test_a_broken_volume_is_left_out_and_a_stop_costs_no_work(tmp_path, monkeypatch, capsys, beam):
  pytest.importorskip("tensorflow", reason="preparing a dataset needs TensorFlow")
  if beam:
    pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")
  volumes, out = tmp_path / "in", tmp_path / "out"
  write_folders(volumes / "train", "pqr")
  write_folders(volumes / "val", "s")
  (volumes / "train" / "b" / "q.nii.gz").write_bytes(b"broken")
  cut, fails = paired_volumes.cut_pair, ["s"]

  def stopping(name, *args):
    if name in fails:
      raise KeyboardInterrupt
    return cut(name, *args)

  if not beam:
    # Was broken in the attempt before, and is mended since.
    good = (volumes / "train" / "b" / "r.nii.gz").read_bytes()
    (volumes / "train" / "b" / "r.nii.gz").write_bytes(b"broken")
    monkeypatch.setattr(paired_volumes, "cut_pair", stopping)
    with pytest.raises(KeyboardInterrupt):
      builders.prepare("paired_volumes", out, volumes, window_a="0,255")
    (volumes / "train" / "b" / "r.nii.gz").write_bytes(good)
    with pytest.raises(KeyboardInterrupt):
      builders.prepare("paired_volumes", out, volumes, window_a="0,255")
    fails[:] = ["p", "r"]  # were done
  builders.prepare("paired_volumes", out, volumes, beam_options=beam, window_a="0,255")
  train = read(out, "train")
  assert sorted(train) == [f"{name}_{i:03d}" for name in "pr" for i in range(3, 9)]
  assert len(read(out, "validation")) == 6
  paths = [volumes / "train" / letter / "p.nii.gz" for letter in "ab"]
  expected = cut("p", of_files(*paths), Settings(window_a=(0.0, 255.0)))
  np.testing.assert_array_equal(train["p_004"]["a"][..., 0], expected["a"][1])
  np.testing.assert_array_equal(train["p_004"]["b"], expected["b"][1])
  left_out = json.loads((out / "paired_volumes" / "1.0.0" / "left_out.json").read_text())
  assert list(left_out) == ["q"]
  told = capsys.readouterr().err
  assert "left out: q: " in told
  assert ("4/4" in told) == bool(beam)  # pairs of volumes
  assert [path.name for path in (out / "paired_volumes").iterdir()] == ["1.0.0"]
