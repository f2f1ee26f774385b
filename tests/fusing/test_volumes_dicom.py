"""DICOM series through `dmfnet fuse`, with a stand-in for the model."""

import json
import os

import dicom_phantoms as phantoms
import nibabel
import numpy as np
import pydicom
import pytest
from fake_model import listing
from pydicom.data import get_testdata_file

from dmfnet_jax.cli import main
from dmfnet_jax.io import pictures
from dmfnet_jax.io.dicom import read_dicom

COUNT = 5


def _fuse(*arguments) -> int:
  return main(["fuse", *map(str, arguments)])


def _stored(mark):
  """Stored values of slice k, dim but for one voxel (slice, row, column)."""

  def stored(k):
    values = phantoms.values(k, high=200)
    if k == mark[0]:
      values[mark[1:]] = 1000
    return values

  return stored


@pytest.fixture
def series(tmp_path):
  """An oblique CT and a PET with SUV on one grid, each with a mark: their folders and marks."""
  marks = (3, 1, 5), (1, 4, 2)
  oblique = phantoms.oblique()
  a = phantoms.write_series(
    tmp_path / "ct", COUNT, orientation=oblique, stored=_stored(marks[0]), WindowCenter=None
  )
  b = phantoms.write_series(
    tmp_path / "pet", COUNT, orientation=oblique, stored=_stored(marks[1]), **phantoms.pet_tags()
  )
  return a, b, marks


def test_the_result_is_a_series_in_the_same_place(series, tmp_path, model, capsys):
  model.trained_on = ("MRI-PET",)
  a, b, marks = series
  out = tmp_path / "fused"
  high = read_dicom(b).data.max()
  windows = ["--window-a", "-1024,-24", f"--window-b=0,{high}"]
  assert _fuse(a, b, "-o", out, *windows, "--samples", 2) == 0
  source, result = read_dicom(a), read_dicom(out)
  np.testing.assert_allclose(result.affine, source.affine, atol=1e-6)
  assert result.data.shape == source.data.shape
  found = np.argwhere(phantoms.slices(result) > 240)
  np.testing.assert_array_equal(found, sorted(marks))
  np.testing.assert_allclose(
    phantoms.world(result, found[:, ::-1]),
    phantoms.world(source, np.array(sorted(marks))[:, ::-1]),
    atol=1e-4,
  )
  header = pydicom.dcmread(out / "slice_0001.dcm")
  assert header.StudyInstanceUID == phantoms.STUDY
  assert header.SeriesInstanceUID != phantoms.SERIES
  assert header.PhotometricInterpretation == "MONOCHROME2"
  # The deviation is a NIfTI volume in the same place.
  std = nibabel.load(tmp_path / "fused_std.nii.gz")
  i, j, k = marks[0][::-1]
  world = phantoms.world(source, np.array((i, j, k))) * [-1, -1, 1]  # LPS to RAS
  np.testing.assert_allclose(nibabel.affines.apply_affine(std.affine, (i, j, k)), world, atol=1e-3)
  printed = capsys.readouterr().err
  assert "SUV (given)" in printed
  assert printed.count("A is CT and B is PET: small-v2 was not trained on such pairs") == 1
  assert f"dmfnet: {b}: PET: SUV by body weight" in printed  # which is no warning


def test_no_patient_is_named(series, tmp_path, model, capsys):
  a, b, _ = series
  assert _fuse(a, b, "-o", tmp_path / "fused") == 0
  assert _fuse(a, b, "-o", tmp_path / "x.nii.gz", "--rgb") == 0
  assert _fuse(a, a / "IM0001", "-o", tmp_path / "y.nii.gz") == 1
  written = (tmp_path / "fused.json").read_text() + (tmp_path / "x.json").read_text()
  captured = capsys.readouterr()
  for secret in phantoms.SECRETS:
    assert secret not in captured.out + captured.err + written
  for name in ("x.nii.gz", "x_rgb.nii.gz"):
    assert nibabel.load(tmp_path / name).header["descrip"].item().startswith(b"dmfnet_jax")


def test_colours_and_pictures(series, tmp_path, model):
  a, b, _ = series
  out = tmp_path / "fused"
  shown = "--png", "--montage", tmp_path / "m.png", "--overlay", 0.5
  assert _fuse(a, b, "-o", out, "--lut", "hot", *shown) == 0
  assert nibabel.load(tmp_path / "fused_overlay.nii.gz").get_data_dtype().names == tuple("RGB")
  assert pydicom.dcmread(out / "slice_0001.dcm").PhotometricInterpretation == "RGB"
  for picture in (tmp_path / "fused_png").iterdir():
    assert pictures.read_image(picture).ndim == 3
  assert json.loads((tmp_path / "fused.json").read_text())["unit_b"] == "SUV"
  # Colours that a series brought along stay its own.
  assert _fuse(a, out, "-o", tmp_path / "again") == 0
  assert pydicom.dcmread(tmp_path / "again" / "slice_0001.dcm").SamplesPerPixel == 3


