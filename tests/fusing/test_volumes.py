"""Volumes through `dmfnet fuse`, with a stand-in for the model: places, colours, what is written.

The brain is the ICBM152 template inside nilearn at 4 mm, its PET a blurred map of the tissues.
"""

import importlib.util
import json
import os
import shlex
from pathlib import Path

import nibabel
import numpy as np
import pytest
from fake_model import listing
from PIL import Image
from scipy import ndimage

from dmfnet_jax.cli import main
from dmfnet_jax.fusing import kinds
from dmfnet_jax.io import color, panels, pictures, scaling, windows

STEP = 4


@pytest.fixture(scope="module")
def brain() -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
  """T1 (uint8) and a PET simulated from it (float32, in Bq/ml), 50 x 59 x 48 voxels of 4 mm."""
  folder = Path(importlib.util.find_spec("nilearn").origin).parent / "datasets" / "data"
  volumes = {}
  for kind in ("t1", "gm", "wm"):
    image = nibabel.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    volumes[kind] = np.asarray(image.dataobj)[::STEP, ::STEP, ::STEP]
    affine = image.affine @ np.diag([STEP, STEP, STEP, 1])
  activity = (volumes["gm"] + 0.25 * volumes["wm"]).astype(np.float32) / 255
  pet = 12_000 * ndimage.gaussian_filter(activity, 1.5)
  return nibabel.Nifti1Image(volumes["t1"], affine), nibabel.Nifti1Image(pet, affine)


@pytest.fixture
def files(brain, tmp_path) -> tuple[str, str]:
  """The two volumes on disk."""
  paths = tmp_path / "t1.nii.gz", tmp_path / "pet.nii.gz"
  for image, path in zip(brain, paths, strict=True):
    nibabel.save(image, path)
  return str(paths[0]), str(paths[1])


def _fuse(*arguments) -> int:
  return main(["fuse", *map(str, arguments)])


def _load(path) -> np.ndarray:
  return np.asarray(nibabel.load(path).dataobj)


def _reoriented(image: nibabel.Nifti1Image, axes: str) -> nibabel.Nifti1Image:
  turn = nibabel.orientations.ornt_transform(
    nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
  )
  return image.as_reoriented(turn)


def test_a_brain_fuses_in_its_place(files, tmp_path, model, capsys):
  """The done-criterion: same affine, and anatomy at the same world coordinates."""
  out, montage = tmp_path / "fused.nii.gz", tmp_path / "m" / "montage.png"
  assert _fuse(*files, "-o", out, "--rgb", "--montage", montage, "--samples", 2) == 0
  t1, fused = nibabel.load(files[0]), nibabel.load(out)
  np.testing.assert_array_equal(fused.affine, t1.affine)
  assert fused.shape == t1.shape
  assert fused.get_data_dtype() == np.uint8
  assert nibabel.load(tmp_path / "fused_rgb.nii.gz").header["datatype"] == 128
  std = nibabel.load(tmp_path / "fused_std.nii.gz")
  assert std.get_data_dtype() == np.float32
  np.testing.assert_array_equal(std.affine, t1.affine)
  # The brain's section is in the same place: its extreme points and its centre in mm.
  ends = []
  for image in (t1, fused):
    inside = np.argwhere(np.asarray(image.dataobj) > 80)
    points = nibabel.affines.apply_affine(image.affine, inside)
    ends.append(np.stack([points.min(0), points.max(0), points.mean(0)]))
  np.testing.assert_allclose(ends[0][:2], ends[1][:2], atol=2 * STEP)
  np.testing.assert_allclose(ends[0][2], ends[1][2], atol=STEP / 2)
  with Image.open(montage) as picture:
    assert picture.mode == "RGB"
    assert picture.height > 6 * 4 * 59
  err = capsys.readouterr().err
  assert "pair t1: windows: A " in err
  assert "(0 to the maximum, as PET); colours: hot" in err
  assert "1 of 1 pairs fused" in err


