"""DICOM as scanners and programs write it beside the letter of the standard: values and kinds."""

import gzip
import pathlib

import dicom_phantoms as phantoms
import nibabel
import numpy as np
import pydicom
import pytest
from dicom_phantoms import slices, values
from pydicom import uid

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import dicom


def _read(tmp_path, stored, modality="CT", add=(), **tags):
  ds = phantoms.dataset(stored, modality, **tags)
  for tag in add:
    ds.add_new(*tag)
  return dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))


@pytest.mark.parametrize(
  ("dtype", "padded", "add"),
  [
    (np.int16, [-2000], [(0x00280120, "SS", -2000)]),
    (np.int16, [-2000], [(0x00280120, "US", 63536)]),
    (np.int16, [-2000], [(0x00280120, "OW", b"\x30\xf8")]),
    (np.int16, [-2000], [(0x00280120, "UN", b"\x30\xf8")]),
    (np.uint16, [63536], [(0x00280120, "SS", -2000)]),
    (np.int16, [-2000, -1990], [(0x00280120, "US", 63536), (0x00280121, "US", 63546)]),
    (np.int16, [-2000, -1990], [(0x00280120, "SS", -1990), (0x00280121, "US", 63536)]),
    (np.uint16, [65535, 65000], [(0x00280120, "SS", -1), (0x00280121, "SS", -536)]),
  ],
)
def test_padding_is_known_whatever_sign_its_tag_is_written_with(tmp_path, dtype, padded, add):
  stored = values(dtype=dtype, low=10, high=1000)
  lowest = stored.min()
  stored[0, : len(padded)] = padded
  found = slices(_read(tmp_path, stored, add=add, RescaleIntercept=0))[0]
  np.testing.assert_array_equal(found[0, : len(padded)], lowest)
  assert found.max() < 1000


@pytest.mark.parametrize("vr", ["US", "SS", "OW"])
def test_padding_of_a_big_endian_file(tmp_path, vr):
  stored = values(dtype=np.int16, low=10, high=1000)
  lowest = stored.min()
  stored[0, 0] = -2000
  ds = phantoms.dataset(stored, syntax=uid.ExplicitVRBigEndian, RescaleIntercept=0)
  ds.PixelData = stored.astype(">i2").tobytes()
  ds.add_new(0x00280120, vr, {"US": 63536, "SS": -2000, "OW": b"\xf8\x30"}[vr])
  volume = dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))
  assert slices(volume)[0][0, 0] == lowest
  assert slices(volume).max() < 1000


def test_bright_values_are_no_padding(tmp_path):
  """4095 of 12 bits is not 65535, of which it has the low bits."""
  stored = values(dtype=np.uint16, low=4000, high=4096)
  tags = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": 0, "PixelPaddingValue": 65535}
  np.testing.assert_array_equal(slices(_read(tmp_path, stored, **tags))[0], stored)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("scale", [257, 256, 1])
def test_palette_entries_of_16_bits_that_fit_8_are_colours_of_8(tmp_path, scale, big_endian):
  colours = np.random.default_rng(0).integers(0, 256, (256, 3))
  colours[255] = 255
  index = np.arange(256, dtype=np.uint8).reshape(16, 16)[:, :10].copy()  # not the brightest ones
  syntax = uid.ExplicitVRBigEndian if big_endian else uid.ExplicitVRLittleEndian
  tags = {"PhotometricInterpretation": "PALETTE COLOR", "RescaleSlope": None}
  ds = phantoms.dataset(index, "OT", syntax, RescaleIntercept=None, **tags)
  for i, colour in enumerate(("Red", "Green", "Blue")):
    setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
    entries = (colours[:, i] * scale).astype(">u2" if big_endian else "<u2").tobytes()
    setattr(ds, f"{colour}PaletteColorLookupTableData", entries)
    ds[f"{colour}PaletteColorLookupTableData"].VR = "OW"
  volume = dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))
  np.testing.assert_array_equal(slices(volume)[0], colours[index])


def _mosaic(ds, count):
  block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
  block.add_new(0x0A, "US", count)
  return ds


MOSAIC = {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}


def test_mosaics_are_refused_where_the_scanner_counts_the_slices(tmp_path):
  ds = _mosaic(phantoms.dataset(values(rows=12, columns=18), "MR", **MOSAIC), 6)  # 3 x 3 tiles
  with pytest.raises(UserError, match=r"Siemens mosaic of 6 slices .*dcm2niix"):
    dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))
  ds = _mosaic(phantoms.dataset(values(rows=12, columns=18), "MR", **MOSAIC), 1)
  assert dicom.read_dicom(phantoms.save(tmp_path / "y.dcm", ds)).notes == ()


