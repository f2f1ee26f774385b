"""Secondary Capture series: conformance, geometry, whole files, nobody else's files replaced."""

import shutil
import subprocess

import dicom_phantoms as phantoms
import numpy as np
import pydicom
import pytest
from dicom_phantoms import PATIENT, SECRETS, values
from pydicom.data import get_testdata_file

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import dicom


@pytest.fixture
def source(tmp_path):
  """An oblique CT of five slices."""
  series = phantoms.write_series(
    tmp_path / "ct", orientation=phantoms.oblique(), SliceLocation=lambda k: 3.5 * k
  )
  return dicom.read_dicom(series)


def _pictures(source, *channels):
  shape = (*source.shape, *channels)
  return np.random.default_rng(2).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "rgb"])
def test_round_trip_keeps_pictures_place_and_patient(tmp_path, source, channels):
  pictures = _pictures(source, *channels)
  paths = dicom.write_secondary_capture(tmp_path / "new" / "out", pictures, source)
  assert [path.name for path in paths] == [f"slice_000{i}.dcm" for i in range(1, 6)]
  assert sorted(path.name for path in (tmp_path / "new/out").iterdir()) == [p.name for p in paths]

  result = dicom.read_dicom(tmp_path / "new/out")
  np.testing.assert_array_equal(result.data, pictures)
  assert [frame.path for frame in result.source] == paths
  assert result.notes == ()
  assert result.window == (None if channels else (0, 255))
  corners = [[c, r, s] for s in (0, 4) for r in (0, 4) for c in (0, 6)]
  # A decimal string has 16 characters.
  np.testing.assert_allclose(
    phantoms.world(result, corners), phantoms.world(source, corners), atol=1e-9
  )
  np.testing.assert_allclose(result.affine, source.affine, atol=1e-9)

  for i, path in enumerate(paths):
    old, new = source.source[i].header, pydicom.dcmread(path)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID"):
      assert new[keyword].value == old[keyword].value
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "StudyDate", "AccessionNumber"):
      assert new[keyword].value == old[keyword].value
    for keyword in ("ImagePositionPatient", "PixelSpacing", "SliceThickness", "SliceLocation"):
      np.testing.assert_allclose(np.float64(new[keyword].value), np.float64(old[keyword].value))
    assert new.SpacingBetweenSlices == 3
    assert new.SOPClassUID.name == "Secondary Capture Image Storage"
    assert new.SOPInstanceUID == new.file_meta.MediaStorageSOPInstanceUID != old.SOPInstanceUID
    assert new.SeriesInstanceUID != old.SeriesInstanceUID
    assert list(new.ImageType) == ["DERIVED", "SECONDARY"]
    assert new.SeriesDescription == "dmfnet_jax fusion"
    assert (new.BurnedInAnnotation, new.InstanceNumber, new.SeriesNumber) == ("NO", i + 1, 1003)
    assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert "PatientAddress" not in new
    assert "InstitutionName" not in new
    ours = (new.SeriesDescription, new.DerivationDescription, path.name)
    assert not any(secret in text for text in ours for secret in SECRETS)
  assert len({pydicom.dcmread(path).SOPInstanceUID for path in paths}) == 5
  assert len({pydicom.dcmread(path).SeriesInstanceUID for path in paths}) == 1


def test_an_independent_validator_finds_no_error(tmp_path, source):
  """David Clunie's dciodvfy (Debian: dicom3tools), where it is installed."""
  if shutil.which("dciodvfy") is None:
    pytest.skip("no dciodvfy (dicom3tools) on this machine")
  for kind, channels in (("grey", ()), ("rgb", (3,))):
    paths = dicom.write_secondary_capture(tmp_path / kind, _pictures(source, *channels), source)
    report = subprocess.run(["dciodvfy", paths[0]], capture_output=True, text=True, check=False)
    assert "SCImage" in report.stderr
    assert "Error" not in report.stderr, report.stderr


def test_frames_are_referenced_by_number(tmp_path):
  ds = phantoms.enhanced(np.stack([values(i) for i in range(4)]), [2, 0, 3, 1], phantoms.oblique())
  source = dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))
  paths = dicom.write_secondary_capture(tmp_path / "out", _pictures(source), source)
  references = [pydicom.dcmread(path).SourceImageSequence[0] for path in paths]
  assert [reference.ReferencedFrameNumber for reference in references] == [2, 4, 1, 3]
  np.testing.assert_allclose(dicom.read_dicom(tmp_path / "out").affine, source.affine, atol=1e-9)


def test_pydicoms_ct_becomes_a_series_of_one(tmp_path):
  source = dicom.read_dicom(get_testdata_file("CT_small.dcm", download=False))
  pictures = _pictures(source)
  dicom.write_secondary_capture(tmp_path, pictures, source)
  result = dicom.read_dicom(tmp_path)
  np.testing.assert_array_equal(result.data, pictures)
  np.testing.assert_allclose(result.affine, source.affine)