AXES = ["RAS", "LPI", "PSR", "SAL"]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_mark_stays_where_it_is_in_the_world(tmp_path, model, axes, plane):
  """However the axes are stored, a bright voxel of A and one of B are found where they were."""
  rng = np.random.default_rng(0)
  affine = nibabel.affines.from_matvec(
    np.array([[2, 0.1, 0], [-0.1, 2, 0.2], [0, -0.2, 3]]), [-30, 5, 12]
  )
  sources, marks = [], []
  for index in ((3, 9, 2), (11, 4, 6)):
    data = rng.integers(1, 50, (14, 12, 9)).astype(np.int16)
    data[index] = 250
    image = _reoriented(nibabel.Nifti1Image(data, affine), axes)
    nibabel.save(image, tmp_path / f"{len(sources)}.nii")
    sources.append(tmp_path / f"{len(sources)}.nii")
    marks.append(nibabel.affines.apply_affine(affine, index))
  window = ["--window-a", "0,255", "--window-b", "0,255"]
  assert _fuse(*sources, "-o", tmp_path / "f.nii", "--axis", plane, *window) == 0
  fused = nibabel.load(tmp_path / "f.nii")
  found = nibabel.affines.apply_affine(fused.affine, np.argwhere(_load(tmp_path / "f.nii") > 200))
  np.testing.assert_allclose(sorted(map(tuple, found)), sorted(map(tuple, marks)), atol=1e-4)


def test_storage_order_and_axis_numbers_change_nothing(brain, files, tmp_path, model):
  """The same voxels in another order of axes give the same result, noise included."""
  assert _fuse(*files, "-o", tmp_path / "ras.nii") == 0
  expected = nibabel.load(tmp_path / "ras.nii")
  (tmp_path / "turned").mkdir()
  turned = [tmp_path / "turned" / Path(name).name for name in files]
  for image, path in zip(brain, turned, strict=True):
    nibabel.save(_reoriented(image, "SLP"), path)
  for axis in ("axial", "0"):  # the array's first axis runs upward
    assert _fuse(*turned, "-o", tmp_path / "slp.nii", "--axis", axis) == 0
    back = _reoriented(nibabel.load(tmp_path / "slp.nii"), "RAS")
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_allclose(back.affine, expected.affine, atol=1e-4)


def test_slices_are_named_and_black_ones_left_out(files, tmp_path, model):
  assert _fuse(*files, "-o", tmp_path / "f.nii", "--axis", "coronal", "--seed", 5) == 0
  names = [name for call in model.calls for name in call["names"]]
  indices = [int(name.removeprefix("t1/coronal/")) for name in names]
  assert indices == sorted(set(indices))
  empty = sorted(set(range(59)) - set(indices))
  fused = _load(tmp_path / "f.nii")
  assert len(empty) > 2
  assert not fused[:, empty].any()
  assert all(fused[:, i].any() for i in indices)
  assert {call["seed"] for call in model.calls} == {5}


@pytest.mark.parametrize("batch_size", [1, 3, 16, 1000])
def test_batches_change_nothing(files, tmp_path, model, batch_size):
  assert _fuse(*files, "-o", tmp_path / "alone.nii") == 0
  slices = sum(call["shape"][0] for call in model.calls)
  model.calls.clear()
  assert _fuse(*files, "-o", tmp_path / "f.nii", "--batch-size", batch_size) == 0
  np.testing.assert_array_equal(_load(tmp_path / "f.nii"), _load(tmp_path / "alone.nii"))
  # A large volume is not handed over whole: the model's copies are floats.
  assert {call["batch_size"] for call in model.calls} == {batch_size}
  assert all(call["shape"][0] <= 4 * batch_size for call in model.calls)
  assert sum(call["shape"][0] for call in model.calls) == slices


