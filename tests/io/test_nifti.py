"""NIfTI files: values and places in, values and places out; broken files are in test_bad_input."""

import gzip

import nibabel
import numpy as np
import pytest

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import nifti

AFFINE = nibabel.affines.from_matvec(
  np.array([[-2, 0.1, 0], [0.1, 2, 0.2], [0, -0.2, 3]]), [10, -20, 5]
)
VALUES = np.random.default_rng(0).integers(-100, 4000, (5, 6, 7)).astype(np.int16)


def _save(path, data=VALUES, affine=AFFINE, kind=nibabel.Nifti1Image):
  image = kind(data, affine)
  nibabel.save(image, path)
  return path


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "u2", "i4", "f4", ">f4", "f8"])
def test_every_real_type(tmp_path, name, kind, dtype):
  values = np.clip(VALUES, 0, 100).astype(dtype)
  _save(tmp_path / name, values, kind=kind)
  volume = nifti.read_nifti(tmp_path / name)
  assert volume.data.dtype == np.float32
  np.testing.assert_array_equal(volume.data, values)
  np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
  assert volume.placed
  assert not volume.notes


def test_slope_and_intercept_are_applied(tmp_path):
  image = nibabel.Nifti1Image(VALUES, AFFINE)
  image.header.set_slope_inter(0.5, -3)
  nibabel.save(image, tmp_path / "x.nii")
  expected = nibabel.load(tmp_path / "x.nii").get_fdata()
  assert (np.abs(expected - VALUES) > 1).any()
  np.testing.assert_allclose(nifti.read_nifti(tmp_path / "x.nii").data, expected)


@pytest.mark.parametrize("shape", [(5, 6, 7, 1), (5, 6, 7, 1, 1)])
def test_dimensions_of_one_are_dropped(tmp_path, shape):
  _save(tmp_path / "x.nii", VALUES.reshape(shape))
  np.testing.assert_array_equal(nifti.read_nifti(tmp_path / "x.nii").data, VALUES)


def test_two_dimensions_are_one_slice(tmp_path):
  _save(tmp_path / "x.nii", VALUES[0])
  assert nifti.read_nifti(tmp_path / "x.nii").shape == (6, 7, 1)


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_colours(tmp_path, names):
  rgb = np.random.default_rng(0).integers(0, 256, (3, 4, 5, len(names)), np.uint8)
  stored = rgb.view([(name, "u1") for name in names])[..., 0]
  _save(tmp_path / "x.nii.gz", stored)
  volume = nifti.read_nifti(tmp_path / "x.nii.gz")
  assert volume.is_rgb
  np.testing.assert_array_equal(volume.data, rgb[..., :3])


def test_what_is_not_finite_is_no_signal(tmp_path):
  values = VALUES.astype(np.float32)
  values[0, 0, :3] = np.nan, np.inf, -np.inf
  _save(tmp_path / "x.nii", values)
  volume = nifti.read_nifti(tmp_path / "x.nii")
  lowest = values[np.isfinite(values)].min()
  np.testing.assert_array_equal(volume.data[0, 0, :3], lowest)
  np.testing.assert_array_equal(volume.data[1:], values[1:])
  (note,) = volume.notes
  assert note.startswith("3 voxels are NaN or infinite")


def test_the_content_tells_whether_it_is_compressed(tmp_path):
  _save(tmp_path / "x.nii.gz")
  data = gzip.decompress((tmp_path / "x.nii.gz").read_bytes())
  (tmp_path / "plain.nii.gz").write_bytes(data)
  (tmp_path / "packed.nii").write_bytes(gzip.compress(data))
  # Of two members, as pigz and bgzip write it.
  for cut in (100, 500):
    members = gzip.compress(data[:cut]) + gzip.compress(data[cut:])
    (tmp_path / f"members{cut}.nii.gz").write_bytes(members)
  for name in ("plain.nii.gz", "packed.nii", "members100.nii.gz", "members500.nii.gz"):
    np.testing.assert_array_equal(nifti.read_nifti(tmp_path / name).data, VALUES)


def test_places_that_are_unknown_or_contradict_are_noted(tmp_path):
  image = nibabel.Nifti1Image(VALUES, AFFINE)
  image.set_sform(None, 0)
  image.set_qform(None, 0)
  nibabel.save(image, tmp_path / "nowhere.nii")
  volume = nifti.read_nifti(tmp_path / "nowhere.nii")
  assert not volume.placed
  assert "does not say where it lies" in volume.notes[0]

  shifted = AFFINE.copy()
  shifted[0, 3] += 8
  image.set_sform(AFFINE, 1)
  image.set_qform(shifted, 1)
  nibabel.save(image, tmp_path / "two.nii")
  volume = nifti.read_nifti(tmp_path / "two.nii")
  np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
  assert "sform and qform differ by 8" in volume.notes[0]