def test_a_series_without_geometry_stays_without(tmp_path):
  phantoms.write_series(tmp_path / "in", ImagePositionPatient=None)
  source = dicom.read_dicom(tmp_path / "in")
  dicom.write_secondary_capture(tmp_path / "out", _pictures(source), source)
  result = dicom.read_dicom(tmp_path / "out")
  assert not result.placed
  assert all(frame.position is None for frame in result.source)
  np.testing.assert_array_equal(result.data, _pictures(source))


def test_values_of_the_source_are_copied_whatever_they_are(tmp_path, capfd, recwarn):
  """Long names, other alphabets, impossible dates: a header is not ours to mend, nor to show."""
  name, date = "Äöüß" + "Q" * 70 + "^日本", "1953/08/17"
  tags = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": name, "PatientID": "7" * 80}
  with pydicom.config.disable_value_validation():
    ds = phantoms.dataset(values(), PatientBirthDate=date, BurnedInAnnotation="YES", **tags)
  source = dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))
  paths = dicom.write_secondary_capture(tmp_path / "out", _pictures(source), source)
  assert capfd.readouterr() == ("", "")
  assert len(recwarn) == 0
  with pydicom.config.disable_value_validation():
    new = pydicom.dcmread(paths[0])
    assert str(new.PatientName) == name
    assert (new.PatientBirthDate, new.PatientID) == (date, "7" * 80)
    assert new.BurnedInAnnotation == "YES"  # what is written on the source may show in the result


def test_older_results_are_replaced_and_nothing_else(tmp_path, source):
  out = tmp_path / "out"
  pictures = _pictures(source)
  dicom.write_secondary_capture(out, pictures, source)
  dicom.write_secondary_capture(out, 255 - pictures, source)
  np.testing.assert_array_equal(dicom.read_dicom(out).data, 255 - pictures)

  (out / "note.txt").write_text("kept")
  before = {path: path.read_bytes() for path in out.iterdir()}
  shutil.copy(source.source[0].path, out / "other.dcm")
  with pytest.raises(UserError, match=r"other DICOM files \(other\.dcm\).*empty folder"):
    dicom.write_secondary_capture(out, pictures, source)
  (out / "other.dcm").unlink()
  assert {path: path.read_bytes() for path in out.iterdir()} == before

  # A source may have our names.
  shutil.copy(source.source[0].path, out / "slice_0001.dcm")
  with pytest.raises(UserError, match=r"slice_0001\.dcm"):
    dicom.write_secondary_capture(out, pictures, source)
  assert (out / "slice_0001.dcm").read_bytes() == source.source[0].path.read_bytes()


def test_a_failure_leaves_nothing(tmp_path, source, monkeypatch):
  written = []
  original = pydicom.Dataset.save_as

  def fail_at_the_third(self, *args, **kwargs):
    if len(written) == 2:
      raise OSError(28, "No space left on device")
    written.append(self)
    return original(self, *args, **kwargs)

  monkeypatch.setattr(pydicom.Dataset, "save_as", fail_at_the_third)
  with pytest.raises(UserError, match="cannot write: No space left on device"):
    dicom.write_secondary_capture(tmp_path / "out", _pictures(source), source)
  assert list((tmp_path / "out").iterdir()) == []
  assert pydicom.config.settings.writing_validation_mode != pydicom.config.IGNORE


def test_what_cannot_be_written(tmp_path, source):
  pictures = _pictures(source)
  for wrong in (pictures[..., :4], pictures[:-1], pictures.astype(np.float32), pictures[..., None]):
    with pytest.raises(ValueError, match="expected"):
      dicom.write_secondary_capture(tmp_path / "out", wrong, source)
  (tmp_path / "file").write_bytes(b"")
  with pytest.raises(UserError, match="cannot make this folder"):
    dicom.write_secondary_capture(tmp_path / "file", pictures, source)
  no_study = phantoms.save(tmp_path / "x.dcm", phantoms.dataset(values(), StudyInstanceUID=None))
  alone = dicom.read_dicom(no_study)
  with pytest.raises(UserError, match="lacks StudyInstanceUID"):
    dicom.write_secondary_capture(tmp_path / "out", _pictures(alone), alone)
  assert not list((tmp_path / "out").glob("*"))


def test_patient_is_not_in_what_is_shown(source):
  shown = repr(source) + str(source) + f"{source.notes}{source.source}"
  assert not any(secret in shown for secret in SECRETS)
  assert str(source.source[0].header.PatientName) == PATIENT["PatientName"]  # but it is there