def test_a_slice_that_does_not_fit_the_memory_is_told(files, tmp_path, model, capsys):
  model.memory = 7
  assert _fuse(*files, "-o", tmp_path / "f.nii", "--tile", "off") == 1
  assert "pair t1: a picture does not fit the memory" in capsys.readouterr().err
  assert _fuse(*files, "-o", tmp_path / "f.nii") == 0
  assert "pair t1: 59 x 50 pixels (height x width): fused in tiles" in capsys.readouterr().err
  assert {call["tile"] for call in model.calls} == {4}
  assert "--tile=4" in json.loads((tmp_path / "f.json").read_text())["options"]


def test_luma_and_colour(brain, files, tmp_path, model):
  """The network sees the luma of coloured B; its chroma goes back into the coloured volume."""
  assert _fuse(*files, "-o", tmp_path / "f.nii", "--rgb", "--lut", "pet") == 0
  record = json.loads((tmp_path / "f.json").read_text())
  b = scaling.to_uint8(np.asarray(brain[1].dataobj), tuple(record["window_b"]))
  coloured = scaling.apply_lut(b, scaling.read_lut("pet"))
  luma = _load(tmp_path / "f.nii")
  rgb = np.stack([_load(tmp_path / "f_rgb.nii.gz")[c] for c in "RGB"], axis=-1)
  np.testing.assert_array_equal(rgb, color.replace_luma(coloured, luma))
  # For programs that do not read RGB24; the value does not swallow a source.
  assert _fuse("--rgb", "4d", *files, "-o", tmp_path / "g.nii", "--lut", "pet") == 0
  as_4d = nibabel.load(tmp_path / "g_rgb.nii.gz")
  assert as_4d.get_data_dtype() == np.uint8
  np.testing.assert_array_equal(as_4d.affine, brain[0].affine)
  np.testing.assert_array_equal(as_4d.dataobj, rgb)
  a = scaling.to_uint8(np.asarray(brain[0].dataobj), tuple(record["window_a"]))
  largest = np.maximum(a, color.rgb_to_luma(coloured))
  assert np.abs(luma.astype(int) - largest).max() <= 3  # but for the stand-in's mark


def test_a_coloured_b_keeps_its_colour(files, tmp_path, model, capsys):
  """What --rgb wrote can be a source again, as B; of A the luma is used."""
  assert _fuse(*files, "-o", tmp_path / "f.nii", "--rgb") == 0
  rgb = tmp_path / "f_rgb.nii.gz"
  assert _fuse(files[0], rgb, "-o", tmp_path / "g.nii", "--rgb") == 0
  assert np.asarray(nibabel.load(tmp_path / "g_rgb.nii.gz").dataobj)["R"].any()
  record = json.loads((tmp_path / "g.json").read_text())
  assert record["lut"] is None
  assert record["window_b"] is None
  assert _fuse(rgb, files[1], "-o", tmp_path / "h.nii") == 0
  assert "f_rgb.nii.gz: is coloured: only the luma is used" in capsys.readouterr().err
  for option in (("--lut", "hot"), ("--window-b", "0,1")):
    assert _fuse(files[0], rgb, "-o", tmp_path / "i.nii", *option) == 1
    assert "is coloured already" in capsys.readouterr().err


@pytest.mark.parametrize("lut", [None, "pet"])
def test_an_overlay_is_a_volume_and_a_column(files, tmp_path, model, lut):
  widths = []
  for overlay in ([], ["--overlay", 0.5]):
    sheet = tmp_path / "m.png"
    given = [*overlay, "--montage", sheet, *(["--lut", lut] if lut else [])]
    assert _fuse(*files, "-o", tmp_path / "f.nii.gz", *given) == 0
    with Image.open(sheet) as picture:
      widths.append(picture.width)
  image = nibabel.load(tmp_path / "f_overlay.nii.gz")
  np.testing.assert_array_equal(image.affine, nibabel.load(files[0]).affine)
  stored = np.asarray(image.dataobj)
  laid = np.stack([stored[channel] for channel in "RGB"], axis=-1)
  windows = json.loads((tmp_path / "f.json").read_text())
  a, b = (
    scaling.to_uint8(_load(path).astype(np.float32), windows[f"window_{letter}"])
    for letter, path in zip("ab", files, strict=True)
  )
  expected = panels.overlay(a[20], b[20], 0.5, table=scaling.read_lut(lut or "hot"))
  np.testing.assert_array_equal(laid[20], expected)
  assert widths[1] - widths[0] == 204  # a column of slices 50 wide, enlarged 4 times
  # It is none of the sources of a folder.
  assert "f_overlay" not in kinds.list_sources(tmp_path, sorted(tmp_path.glob("*.nii.gz")))


