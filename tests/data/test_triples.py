"""Datasets of three sources and a picture to imitate."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from dmfnet_jax.data import builders
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import color, grids
from dmfnet_jax.io.nifti import read_nifti
from dmfnet_jax.io.pictures import read_image, write_image

pytest.importorskip("tensorflow_datasets")

from dmfnet_jax.data.builders import mni_triples, triples_folder

PUBLISHED = ("1_sr_4_8", "2_sr_4_8", "3_sr_4_8", "hr_8")


def write(root: Path, folders: tuple[str, ...], stems: str, size=(8, 8)):
  rng = np.random.default_rng(len(str(root)))
  for folder in folders:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for stem in stems:
      picture = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
      write_image(root / folder / f"{stem}.png", picture)


@pytest.mark.parametrize("folders", [triples_folder.FIELDS, PUBLISHED])
def test_folders_are_prepared_in_all_their_colours(tmp_path, folders, capsys):
  pytest.importorskip("tensorflow", reason="preparing a dataset needs TensorFlow")
  root = tmp_path / "pictures"
  write(root / "train", (*folders, "1_lr_4"), "xy")
  write(root / "val", folders, "z")
  counts = builders.prepare("triples_folder", tmp_path / "data", root)
  assert counts == {"train": 2, "validation": 1}
  source = builders.open_source("triples_folder", tmp_path / "data", "train")
  example = next(x for x in source if x["name"] == b"y")
  for name, folder in zip(triples_folder.FIELDS, folders, strict=True):
    np.testing.assert_array_equal(example[name], read_image(root / "train" / folder / "y.png"))


def test_published_folders_go_together_by_their_order(tmp_path):
  for folder, stems in zip(PUBLISHED, ("ab", "cd", "ef", "gh"), strict=True):
    write(tmp_path, (folder,), stems)
  found, notes = triples_folder.find_examples(tmp_path)
  together = found["train"] | found["validation"]
  assert {k: [p.stem for p in v] for k, v in together.items()} == {
    "a": [*"aceg"],
    "b": [*"bdfh"],
  }
  assert "put whole patients into train/" in notes[0]


@pytest.mark.parametrize(
  ("prepare", "message"),
  [
    (lambda root: write(root, ("a", "b", "c"), "x"), "expected a/, b/, c/ and target/, or 1_sr_L"),
    (lambda root: write(root, (*PUBLISHED, "hr_4"), "x"), "has hr_4/ and hr_8/: keep one of them"),
    (
      lambda root: (write(root, ("a", "b", "c"), "xy"), write(root, ("target",), "xz")),
      "target has not one picture for each of the 2 in .*a",
    ),
    (
      lambda root: (write(root, PUBLISHED[:3], "xy"), write(root, PUBLISHED[3:], "x")),
      "hr_8 has not one picture for each of the 2 in .*1_sr_4_8",
    ),
    (lambda root: write(root, triples_folder.FIELDS, ""), "no pictures in .*a"),
  ],
)
def test_what_does_not_go_together_is_named(tmp_path, prepare, message):
  prepare(tmp_path)
  with pytest.raises(UserError, match=message) as caught:
    triples_folder.find_examples(tmp_path)
  assert "\n" not in str(caught.value)


def test_pictures_of_other_sizes_are_named(tmp_path):
  write(tmp_path, triples_folder.FIELDS[:3], "x")
  write(tmp_path, ("target",), "x", size=(8, 6))
  found, _ = triples_folder.find_examples(tmp_path)
  generate = triples_folder.TriplesFolder._generate_examples
  with pytest.raises(UserError, match=r"target.x.png is 6 x 8 but .*a.x.png is 8 x 8"):
    list(generate(None, found["train"]))


def test_the_picture_to_imitate_follows_its_rule():
  rng = np.random.default_rng(0)
  rough = rng.integers(0, 80, (40, 30)).astype(np.uint8)
  # Of one picture three times nothing is lost: the bands and the coarsest picture are all of it.
  same = mni_triples.fuse_sharp((rough, rough, rough), (1, 1, 1))
  np.testing.assert_array_equal(same[..., 0], rough)
  # One source alone has detail: the result has it, at the brightest one's level.
  grey, bright = (np.full((40, 30), level, np.uint8) for level in (100, 130))
  fused = mni_triples.fuse_sharp((rough, grey, bright), (1, 1, 1))[..., 0].astype(float)
  assert np.corrcoef(fused.ravel(), rough.ravel())[0, 1] > 0.98
  assert abs(fused.mean() - 130) < 2


def test_the_template_gives_three_sources_and_their_fusion():
  t1, ct, pet, target, name = mni_triples.mni_triple("axial", 96)
  assert name == "axial_096"
  assert t1.shape == (256, 256)
  assert {x.shape for x in (ct, pet, target)} == {(256, 256, 3)}
  luma = color.to_grey(target).astype(float)
  skull = (ct[..., 0] == 255) & (t1 == 0)
  assert luma[skull].mean() > 230
  brain = t1 > 0
  assert np.corrcoef(luma[brain], t1[brain])[0, 1] > 0.3
  warm, warm_target = (x[..., 0].astype(int) - x[..., 2] for x in (pet, target))
  coloured = np.abs(warm) > 50
  assert (np.sign(warm) == np.sign(warm_target))[coloured].mean() > 0.95


def test_the_validation_is_written_as_it_is_fused(tmp_path, monkeypatch):
  monkeypatch.setattr(mni_triples.mni_template, "PLANES", ("coronal",))
  mni_triples.write_files(tmp_path, factor=4)
  folders = {name: sorted((tmp_path / name).iterdir()) for name in ("a", "b", "c", "target")}
  names = [path.name for path in folders["target"]]
  wanted = mni_triples.mni_template.split_indices("coronal")["validation"]
  assert names == [f"coronal_{index:03d}.png" for index in sorted(wanted)]
  assert all([path.name for path in paths] == names for paths in folders.values())
  *sources, target, _ = mni_triples.mni_triple("coronal", min(wanted))
  np.testing.assert_array_equal(read_image(folders["target"][0]), target)
  for name, sharp in zip("abc", sources, strict=True):
    coarse = read_image(folders[name][0]).astype(float)
    assert coarse.shape[:2] == (64, 64)
    means = sharp.reshape(64, 4, 64, 4, -1).mean((1, 3)).squeeze()
    assert np.abs((coarse if coarse.ndim == means.ndim else coarse[..., 0]) - means).mean() < 6


def test_the_slab_lies_where_the_template_lies(tmp_path):
  mni_triples.write_volumes(tmp_path)
  t1, ct, pet = (read_nifti(tmp_path / f"{name}.nii.gz") for name in ("t1", "ct", "pet"))
  assert grids.difference(t1, ct) == grids.difference(t1, pet) == ""
  assert (t1.shape, ct.is_rgb, pet.is_rgb) == ((128, 128, 5), False, True)
  # A pixel four of whose parts are those of one voxel, in the second slice.
  coordinates = mni_triples.mni_template.slice_coordinates("axial", 96)
  row, column = 90, 104
  middle = coordinates[:, row : row + 2, column : column + 2].mean(axis=(1, 2))
  index = np.rint(nibabel.affines.apply_affine(np.linalg.inv(t1.affine), middle)).astype(int)
  np.testing.assert_allclose(nibabel.affines.apply_affine(t1.affine, index), middle)
  sharp, *_ = mni_triples.mni_triple("axial", 96)
  coarse = np.asarray(Image.fromarray(sharp).resize((128, 128), Image.Resampling.BICUBIC))
  assert t1.data[tuple(index)] == coarse[row // 2, column // 2] > 0
