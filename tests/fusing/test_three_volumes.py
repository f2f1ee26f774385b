"""Three volumes through `dmfnet fuse`, with a stand-in for a model that enlarges and colours."""

import dataclasses
import itertools
import json

import dicom_phantoms as phantoms
import nibabel
import numpy as np
import pytest
from fake_model import FakeModel, in_place, listing
from test_more_sources import mean_of

from dmfnet_jax.cli import main
from dmfnet_jax.inference.volumes import fuse_volumes
from dmfnet_jax.io import color, scaling
from dmfnet_jax.io.dicom import read_dicom
from dmfnet_jax.methods.method import Field

SHAPE = (8, 6, 5)
# Stored to the left, to the foot and to the front; voxels of 2 x 3 x 1.5 mm.
AFFINE = nibabel.affines.from_matvec([[-2.0, 0, 0], [0, 0, 1.5], [0, -3, 0]], [30, -20, 10])
WINDOWS = ("--window-a=0,255", "--window-b=0,255", "--window-c=0,510")


class Enlarging(FakeModel):
  """The mean of three sources in colour, each pixel four times."""

  method = dataclasses.replace(
    FakeModel.method,
    sources=tuple(Field(name, channels=3) for name in "abc"),
    outputs=(Field("fused", channels=3),),
    scale=lambda config: 2,
  )

  def fuse(self, a, b, c, *, names, samples=None, **asked):
    self.calls.append(list(names))
    fused = [mean_of(*sources).repeat(2, 0).repeat(2, 1) for sources in zip(a, b, c, strict=True)]
    return fused if samples is None else (fused, [x[..., 0] / np.float32(9) for x in fused])


@pytest.fixture
def model():
  with in_place(Enlarging()) as found:
    yield found


@pytest.fixture
def volumes():
  """Three of whole values; the last sagittal, coronal and axial slices of all are empty."""
  rng = np.random.default_rng(0)
  found = []
  for high in (256, 256, 511):
    data = rng.integers(0, high, SHAPE).astype(np.float32)
    data[-1], data[:, -1], data[..., -1] = 0, 0, 0
    image = nibabel.Nifti1Image(data, AFFINE)
    image.set_sform(AFFINE, "mni")
    image.set_qform(AFFINE, "scanner")
    found.append(image)
  return found


@pytest.fixture
def files(volumes, tmp_path):
  paths = [str(tmp_path / f"{name}.nii.gz") for name in ("t1", "ct", "pet")]
  for path, image in zip(paths, volumes, strict=True):
    nibabel.save(image, path)
  return paths


def _fuse(*words) -> int:
  return main(["fuse", *map(str, words), "--model", "fake"])


def _load(path) -> np.ndarray:
  return np.asarray(nibabel.load(path).dataobj)


def _edges(affine, shape) -> np.ndarray:
  """Where the outer corners of the first and the last voxel lie."""
  return nibabel.affines.apply_affine(affine, [[-0.5] * 3, np.array(shape[:3]) - 0.5])