def test_an_overlay_of_a_single_slice_is_a_picture(brain, tmp_path, model):
  for image, name in zip(brain, "ab", strict=True):
    nibabel.save(image.slicer[:, :, 20:21], tmp_path / f"{name}.nii")
  files = tmp_path / "a.nii", tmp_path / "b.nii"
  assert _fuse(*files, "-o", tmp_path / "f.png", "--overlay", 0.5) == 0
  shapes = [pictures.read_image(tmp_path / name).shape for name in ("f.png", "f_overlay.png")]
  assert shapes == [(59, 50), (59, 50, 3)]


def test_the_record_repeats_the_run(files, tmp_path, model, capsys):
  first = ["--lut", "spectrum", "--rgb", "--axis", "2", "--seed", 9, "--samples", 3]
  assert _fuse(*files, "-o", tmp_path / "1" / "f.nii.gz", *first) == 0
  record = json.loads((tmp_path / "1" / "f.json").read_text())
  printed = capsys.readouterr().err
  origins = {"a": "percentiles 0.5 and 99.5", "b": "0 to the maximum, as PET"}
  for letter, origin in origins.items():
    window = windows.describe(record[f"window_{letter}"])
    assert f"{letter.upper()} {window} ({origin})" in printed
  assert record["above_b"] == 0 < record["above_a"]
  assert f"(percentiles 0.5 and 99.5), {record['above_a']:,} voxels above" in printed
  assert record["axis"] == "axial"
  assert record["versions"].keys() >= {"dmfnet_jax", "jax", "numpy", "nibabel"}
  assert not {"a", "b", "path"} & record.keys()
  options = shlex.split(record["options"])
  assert _fuse(*files, "-o", tmp_path / "2" / "f.nii.gz", *options) == 0
  names = {"f.nii.gz", "f_rgb.nii.gz", "f_std.nii.gz", "f.json"}
  assert set(listing(tmp_path / "1")) == set(listing(tmp_path / "2")) == names
  for name in names - {"f.json"}:
    assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
  again = json.loads((tmp_path / "2" / "f.json").read_text())
  assert {key for key in record if record[key] != again[key]} == {"window_a_from", "window_b_from"}