def test_what_nibabel_mends_is_not_logged(tmp_path, caplog):
  data = bytearray(nibabel.Nifti1Image(VALUES, AFFINE).to_bytes())
  data[252:254] = b"\x63\0"  # qform_code
  (tmp_path / "x.nii").write_bytes(data)
  np.testing.assert_array_equal(nifti.read_nifti(tmp_path / "x.nii").data, VALUES)
  assert caplog.text == ""
  assert not nibabel.imageglobals.logger.disabled


@pytest.mark.parametrize("name", ["y.nii", "y.nii.gz"])
def test_what_is_written_lies_where_its_model_does(tmp_path, name):
  source = nibabel.Nifti1Image(VALUES, AFFINE)
  source.set_qform(AFFINE, 1)
  source.set_sform(AFFINE, 4)
  source.header.set_xyzt_units("mm", "sec")
  source.header.set_slope_inter(0.25, 7)
  nibabel.save(source, tmp_path / "x.nii")
  like = nifti.read_nifti(tmp_path / "x.nii")
  for data in (
    np.random.default_rng(0).integers(0, 256, VALUES.shape, np.uint8),
    np.random.default_rng(0).random(VALUES.shape).astype(np.float32),
  ):
    nifti.write_nifti(tmp_path / name, data, like)
    written = nibabel.load(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(written.dataobj), data)
    assert written.get_data_dtype() == data.dtype
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    original = nibabel.load(tmp_path / "x.nii").header
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "x.nii").affine)
    for field in ("pixdim", "qform_code", "sform_code", "srow_x", "quatern_b", "xyzt_units"):
      np.testing.assert_array_equal(written.header[field], original[field], err_msg=field)
    assert written.header["cal_min"] == 0


def test_the_same_data_give_the_same_bytes(tmp_path):
  like = nifti.read_nifti(_save(tmp_path / "x.nii"))
  data = VALUES.astype(np.uint8)
  for name in ("1.nii.gz", "2.nii.gz"):
    nifti.write_nifti(tmp_path / name, data, like)
  assert (tmp_path / "1.nii.gz").read_bytes() == (tmp_path / "2.nii.gz").read_bytes()


def test_nothing_that_could_name_a_patient_is_copied(tmp_path):
  image = nibabel.Nifti1Image(VALUES, AFFINE)
  for field, length in (("descrip", 40), ("aux_file", 20), ("intent_name", 12), ("db_name", 12)):
    image.header[field] = b"DOE^JANE"[:length]
  image.header.set_intent("estimate", (), name="DOE^JANE")
  image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
  nibabel.save(image, tmp_path / "x.nii")
  assert b"DOE^JANE" in (tmp_path / "x.nii").read_bytes()
  like = nifti.read_nifti(tmp_path / "x.nii")
  nifti.write_nifti(tmp_path / "y.nii", VALUES.astype(np.uint8), like)
  assert b"DOE" not in (tmp_path / "y.nii").read_bytes()
  assert nibabel.load(tmp_path / "y.nii").header["descrip"].item().startswith(b"dmfnet_jax")


def test_colours_are_written_as_rgb24(tmp_path):
  like = nifti.read_nifti(_save(tmp_path / "x.nii", kind=nibabel.Nifti2Image))
  rgb = np.random.default_rng(0).integers(0, 256, (*VALUES.shape, 3), np.uint8)
  nifti.write_nifti(tmp_path / "y.nii.gz", rgb, like)
  written = nibabel.load(tmp_path / "y.nii.gz")
  assert isinstance(written, nibabel.Nifti2Image)
  assert written.header["datatype"] == 128  # DT_RGB24
  assert written.shape == VALUES.shape
  np.testing.assert_array_equal(nifti.read_nifti(tmp_path / "y.nii.gz").data, rgb)


def test_a_volume_that_is_not_from_nifti_gets_a_header(tmp_path):
  for placed, code in ((True, 1), (False, 0)):
    like = nifti.Volume(VALUES.astype(np.float32), AFFINE, placed)
    nifti.write_nifti(tmp_path / "y.nii", VALUES.astype(np.uint8), like)
    written = nibabel.load(tmp_path / "y.nii")
    assert written.header["sform_code"] == written.header["qform_code"] == code
    assert written.header.get_xyzt_units()[0] == "mm"
    if placed:
      np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)


def test_a_folder_that_is_missing(tmp_path):
  like = nifti.read_nifti(_save(tmp_path / "x.nii"))
  with pytest.raises(UserError, match=r"y\.nii: cannot write: No such file"):
    nifti.write_nifti(tmp_path / "none" / "y.nii", VALUES.astype(np.uint8), like)