def test_slices_of_a_plain_series_are_its_own(tmp_path, model):
  """Axial, head first: the network sees rows and columns as they are stored."""
  a = phantoms.write_series(tmp_path / "ct", COUNT)
  assert _fuse(a, a, "-o", tmp_path / "fused", "--png", "--window-a", "-1024,0") == 0
  assert {call["shape"][1:] for call in model.calls} == {(phantoms.ROWS, phantoms.COLUMNS)}
  result = phantoms.slices(read_dicom(tmp_path / "fused"))
  for k in range(COUNT):
    picture = pictures.read_image(tmp_path / "fused_png" / f"axial_{k:03d}.png")
    np.testing.assert_array_equal(picture, result[k])


def test_the_window_of_the_file_comes_first(tmp_path, model, capsys):
  tags = {"WindowCenter": 40, "WindowWidth": 401, "VOILUTFunction": "LINEAR_EXACT"}
  a = phantoms.write_series(tmp_path / "ct", COUNT, **tags)
  assert _fuse(a, a, "-o", tmp_path / "f", "--window-b", "auto") == 0
  assert "A -160.5 to 240.5 HU (file), B " in capsys.readouterr().err
  record = json.loads((tmp_path / "f.json").read_text())
  assert record["window_a"] == [-160.5, 240.5]
  assert record["window_b_from"] == "percentiles 0.5 and 99.5"


def test_nifti_and_dicom_meet(series, tmp_path, model):
  """A series written as NIfTI by fusing fits the series it came from."""
  a, b, _ = series
  assert _fuse(a, b, "-o", tmp_path / "n.nii.gz") == 0
  np.testing.assert_allclose(
    np.linalg.det(nibabel.load(tmp_path / "n.nii.gz").affine[:3, :3]),
    np.linalg.det(read_dicom(a).affine[:3, :3]),
    rtol=1e-4,
  )
  assert _fuse(tmp_path / "n.nii.gz", b, "-o", tmp_path / "m.nii.gz") == 0
  assert _fuse(a, tmp_path / "n.nii.gz", "-o", tmp_path / "s") == 0
  assert read_dicom(tmp_path / "s").shape == (phantoms.COLUMNS, phantoms.ROWS, COUNT)


def test_folders_of_series(tmp_path, model, capsys):
  for role in "ab":
    for case in ("case 1", "case 2"):
      phantoms.write_series(tmp_path / role / case, COUNT)
    (tmp_path / role / "notes").mkdir()
  (tmp_path / "b" / "case 2" / "IM0000").write_bytes(b"broken")
  out = tmp_path / "out"
  assert _fuse(tmp_path / "a", tmp_path / "b", "-o", out) == 1
  assert set(listing(out)) == {"case 1", "case 1.json"}
  assert len(os.listdir(out / "case 1")) == COUNT
  err = capsys.readouterr().err
  assert "IM0000 is left out" in err
  assert "pair case 2: A and B lie on different grids: 7 x 5 x 5 against 7 x 5 x 4 voxels" in err