def test_the_result_lies_where_a_lies_in_finer_voxels(volumes, files, tmp_path, model, capsys):
  out = tmp_path / "fused.nii.gz"
  words = ["--lut", "hot", "--rgb", "4d", "--montage", tmp_path / "m.png", "--samples", 2]
  assert _fuse(*files, "-o", out, *WINDOWS, *words) == 0
  # Axial slices are those across the second axis here.
  rows, slices, columns = SHAPE
  image = nibabel.load(out)
  assert image.shape == (2 * rows, slices, 2 * columns)
  np.testing.assert_allclose(_edges(image.affine, image.shape), _edges(AFFINE, SHAPE), atol=1e-5)
  np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-5)
  codes = int(image.header["sform_code"]), int(image.header["qform_code"])
  assert codes == (4, 1)
  np.testing.assert_allclose(image.header.get_zooms(), (1, 3, 0.75))

  a, b, c = (np.asarray(volume.dataobj) for volume in volumes)
  half = scaling.to_uint8(c, (0, 510))
  sources = a[..., None], b[..., None], scaling.apply_lut(half, scaling.read_lut("hot"))
  coloured = np.rint(np.mean(np.broadcast_arrays(*sources), axis=0)).astype(np.uint8)
  coloured = coloured.repeat(2, 0).repeat(2, 2)
  coloured[:, -1] = 0  # black in all: is not fused
  rgb = nibabel.load(tmp_path / "fused_rgb.nii.gz")
  np.testing.assert_array_equal(np.asarray(rgb.dataobj), coloured)
  np.testing.assert_allclose(rgb.affine, image.affine)
  np.testing.assert_array_equal(_load(out), color.rgb_to_luma(coloured))
  std = nibabel.load(tmp_path / "fused_std.nii.gz")
  np.testing.assert_allclose(std.affine, image.affine)
  np.testing.assert_allclose(_load(tmp_path / "fused_std.nii.gz"), coloured[..., 0] / 9, rtol=1e-6)
  # Slices count from the foot, which is the end of the second axis.
  assert list(itertools.chain(*model.calls)) == [f"t1/axial/{i}" for i in range(1, slices)]

  record = json.loads((tmp_path / "fused.json").read_text())
  assert [record[f"window_{letter}"] for letter in "abc"] == [[0, 255], [0, 255], [0, 510]]
  assert "--window-c=0,510" in record["options"]
  assert "windows: A 0 to 255" in capsys.readouterr().err
  assert (tmp_path / "m.png").exists()

  with_name = fuse_volumes(model, [*volumes[:2], nibabel.Nifti1Image(half, AFFINE)], name="t1")
  np.testing.assert_allclose(with_name.affine, image.affine)
  assert with_name.shape[:3] == image.shape


def test_each_source_is_put_on_as_grid_or_named(volumes, files, tmp_path, model, capsys):
  other = nibabel.Nifti1Image(_load(files[2]), AFFINE @ np.diag([1, 1, 1.5, 1]))
  nibabel.save(other, files[2])
  out = tmp_path / "fused.nii.gz"
  assert _fuse(*files, "-o", out) == 1
  assert "A and C lie on different grids" in capsys.readouterr().err
  assert not out.exists()
  assert _fuse(*files, "-o", out, "--resample", "--save-b") == 0
  assert json.loads((tmp_path / "fused.json").read_text())["c_covers"] == 1
  moved = nibabel.load(tmp_path / "fused_resampled_c.nii.gz")
  assert moved.shape == SHAPE
  np.testing.assert_allclose(moved.affine, AFFINE)
  np.testing.assert_array_equal(_load(tmp_path / "fused_resampled.nii.gz"), _load(files[1]))


def test_three_folders_of_volumes(volumes, tmp_path, model, capsys):
  folders = []
  for name, volume in zip("abc", volumes, strict=True):
    folders.append(tmp_path / name)
    folders[-1].mkdir()
    for stem in "12" if name != "c" else "2":
      nibabel.save(volume, folders[-1] / f"{stem}.nii.gz")
  assert _fuse(*folders, "-o", tmp_path / "out") == 0
  assert listing(tmp_path / "out") == ["2.json", "2.nii.gz"]
  assert f"1.nii.gz (no volume 1 in {folders[2]})" in capsys.readouterr().err


def test_two_sources_have_no_third_window(files, tmp_path, capsys):
  with in_place(FakeModel()):
    assert _fuse(*files[:2], "-o", tmp_path / "f.nii.gz", "--window-c", "0,9") == 0
  assert "--window-c: there is no third source, no effect here" in capsys.readouterr().err


def test_series_become_a_finer_series_in_the_same_place(tmp_path, model, capsys):
  oblique = phantoms.oblique()
  series = [
    phantoms.write_series(tmp_path / name, 4, orientation=oblique, **tags)
    for name, tags in (("ct", {}), ("other", {}), ("pet", phantoms.pet_tags()))
  ]
  out = tmp_path / "fused"
  assert _fuse(*series, "-o", out) == 0
  source, result = read_dicom(series[0]), read_dicom(out)
  assert result.is_rgb
  assert result.shape == tuple(np.multiply(source.shape, (2, 2, 1)))
  np.testing.assert_allclose(
    _edges(result.affine, result.shape), _edges(source.affine, source.shape), atol=1e-3
  )
  # Across other axes there would be slices between those of the series.
  assert _fuse(*series, "-o", tmp_path / "more", "--axis", "0") == 1
  assert "slices are enlarged, and a DICOM series here has" in capsys.readouterr().err
  assert not (tmp_path / "more").exists()