def test_a_mosaic_of_a_scanner_is_refused(tmp_path):
  """One of nibabel's own test files, whose number of slices is in the CSA header alone."""
  folder = pathlib.Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
  if not (folder / "siemens_dwi_0.dcm.gz").exists():
    pytest.skip("nibabel is installed without its tests")
  (tmp_path / "x.dcm").write_bytes(gzip.decompress((folder / "siemens_dwi_0.dcm.gz").read_bytes()))
  with pytest.raises(UserError, match="Siemens mosaic of 48 slices"):
    dicom.read_dicom(tmp_path / "x.dcm")


def test_mosaics_by_image_type_alone_are_noted_where_tiles_may_be(tmp_path):
  stored = values(rows=80, columns=132)
  assert "mosaic" in _read(tmp_path, stored, "MR", **MOSAIC).notes[0]
  tiled = _read(tmp_path, stored, "MR", **MOSAIC, AcquisitionMatrix=[0, 40, 44, 0])
  assert "mosaic" in tiled.notes[0]
  whole = _read(tmp_path, stored, "MR", **MOSAIC, AcquisitionMatrix=[0, 80, 132, 0])
  assert whole.notes == ()
  # One file a slice, each at its own place: no mosaics, whatever ImageType says.
  series = phantoms.write_series(tmp_path / "series", modality="MR", **MOSAIC)
  assert dicom.read_dicom(series).notes == ()


def _enhanced_pet(**changes):
  """Frames with slopes of their own, in Bq/ml, and the dose one half life before the scan."""
  stored = values(rows=15).reshape(3, 5, 7)
  unit, dose = pydicom.Dataset(), pydicom.Dataset()
  unit.CodeValue, unit.CodingSchemeDesignator = changes.pop("unit", "Bq/ml"), "UCUM"
  dose.RadionuclideTotalDose = changes.pop("dose", 4e8)
  dose.RadionuclideHalfLife, dose.RadiopharmaceuticalStartDateTime = 3600, "20240229080000"
  base = {
    "Modality": "PT",
    "SOPClassUID": uid.EnhancedPETImageStorage,
    "DecayCorrected": "YES",
    "AttenuationCorrected": "YES",
    "DecayCorrectionDateTime": "20240229090000",
    "RadiopharmaceuticalInformationSequence": [dose],
    "PatientWeight": 80,
  }
  ds = phantoms.enhanced(stored, [0, 1, 2], **(base | changes))
  for i, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
    real = pydicom.Dataset()
    real.RealWorldValueSlope, real.RealWorldValueIntercept = i + 1.0, 0.0
    real.MeasurementUnitsCodeSequence = [unit]
    frame.RealWorldValueMappingSequence = [real]
    frame.PixelValueTransformationSequence[0].RescaleIntercept = 0
    frame.PixelValueTransformationSequence[0].RescaleType = "US"
  return stored * np.array([1, 2, 3])[:, None, None], ds


@pytest.mark.parametrize("dose", [4e8, 400])  # Bq, and MBq as the standard has it
@pytest.mark.parametrize("unit", ["Bq/ml", "Bq/mL"])
def test_enhanced_pet_becomes_suv(tmp_path, dose, unit):
  activity, ds = _enhanced_pet(dose=dose, unit=unit)
  volume = dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))
  assert volume.unit == "SUV"
  np.testing.assert_allclose(slices(volume), activity * (80_000 / 2e8), rtol=1e-6)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"DecayCorrected": "NO"}, "DecayCorrected is not YES"),
    ({"DecayCorrected": None}, "DecayCorrected is not YES"),
    ({"AttenuationCorrected": "NO"}, "AttenuationCorrected is not YES"),
    ({"DecayCorrectionDateTime": None}, "no DecayCorrectionDateTime"),
    ({"PatientWeight": None}, "no PatientWeight"),
    ({"unit": "{counts}/s"}, r"Units {counts}/s, and SUV needs BQML"),
  ],
)
def test_enhanced_pet_without_suv_says_why(tmp_path, changes, says):
  activity, ds = _enhanced_pet(**changes)
  volume = dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))
  assert volume.unit != "SUV"
  assert any(says in note for note in volume.notes), volume.notes
  np.testing.assert_allclose(slices(volume), activity, rtol=1e-6)
