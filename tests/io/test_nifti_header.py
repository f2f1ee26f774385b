"""NIfTI headers as other programs write them: units, rounded quaternions, qforms that are false."""

import nibabel
import numpy as np
import pytest

from dmfnet_jax.io import grids, nifti
from dmfnet_jax.io.grids import Volume

AFFINE = nibabel.affines.from_matvec(np.diag([-2.0, 2, 3]), [46, -50, -20])
VALUES = np.random.default_rng(0).integers(0, 4000, (5, 6, 7)).astype(np.int16)
KINDS = (nibabel.Nifti1Image, nibabel.Nifti2Image)


def _image(forms="sq", kind=nibabel.Nifti1Image, *, affine=AFFINE, big_endian=False):
  header = kind.header_class(endianness=">" if big_endian else "<")
  image = kind(VALUES.astype(">i2" if big_endian else "<i2"), affine, header)
  image.set_sform(affine if "s" in forms else None, 1 if "s" in forms else 0)
  image.set_qform(affine if "q" in forms else None, 1 if "q" in forms else 0)
  return image


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("forms", ["s", "q", "sq"])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(("unit", "of_mm"), [("micron", 1000), ("meter", 0.001)])
def test_a_place_in_another_unit_is_the_same_place(tmp_path, unit, of_mm, kind, forms, big_endian):
  scaled = _image(forms, kind, affine=np.diag([of_mm] * 3 + [1]) @ AFFINE, big_endian=big_endian)
  scaled.header.set_xyzt_units(unit, "sec")
  nibabel.save(scaled, tmp_path / "x.nii.gz")
  volume = nifti.read_nifti(tmp_path / "x.nii.gz")
  in_mm = nifti.from_image(_image())
  assert grids.difference(in_mm, volume) == ""
  np.testing.assert_array_equal(volume.data, VALUES)
  assert "places are taken in mm" in volume.notes[0]
  # The image in memory is taken alike, and what is written like it says mm.
  np.testing.assert_allclose(nifti.from_image(scaled).affine, AFFINE, atol=1e-4)
  nifti.write_nifti(tmp_path / "y.nii", volume.data, volume)
  written = nibabel.load(tmp_path / "y.nii")
  assert written.header.get_xyzt_units() == ("mm", "sec")
  np.testing.assert_allclose(written.affine, AFFINE, atol=1e-4)
  np.testing.assert_allclose(written.header.get_zooms(), [2, 2, 3], atol=1e-5)
  for form in (written.get_qform(coded=True), written.get_sform(coded=True)):
    assert form[0] is None or np.allclose(form[0], AFFINE, atol=1e-4)


@pytest.mark.parametrize("code", [0, 2])
def test_unknown_units_are_mm(tmp_path, code):
  image = _image()
  image.header["xyzt_units"] = code
  nibabel.save(image, tmp_path / "x.nii")
  volume = nifti.read_nifti(tmp_path / "x.nii")
  np.testing.assert_allclose(volume.affine, AFFINE)
  assert volume.notes == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sform", [0, 1])
@pytest.mark.parametrize(
  ("vector", "noted"),
  [((0, 1.0000005, 0), 0), ((0.6000003, 0.8000003, 0), 0), ((0, 1.2, 0), 1), ((0, -1.0001, 0), 0)],
)
def test_quaternions_that_are_too_long_are_turns_of_180_degrees(
  tmp_path, kind, vector, noted, sform
):
  image = _image("q", kind)
  image.set_sform(AFFINE if sform else None, sform)
  for letter, value in zip("bcd", vector, strict=True):
    image.header[f"quatern_{letter}"] = value
  image.header["pixdim"][0] = -1
  start = image.header.binaryblock  # nibabel would not write it
  (tmp_path / "x.nii").write_bytes(start + _image("q", kind).to_bytes()[len(start) :])
  volume = nifti.read_nifti(tmp_path / "x.nii")
  unit = np.array(vector) / np.linalg.norm(vector)
  turn = 2 * np.outer(unit, unit) - np.eye(3)
  expected = AFFINE[:3, :3] if sform else turn @ np.diag([2, 2, -3])
  np.testing.assert_allclose(volume.affine[:3, :3], expected, atol=1e-5)
  assert sum("quaternion" in note for note in volume.notes) == noted
  nifti.write_nifti(tmp_path / "y.nii", volume.data, volume)
  np.testing.assert_allclose(nibabel.load(tmp_path / "y.nii").affine, volume.affine, atol=1e-5)


SHEARED = AFFINE @ np.array([[1, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def _written(tmp_path, like):
  nifti.write_nifti(tmp_path / "y.nii.gz", VALUES.astype(np.uint8), like)
  image = nibabel.load(tmp_path / "y.nii.gz")
  np.testing.assert_allclose(image.affine, like.affine, atol=1e-4)
  assert nifti.read_nifti(tmp_path / "y.nii.gz").notes == ()
  return int(image.header["sform_code"]), int(image.header["qform_code"])


def test_a_qform_that_cannot_hold_the_place_has_the_code_0(tmp_path):
  """As of a tilted gantry: a qform holds no shear."""
  of_dicom = Volume(VALUES.astype(np.float32), SHEARED)
  assert _written(tmp_path, of_dicom) == (1, 0)
  assert "sform alone" in nifti.describe_place(of_dicom)
  of_nifti = _image()
  of_nifti.set_sform(SHEARED, 1)
  of_nifti = nifti.from_image(of_nifti)
  assert _written(tmp_path, of_nifti) == (1, 0)
  assert "sform alone" in nifti.describe_place(of_nifti)


@pytest.mark.parametrize("forms", ["s", "q", "sq"])
def test_places_without_shear_keep_their_codes(tmp_path, forms):
  like = nifti.from_image(_image(forms))
  assert _written(tmp_path, like) == ("s" in forms, "q" in forms)
  assert nifti.describe_place(like) == ""
  straight = Volume(VALUES.astype(np.float32), AFFINE)
  assert _written(tmp_path, straight) == (1, 1)
  assert nifti.describe_place(straight) == ""


def test_forms_of_two_codes_are_two_places_and_stay(tmp_path):
  image = _image("q")
  image.set_sform(SHEARED, 4)  # of a template
  like = nifti.from_image(image)
  nifti.write_nifti(tmp_path / "y.nii", VALUES.astype(np.uint8), like)
  header = nibabel.load(tmp_path / "y.nii").header
  assert (header["sform_code"], header["qform_code"]) == (4, 1)
  assert nifti.describe_place(like) == ""