def test_series_that_lack_different_slices_do_not_match(tmp_path, model, capsys):
  """Both have four slices left, but not the same ones."""
  for role, missing in (("a", 1), ("b", 2)):
    phantoms.write_series(tmp_path / role, COUNT)
    for file in (tmp_path / role).iterdir():
      if pydicom.dcmread(file).InstanceNumber == COUNT - missing:
        file.unlink()
  assert _fuse(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out") == 1
  assert "the same slice up to 3 mm apart" in capsys.readouterr().err
  assert _fuse(tmp_path / "a", tmp_path / "a", "-o", tmp_path / "out") == 0


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_files_of_pydicom(tmp_path, model, name):
  file = get_testdata_file(name)
  assert _fuse(file, file, "-o", tmp_path / "fused") == 0
  source, result = read_dicom(file), read_dicom(tmp_path / "fused")
  assert result.data.shape == source.data.shape
  np.testing.assert_allclose(result.affine, source.affine, atol=1e-6)
  assert _fuse(file, file, "-o", tmp_path / "fused.png") == 0
  assert pictures.read_image(tmp_path / "fused.png").shape == source.shape[1::-1]


def test_another_patient_is_not_resampled(tmp_path, model, capsys):
  ct, mr = get_testdata_file("CT_small.dcm"), get_testdata_file("MR_small.dcm")
  assert _fuse(ct, mr, "-o", tmp_path / "x", "--same-frame") == 1
  assert _fuse(ct, mr, "-o", tmp_path / "x", "--same-frame", "--resample") == 1
  err = capsys.readouterr().err
  assert "128 x 128 x 1 against 64 x 64 x 1 voxels" in err
  assert "do not overlap" in err


def test_a_source_folder_is_not_written_to(series, model, capsys):
  a, b, _ = series
  for out in (a, b):
    before = sorted(os.listdir(out))
    assert _fuse(a, b, "-o", out) == 2
    assert _fuse(a / "IM0001", b / "IM0001", "-o", out) == 2
    assert sorted(os.listdir(out)) == before
  assert capsys.readouterr().err.count("would replace a source") == 4


def test_a_series_that_is_whole_is_not_fused_again(tmp_path, model):
  """Its record, written last, tells; one that was interrupted is done again."""
  for name in ("1", "2"):
    for role in "ab":
      phantoms.write_series(tmp_path / role / name, COUNT)
  out = tmp_path / "out"
  command = tmp_path / "a", tmp_path / "b", "-o", out, "--resume"
  assert _fuse(*command) == 0
  assert listing(out) == ["1", "1.json", "2", "2.json"]
  (out / "2.json").unlink()
  (out / "2" / "slice_0001.dcm").unlink()
  model.calls.clear()
  assert _fuse(*command) == 0
  assert {name.split("/")[0] for call in model.calls for name in call["names"]} == {"2"}
  assert read_dicom(out / "2").shape == (phantoms.COLUMNS, phantoms.ROWS, COUNT)
  model.calls.clear()
  assert _fuse(*command) == 0
  assert model.calls == []


def test_another_frame_of_reference_is_no_registration(tmp_path, model, capsys):
  """Positions in two frames cannot be compared, however well they agree."""
  a = phantoms.write_series(tmp_path / "a", COUNT)
  b = phantoms.write_series(tmp_path / "b", COUNT, FrameOfReferenceUID="1.2.3.4")
  out = tmp_path / "out"
  for option in ((), ("--resample",)):
    assert _fuse(a, b, "-o", out, *option) == 1
    assert "add --same-frame if B is registered to A all the same" in capsys.readouterr().err
  assert not (tmp_path / "out.json").exists()
  assert _fuse(a, b, "-o", out, "--same-frame") == 0
  assert "warning: pair a: " in capsys.readouterr().err
  record = json.loads((tmp_path / "out.json").read_text())
  (warning,) = record["warnings"]
  assert "1.2.3.4" in warning
  assert "--same-frame" in record["options"].split()
  assert _fuse(a, a, "-o", tmp_path / "same") == 0
  assert "warnings" not in json.loads((tmp_path / "same.json").read_text())


def _at(*heights, **tags):
  return {
    "count": len(heights),
    "ImagePositionPatient": lambda k: [-30.5, -20.25, heights[k]],
  } | tags


EVEN = _at(0, 3, 6, 9, 12)


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize(
  ("a", "b", "uneven"),
  [
    (EVEN, _at(0, 3, 9, 12, 15), "B"),  # one is missing
    (_at(0, 3, 9, 12, 15), EVEN, "A"),
    (_at(0, 2.5, 5, 10, 15), EVEN, "A"),  # as in one head CT
    (_at(0, 2.5, 5, 10, 15), _at(0, 5, 10, 12.5, 15), "A and B"),
    # The same slices, but pixels of another size or shown from another side.
    (_at(0, 3, 9), _at(0, 3, 9, PixelSpacing=[2.5, 1.3]), "A and B"),
    (_at(0, 3, 9), _at(0, 3, 9, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0]), "A and B"),
  ],
)
def test_slices_at_different_places_are_not_fused(tmp_path, model, capsys, a, b, uneven, resample):
  paths = [phantoms.write_series(tmp_path / name, **tags) for name, tags in (("a", a), ("b", b))]
  out = tmp_path / "out.nii.gz"
  assert _fuse(*paths, "-o", out, *(["--resample"] if resample else [])) == 1
  assert f"the slices of {uneven} are not evenly spaced" in capsys.readouterr().err
  assert not out.exists()
  assert not model.calls


def test_uneven_slices_at_the_same_places_are_fused(tmp_path, model):
  paths = [phantoms.write_series(tmp_path / name, **_at(0, 2.5, 5, 10)) for name in "ab"]
  assert _fuse(*paths, "-o", tmp_path / "out.nii.gz") == 0


@pytest.mark.parametrize(("height", "code"), [(6, 0), (9, 1)])
@pytest.mark.parametrize("thickness", [4, None])  # without one a single slice has no affine
def test_single_slices_are_fused_where_they_lie_at_one_place(
  tmp_path, model, height, code, thickness
):
  a = phantoms.write_series(tmp_path / "a", **_at(6))
  b = phantoms.write_series(tmp_path / "b", **_at(height, SliceThickness=thickness))
  assert _fuse(a, b, "-o", tmp_path / "out.nii.gz") == code
