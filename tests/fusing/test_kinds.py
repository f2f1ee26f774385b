"""What users have in files and folders, through `dmfnet fuse`, with a stand-in for the model."""

import gzip

import dicom_phantoms as phantoms
import nibabel
import numpy as np
import pydicom
import pytest
from fake_model import listing
from PIL import Image

from dmfnet_jax.cli import main
from dmfnet_jax.io import pictures

RNG = np.random.default_rng(0)
GREY = RNG.integers(1, 256, (8, 9)).astype(np.uint8)
RGB = RNG.integers(1, 256, (8, 9, 3)).astype(np.uint8)
AFFINE = nibabel.affines.from_matvec(np.diag([-2.0, 2, 3]), [46, -50, -20])
VALUES = RNG.integers(1, 4000, (5, 6, 7)).astype(np.int16)


def _fuse(*arguments) -> int:
  return main(["fuse", *map(str, arguments)])


def _preview(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(GREY).save(path)


@pytest.mark.parametrize("where", ["a", "b", "ab"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".nii.gz"])
def test_a_series_with_a_preview_is_a_series(tmp_path, model, capsys, where, suffix):
  folders = [phantoms.write_series(tmp_path / name) for name in "ab"]
  for name in where:
    if suffix == ".nii.gz":
      nibabel.save(nibabel.Nifti1Image(VALUES, AFFINE), tmp_path / name / f"preview{suffix}")
    else:
      _preview(tmp_path / name / f"preview{suffix}")
    (tmp_path / name / "LICENSE").write_text("x")
  assert _fuse(*folders, "-o", tmp_path / "out") == 0
  assert sum(name.endswith(".dcm") for name in listing(tmp_path / "out")) == 5
  told = capsys.readouterr().err
  for name in where:
    assert f"{tmp_path / name}: preview{suffix} is left out" in told
    assert f"{tmp_path / name}: LICENSE is left out" in told


def test_a_preview_beside_each_slice(tmp_path, model):
  folders = [phantoms.write_series(tmp_path / name) for name in "ab"]
  for path in list(folders[0].iterdir()):
    _preview(path.with_suffix(".jpg"))
  assert _fuse(*folders, "-o", tmp_path / "out") == 0
  assert sum(len(call["names"]) for call in model.calls) == 5


@pytest.mark.parametrize("swapped", [False, True])
def test_a_single_slice_with_a_preview_beside_a_series(tmp_path, model, swapped):
  folders = [phantoms.write_series(tmp_path / name, 1) for name in "ab"]
  _preview(folders[swapped] / "preview.jpg")
  assert _fuse(*folders, "-o", tmp_path / "out.nii.gz") == 0
  assert nibabel.load(tmp_path / "out.nii.gz").shape[2] == 1


def test_a_folder_of_two_series_and_a_preview_is_none_of_one(tmp_path, model, capsys):
  folders = [phantoms.write_series(tmp_path / name) for name in "ab"]
  other = {"SeriesInstanceUID": pydicom.uid.generate_uid()}
  phantoms.save(tmp_path / "a" / "other.dcm", phantoms.dataset(phantoms.values(), **other))
  _preview(tmp_path / "a" / "preview.jpg")
  assert _fuse(*folders, "-o", tmp_path / "out") == 2
  told = capsys.readouterr().err
  assert (
    f"{folders[0]} is a folder of pairs and {folders[1]} the folder of one DICOM series" in told
  )


def test_pairs_of_pictures_and_single_dicom_files_stay_pairs(tmp_path, model):
  for name in "ab":
    _preview(tmp_path / name / "p.png")
    for i in range(2):  # of two patients
      series = {"SeriesInstanceUID": pydicom.uid.generate_uid()}
      phantoms.save(tmp_path / name / f"s{i}.dcm", phantoms.dataset(phantoms.values(i), **series))
  assert _fuse(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out") == 0
  assert {"p.png", "s0", "s1"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_pairs_in_gif_and_webp_are_fused_among_others(tmp_path, model, capsys):
  for name, picture in (("a", GREY), ("b", RGB)):
    (tmp_path / name).mkdir()
    Image.fromarray(picture).save(tmp_path / name / "0.png")
    Image.fromarray(picture).save(tmp_path / name / "1.webp", lossless=True)
    Image.fromarray(picture).quantize(256).save(tmp_path / name / "2.gif")
  assert _fuse(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out") == 0
  fused = [pictures.read_image(tmp_path / "out" / f"{i}.png") for i in range(3)]
  for picture in fused[1:]:  # the noise is another
    np.testing.assert_allclose(picture.astype(int), fused[0], atol=8)
  assert "3 of 3 pairs" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.gif", "x.webp"])
def test_gif_and_webp_are_not_written(tmp_path, model, capsys, name):
  _preview(tmp_path / "a.png")
  assert _fuse(tmp_path / "a.png", tmp_path / "a.png", "-o", tmp_path / name) == 2
  assert "cannot write this format" in capsys.readouterr().err


UNREAD = {
  "x.nrrd": "an NRRD volume",
  "x.mha": "a MetaImage volume",
  "x.mnc": "a MINC volume",
  "x.npy": "a NumPy array",
}


@pytest.mark.parametrize("name", UNREAD)
def test_formats_that_are_not_read_are_named_with_the_way_out(tmp_path, model, capsys, name):
  for folder in "ab":
    _preview(tmp_path / folder / "p.png")
    (tmp_path / folder / name).write_bytes(b"NRRD0004\n")
  assert _fuse(tmp_path / "a" / name, tmp_path / "b" / name, "-o", tmp_path / "out") == 2
  assert f"{name}: {UNREAD[name]}" in (told := capsys.readouterr().err)
  assert "save it as" in told
  # In folders the others are fused.
  assert _fuse(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out") == 0
  assert f"{tmp_path / 'a' / name} ({UNREAD[name]}" in capsys.readouterr().err
  assert listing(tmp_path / "out") == ["p.png"]


def test_pictures_in_folders_that_are_not_read_are_named(tmp_path, model, capsys):
  for folder in "ab":
    _preview(tmp_path / folder / "p.jfif")
    for suffix in (".psd", ".svg", ".avif"):
      (tmp_path / folder / f"x{suffix}").write_bytes(b"x")
    (tmp_path / folder / "notes.txt").write_bytes(b"x")
  assert _fuse(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out") == 0
  told = capsys.readouterr().err
  for suffix in (".psd", ".svg", ".avif"):
    assert f"x{suffix} (a picture in a format that is not read, {suffix}: save it as .png)" in told
  assert "notes.txt" not in told
  assert listing(tmp_path / "out") == ["p.png"]


def _pair(path, kind=nibabel.Nifti1Pair, data=VALUES, **_):
  nibabel.save(kind(data, AFFINE), path)


OTHER_VOLUMES = {
  "x.hdr": _pair,
  "x.img": _pair,
  "y.hdr.gz": lambda path: _pair(path.with_name("y.img.gz")),
  "x2.img": lambda path: _pair(path, nibabel.Nifti2Pair),
  "big.img": lambda path: _pair(path, data=VALUES.astype(">i2")),
  "x.mgz": lambda path: _pair(path, nibabel.MGHImage),
  "x.MGH": lambda path: _pair(path.with_suffix(".mgh"), nibabel.MGHImage),
}


@pytest.mark.parametrize("name", OTHER_VOLUMES)
def test_pairs_of_hdr_and_img_and_freesurfer_volumes_are_read(tmp_path, model, name):
  path = tmp_path / name
  OTHER_VOLUMES[name](path)
  if name.endswith("MGH"):
    path.with_suffix(".mgh").rename(path)
  plain = tmp_path / f"{name.partition('.')[0]}.nii.gz"  # the noise is of the stem
  nibabel.save(nibabel.Nifti1Image(VALUES, AFFINE), plain)
  results = []
  for i, files in enumerate(((plain, plain), (path, plain), (plain, path))):
    assert _fuse(*files, "-o", tmp_path / f"out{i}.nii.gz") == 0
    results.append(nibabel.load(tmp_path / f"out{i}.nii.gz"))
  for result in results[1:]:
    np.testing.assert_array_equal(result.dataobj, results[0].dataobj)
    np.testing.assert_allclose(result.affine, AFFINE)


def test_pairs_in_folders_are_one_volume_each(tmp_path, model):
  for name in "ab":
    (tmp_path / name).mkdir()
    _pair(tmp_path / name / "x.img")
    _pair(tmp_path / name / "y.mgz", nibabel.MGHImage)
  assert _fuse(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out") == 0
  assert {"x.nii.gz", "y.nii.gz"} <= set(listing(tmp_path / "out"))


@pytest.mark.parametrize(
  ("name", "spoil", "says"),
  [
    ("x.img", lambda path: path.with_suffix(".hdr").unlink(), "of which x.hdr is missing"),
    ("x.hdr", lambda path: path.with_suffix(".img").unlink(), "of which x.img is missing"),
    ("x.img", lambda path: path.write_bytes(path.read_bytes()[:-9]), "is truncated: 411 of 420"),
    ("x.hdr", lambda path: path.write_bytes(bytes(348)), "no NIfTI pair"),
    ("x.mgz", lambda path: path.write_bytes(b"x" * 400), "no FreeSurfer volume"),
    (
      "x.mgz",
      lambda path: path.write_bytes(gzip.decompress(path.read_bytes())[:600]),
      "is truncated: 600 of 704",
    ),
  ],
)
def test_broken_ones_are_named(tmp_path, model, capsys, name, spoil, says):
  kind = nibabel.MGHImage if name.endswith("z") else nibabel.Nifti1Pair
  _pair(tmp_path / name, kind)
  spoil(tmp_path / name)
  nibabel.save(nibabel.Nifti1Image(VALUES, AFFINE), tmp_path / "b.nii.gz")
  assert _fuse(tmp_path / "b.nii.gz", tmp_path / name, "-o", tmp_path / "out.nii.gz") == 1
  told = capsys.readouterr().err
  assert f"{tmp_path / name}: " in told
  assert says in told


@pytest.mark.parametrize("suffix", [".mgz", ".img", ".nrrd"])
def test_other_volumes_are_not_written(tmp_path, model, capsys, suffix):
  nibabel.save(nibabel.Nifti1Image(VALUES, AFFINE), tmp_path / "b.nii.gz")
  assert _fuse(tmp_path / "b.nii.gz", tmp_path / "b.nii.gz", "-o", tmp_path / f"x{suffix}") == 2
  assert "use a name in .nii.gz" in capsys.readouterr().err


@pytest.mark.parametrize("black", "ab")
def test_a_black_picture_is_told(tmp_path, model, capsys, black):
  for name in "ab":
    Image.fromarray(GREY * (name != black)).save(tmp_path / f"{name}.png")
  assert _fuse(tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out.png") == 0
  told = capsys.readouterr().err.splitlines()
  assert [line for line in told if "is black" in line] == [
    f"dmfnet: warning: {tmp_path / black}.png: is black everywhere as it is shown: the result has "
    "nothing of it"
  ]


@pytest.mark.parametrize("black", "ab")
def test_a_volume_that_its_window_makes_black_is_told(tmp_path, model, capsys, black):
  for name in "ab":
    nibabel.save(nibabel.Nifti1Image(VALUES, AFFINE), tmp_path / f"{name}.nii")
  files = tmp_path / "a.nii", tmp_path / "b.nii"
  assert _fuse(*files, "-o", tmp_path / "out.nii", f"--window-{black}=5000,6000") == 0
  assert f"warning: {tmp_path / black}.nii: is black" in capsys.readouterr().err