def test_another_grid_is_refused_and_resampled_when_asked(brain, files, tmp_path, model, capsys):
  t1, pet = brain
  cut = nibabel.Nifti1Image(
    np.asarray(pet.dataobj)[5:, :, 3:].copy(),
    pet.affine @ nibabel.affines.from_matvec(np.eye(3), [5, 0, 3]),
  )
  nibabel.save(_reoriented(cut, "LAS"), tmp_path / "cut.nii.gz")
  out = tmp_path / "f.nii.gz"
  assert _fuse(files[0], tmp_path / "cut.nii.gz", "-o", out) == 1
  (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
  for part in ("50 x 59 x 48 against 45 x 59 x 45", "RAS against LAS", "add --resample"):
    assert part in line
  assert not out.exists()
  window = ["--window-a=60,230", "--window-b=0,9000"]
  options = ["--resample", "--save-b", *window]
  assert _fuse(files[0], tmp_path / "cut.nii.gz", "-o", out, *options) == 0
  assert "pair t1: B covers 84.4 % of A's voxels" in capsys.readouterr().err
  assert json.loads((tmp_path / "f.json").read_text())["b_covers"] == 0.8438  # 45/50 x 45/48
  used = nibabel.load(tmp_path / "f_resampled.nii.gz")
  np.testing.assert_array_equal(used.affine, t1.affine)
  np.testing.assert_allclose(used.dataobj[5:, :, 3:], cut.dataobj, rtol=1e-5)
  np.testing.assert_array_equal(nibabel.load(out).affine, t1.affine)
  assert _fuse(*files, "-o", tmp_path / "whole.nii.gz", *window) == 0
  # On A's grid the cut PET is the PET itself, where there is some.
  np.testing.assert_array_equal(_load(out)[5:, :, 3:], _load(tmp_path / "whole.nii.gz")[5:, :, 3:])


def test_the_same_grid_stored_otherwise_is_reordered(brain, files, tmp_path, model):
  nibabel.save(_reoriented(brain[1], "PIR"), tmp_path / "pir_pet.nii.gz")
  assert _fuse(files[0], tmp_path / "pir_pet.nii.gz", "-o", tmp_path / "f.nii.gz") == 1
  assert (
    _fuse(files[0], tmp_path / "pir_pet.nii.gz", "-o", tmp_path / "f.nii.gz", "--resample") == 0
  )
  assert _fuse(*files, "-o", tmp_path / "g.nii.gz") == 0
  np.testing.assert_array_equal(_load(tmp_path / "f.nii.gz"), _load(tmp_path / "g.nii.gz"))


def test_volumes_far_apart_are_not_resampled(brain, files, tmp_path, model, capsys):
  far = brain[1].affine.copy()
  far[2, 3] += 1000
  nibabel.save(nibabel.Nifti1Image(brain[1].dataobj, far), tmp_path / "far.nii")
  assert _fuse(files[0], tmp_path / "far.nii", "-o", tmp_path / "f.nii", "--resample") == 1
  assert "do not overlap where their headers place them" in capsys.readouterr().err


def test_folders_of_volumes_and_pictures(brain, tmp_path, model, capsys):
  a, b, out = (tmp_path / name for name in ("a", "b", "out"))
  for folder, image in zip((a, b), brain, strict=True):
    folder.mkdir()
    nibabel.save(image, folder / "sub 1.nii.gz")
    nibabel.save(image, folder / f"sub-2.nii{'.gz' if folder == b else ''}")
    pictures.write_image(folder / "slice.png", np.arange(30, dtype=np.uint8).reshape(5, 6))
  nibabel.save(brain[0], a / "alone.nii")
  montages = tmp_path / "montages"
  assert _fuse(a, b, "-o", out, "--samples", 2, "--montage", montages, "--png") == 0
  names = {"sub 1.nii.gz", "sub-2.nii.gz", "slice.png", "slice_std.tiff", "slice_std.png"}
  names |= {
    f"{stem}{end}" for stem in ("sub 1", "sub-2") for end in ("_std.nii.gz", ".json", "_png")
  }
  assert set(listing(out)) == names
  assert set(listing(montages)) == {"sub 1.png", "sub-2.png"}
  assert len(os.listdir(out / "sub-2_png")) == 48
  err = capsys.readouterr().err
  assert f"no partner for {a / 'alone.nii'}" in err
  assert "3 of 3 pairs fused" in err
  # A fused folder can be a source folder: deviations are no volumes of their own.
  assert _fuse(a, out, "-o", tmp_path / "again") == 0
  assert "_std" not in capsys.readouterr().err
  assert _fuse(a, b, "-o", out, "--montage", tmp_path / "m.png") == 2
  assert "several volumes need a folder" in capsys.readouterr().err


def test_bad_volumes_are_named_and_the_others_done(brain, tmp_path, model, capsys):
  a, b, out = (tmp_path / name for name in ("a", "b", "out"))
  for folder, image in zip((a, b), brain, strict=True):
    folder.mkdir()
    for stem in "123":
      nibabel.save(image, folder / f"{stem}.nii.gz")
  (a / "1.nii.gz").write_bytes((a / "1.nii.gz").read_bytes()[:5000])
  (b / "3.nii.gz").write_bytes(b"no volume")
  assert _fuse(a, b, "-o", out) == 1
  assert set(listing(out)) == {"2.nii.gz", "2.json"}
  err = capsys.readouterr().err
  assert f"pair 1: {a / '1.nii.gz'}: the gzip file is truncated" in err
  assert f"pair 3: {b / '3.nii.gz'}: is no NIfTI file" in err
  assert "1 of 3 pairs fused" in err


def test_one_slice_becomes_a_picture(tmp_path, model):
  """A volume of one slice needs no --axis, whichever way it lies, and may go to a picture."""
  data = np.random.default_rng(0).integers(1, 200, (9, 1, 7)).astype(np.uint8)
  nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
  nibabel.save(nibabel.Nifti1Image(data[::-1], np.eye(4)), tmp_path / "b.nii")
  pair = tmp_path / "a.nii", tmp_path / "b.nii"
  assert _fuse(*pair, "-o", tmp_path / "f.nii") == 0
  assert model.calls[0]["shape"] == (1, 7, 9)
  assert model.calls[0]["names"] == ["a/coronal/0"]
  assert nibabel.load(tmp_path / "f.nii").shape == (9, 1, 7)
  assert _fuse(*pair, "-o", tmp_path / "f.png", "--lut", "hot") == 0
  assert pictures.read_image(tmp_path / "f.png").shape == (7, 9, 3)
  assert _fuse(*pair, "-o", tmp_path / "g.png", "--axis", "axial") == 1


def test_windows_are_the_users(brain, files, tmp_path, model):
  assert (
    _fuse(*files, "-o", tmp_path / "f.nii", "--window-a", "-50,205", "--window-b", "0,1e9") == 0
  )
  fused = _load(tmp_path / "f.nii").astype(int)
  expected = np.minimum(np.asarray(brain[0].dataobj).astype(int) + 50, 255)
  assert np.abs(fused - expected).max() <= 3
  record = json.loads((tmp_path / "f.json").read_text())
  assert record["window_a"] == [-50, 205]
  assert record["window_a_from"] == "given"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["t1.nii.gz", "pet.nii.gz", "-o", "t1.nii.gz"], "would replace a source"),
    (["t1.nii.gz", "pet.nii.gz", "-o", "."], "would replace a source"),
    (["t1.nii.gz", "picture.png", "-o", "f.nii"], "give two of a kind"),
    (["t1.nii.gz", "none.nii", "-o", "f.nii"], r"none.nii: no such file"),
    (["t1.nii.gz", "folder", "-o", "f.nii"], "two files or two folders"),
    (["t1.nii.gz", "pet.nii.gz", "-o", "x.gif"], "cannot write this"),
    (["t1.nii.gz", "pet.nii.gz", "-o", "x.dcm"], "cannot write this"),
    (["picture.png", "picture.png", "-o", "f.nii.gz"], "not into a volume"),
    (["folder", "other", "-o", "f.nii.gz"], "need a folder as the output"),
    (["t1.nii.gz", "pet.nii.gz", "-o", "f.nii", "--lut", "nothing"], "no colour map of this name"),
    (["t1.nii.gz", "pet.nii.gz", "-o", "f.nii", "--window-b", "3,2"], "window '3,2'"),
    (["twice", "twice", "-o", "out"], "x.nii and x.nii.gz have the same stem"),
    (["both", "both", "-o", "out"], "x.nii and x.png have the same stem"),
    (["t1.nii.gz", "pet.nii.gz", "-o", "f.nii", "--model", "none"], "no released model"),
  ],
)
def test_wrong_calls_write_nothing(files, tmp_path, model, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(tmp_path)
  made = ("folder/1.png", "other/1.png", "twice/x.nii", "twice/x.nii.gz", "both/x.nii")
  for name in (*made, "both/x.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  pictures.write_image(tmp_path / "picture.png", np.zeros((4, 4), np.uint8))
  before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  assert _fuse(*arguments) == 2
  err = capsys.readouterr().err
  assert err.startswith("dmfnet: error: ")
  assert message in err
  assert err.count("\n") == 1
  after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  assert after == before
