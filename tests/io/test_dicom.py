"""Reading DICOM series into volumes: order, geometry, units, windows, SUV."""

import dicom_phantoms as phantoms
import numpy as np
import pydicom
import pytest
from dicom_phantoms import COLUMNS, ROWS, SECRETS, slices, values
from pydicom.data import get_testdata_file

from dmfnet_jax.io import dicom, grids

ORIENTATIONS = {
  "axial": (1, 0, 0, 0, 1, 0),
  "sagittal": (0, 1, 0, 0, 0, -1),
  "oblique": phantoms.oblique(),
}


def _read(tmp_path, stored, modality="CT", **tags):
  path = phantoms.save(tmp_path / "x.dcm", phantoms.dataset(stored, modality, **tags))
  return dicom.read_dicom(path)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_series_is_sorted_along_its_normal_and_lies_where_its_tags_say(tmp_path, name):
  orientation = np.asarray(ORIENTATIONS[name], float)
  volume = dicom.read_dicom(phantoms.write_series(tmp_path, orientation=orientation))

  expected = np.stack([values(k) for k in range(5)]).astype(np.float32) - 1024
  np.testing.assert_array_equal(slices(volume), expected)
  assert volume.data.dtype == np.float32
  assert (volume.unit, volume.window, volume.notes) == ("HU", None, ())
  assert volume.placed
  datasets = [frame.header for frame in volume.source]
  assert [ds.InstanceNumber for ds in datasets] == [5, 4, 3, 2, 1]
  assert not any("PixelData" in ds for ds in datasets)

  # The equation of PS3.3 C.7.6.2.1.1 for each corner, from the tags of each slice by itself.
  for s in (0, 4):
    ds = datasets[s]
    for r in (0, ROWS - 1):
      for c in (0, COLUMNS - 1):
        place = np.array(ds.ImagePositionPatient, float)
        place += np.array(ds.ImageOrientationPatient[:3], float) * ds.PixelSpacing[1] * c
        place += np.array(ds.ImageOrientationPatient[3:], float) * ds.PixelSpacing[0] * r
        np.testing.assert_allclose(phantoms.world(volume, [c, r, s]), place, atol=1e-9)
        ras = (volume.affine @ [c, r, s, 1])[:3]
        np.testing.assert_allclose(ras * [-1, -1, 1], place, atol=1e-6)


@pytest.mark.parametrize(
  ("tags", "order"),
  [
    ({"SliceLocation": lambda k: 100 - k}, [4, 3, 2, 1, 0]),
    ({"SliceLocation": lambda k: 7}, [4, 3, 2, 1, 0]),  # all the same: InstanceNumber decides
    ({"InstanceNumber": lambda k: [3, 1, 5, 2, 4][k]}, [1, 3, 0, 4, 2]),
  ],
)
def test_without_positions_the_order_falls_back_and_geometry_is_unknown(tmp_path, tags, order):
  phantoms.write_series(tmp_path, ImagePositionPatient=None, **tags)
  volume = dicom.read_dicom(tmp_path)
  expected = np.stack([values(k) for k in order]).astype(np.float32) - 1024
  np.testing.assert_array_equal(slices(volume), expected)
  assert volume.positions is None
  assert not volume.placed
  assert "no geometry" in volume.notes[0]


def test_without_any_order_file_names_decide(tmp_path):
  phantoms.write_series(tmp_path, ImageOrientationPatient=None, InstanceNumber=None)
  volume = dicom.read_dicom(tmp_path)
  assert [frame.path.name for frame in volume.source] == [f"IM{i:04d}" for i in range(5)]
  assert "file names" in volume.notes[0]


def test_gaps_and_tilt_are_noted(tmp_path):
  phantoms.write_series(tmp_path / "gap", count=6)
  volume = dicom.read_dicom(tmp_path / "gap")
  volume.source[2].path.unlink()
  gap = dicom.read_dicom(tmp_path / "gap")
  assert gap.notes == ("a gap after slice 2: 1 image missing (slices are 3 mm apart)",)
  assert not gap.placed  # a NIfTI of it would lie wrong
  np.testing.assert_allclose(phantoms.world(gap, [0, 0, 2]), phantoms.world(volume, [0, 0, 3]))
  np.testing.assert_allclose(gap.positions[2], (volume.affine @ [0, 0, 3, 1])[:3])

  positions = {"ImagePositionPatient": lambda k: [0, 1.0 * k, 3.0 * k]}
  tilted = dicom.read_dicom(phantoms.write_series(tmp_path / "tilted", **positions))
  assert "angle of 18.4 degrees" in tilted.notes[0]
  np.testing.assert_allclose(tilted.affine[:3, 2], [0, -1, 3])


def test_one_slice_lies_as_thick_as_its_spacing_says(tmp_path):
  one = _read(tmp_path, values(), SpacingBetweenSlices=6)
  assert one.shape == (COLUMNS, ROWS, 1)
  np.testing.assert_allclose(one.affine[:3, 2], [0, 0, 6])
  np.testing.assert_allclose(_read(tmp_path, values()).affine[:3, 2], [0, 0, 4])
  assert not _read(tmp_path, values(), SliceThickness=None).placed


def test_copies_and_hidden_files_are_left_out(tmp_path):
  phantoms.write_series(tmp_path)
  (tmp_path / "again.dcm").write_bytes((tmp_path / "IM0003").read_bytes())
  (tmp_path / ".DS_Store").write_bytes(b"anything")
  (tmp_path / "notes").mkdir()
  volume = dicom.read_dicom(str(tmp_path))
  assert volume.shape[2] == 5
  assert volume.notes == ("again.dcm is left out: the same image as IM0003 (SOP Instance UID)",)


def test_12_bit_signed_values_whatever_the_unused_bits_hold(tmp_path):
  stored = values(low=-2048, high=2048)
  dirty = (stored & 0x0FFF) | np.int16(0x5000)
  volume = _read(tmp_path, dirty, BitsStored=12, HighBit=11, RescaleIntercept=0)
  np.testing.assert_array_equal(slices(volume)[0], stored)
  unsigned = values(low=0, high=4096, dtype=np.uint16)
  volume = _read(tmp_path, unsigned | np.uint16(0xA000), BitsStored=12, HighBit=11)
  np.testing.assert_array_equal(slices(volume)[0], unsigned.astype(np.float32) - 1024)


@pytest.mark.parametrize("inverted", [False, True])
def test_float_pixels_lose_what_is_no_number(tmp_path, inverted):
  stored = values().astype(np.float32)
  stored[0, :3] = np.nan, np.inf, -np.inf
  tags = {"PixelRepresentation": None, "BitsStored": None, "HighBit": None}
  kind = "MONOCHROME1" if inverted else "MONOCHROME2"
  ds = phantoms.dataset(stored, "MR", PhotometricInterpretation=kind, **tags)
  del ds.PixelData
  ds.FloatPixelData = stored.tobytes()
  volume = dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))
  expected = np.float32(2**32 - 1 - stored.astype(np.float64)) if inverted else stored
  np.testing.assert_array_equal(slices(volume)[0, 1:], expected[1:])
  assert (slices(volume)[0, 0, :3] == expected[np.isfinite(expected)].min()).all()
  assert "no finite numbers" in volume.notes[0]


RESCALES = [
  # modality, tags, expected (slope, intercept), unit, part of a note
  ("CT", {}, (1, -1024), "HU", None),
  ("CT", {"RescaleSlope": "2.5"}, (2.5, -1024), "HU", None),
  ("CT", {"RescaleSlope": None}, (1, -1024), "HU", "no RescaleSlope"),
  ("CT", {"RescaleIntercept": None}, (1, 0), "HU", "no RescaleIntercept"),
  ("CT", {"RescaleSlope": "0"}, (1, -1024), "HU", "RescaleSlope is 0"),
  ("CT", {"RescaleSlope": None, "RescaleIntercept": None}, (1, 0), "a.u.", "stored values"),
  ("CT", {"RescaleType": "US"}, (1, -1024), "a.u.", None),
  ("MR", {}, (1, 0), "a.u.", None),
  (
    "MR",
    {"RescaleSlope": "0.5", "RescaleIntercept": "3", "RescaleType": "ms"},
    (0.5, 3),
    "MS",
    None,
  ),
]


@pytest.mark.parametrize(("modality", "tags", "linear", "unit", "note"), RESCALES)
def test_rescale(tmp_path, modality, tags, linear, unit, note):
  volume = _read(tmp_path, values(), modality, **tags)
  np.testing.assert_allclose(slices(volume)[0], values() * linear[0] + linear[1])
  assert volume.unit == unit
  assert [note in line for line in volume.notes] == [True] if note else volume.notes == ()


def test_values_that_are_no_numbers_count_as_missing(tmp_path):
  tags = {"RescaleSlope": "1.0987654", "WindowCenter": "40.111", "WindowWidth": "400"}
  path = phantoms.save(tmp_path / "x.dcm", phantoms.dataset(values(), **tags))
  path.write_bytes(
    path.read_bytes().replace(b"1.0987654", b"nonsense!").replace(b"40.111", b"NaN   ")
  )
  volume = dicom.read_dicom(path)
  np.testing.assert_array_equal(slices(volume)[0], values() - 1024)
  assert volume.window is None
  assert volume.notes == ("no RescaleSlope: taken as 1",)


def test_slopes_may_differ_between_slices(tmp_path):
  phantoms.write_series(tmp_path, RescaleSlope=lambda k: k + 1)
  volume = dicom.read_dicom(tmp_path)
  for k in range(5):
    np.testing.assert_array_equal(slices(volume)[k], values(k).astype(float) * (k + 1) - 1024)


def _real_world(code, slope=0.5, intercept=2.0):
  unit, mapping = pydicom.Dataset(), pydicom.Dataset()
  unit.CodeValue, unit.CodingSchemeDesignator = code, "UCUM"
  mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = slope, intercept
  mapping.MeasurementUnitsCodeSequence = [unit]
  return [mapping]


def test_real_world_values_where_there_is_no_rescale(tmp_path):
  real = {"RealWorldValueMappingSequence": _real_world("ms")}
  volume = _read(tmp_path, values(), "MR", WindowCenter=500, WindowWidth=1000, **real)
  np.testing.assert_allclose(slices(volume)[0], values() * 0.5 + 2)
  assert volume.unit == "ms"
  assert volume.window == (2.0, 501.5)  # 0..999 in stored values
  assert _read(tmp_path, values(), **real).unit == "HU"  # the rescale tags come first
  plain = {"RescaleSlope": None, "RescaleIntercept": None}
  hounsfield = {"RealWorldValueMappingSequence": _real_world("[hnsf'U]")}
  assert _read(tmp_path, values(), **(hounsfield | plain)).unit == "HU"
  suv = {"RealWorldValueMappingSequence": _real_world("{SUVbw}g/ml", 0.01, 0)}
  pet = _read(tmp_path, values(), **(phantoms.pet_tags(Units="CNTS") | suv))
  assert pet.unit == "SUV"
  np.testing.assert_allclose(slices(pet)[0], values() * 0.01, rtol=1e-6)


def test_modality_lookup_table(tmp_path):
  lut = pydicom.Dataset()
  lut.LUTDescriptor, lut.LUTData = [1000, 0, 16], list(range(2000, 0, -2))
  lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
  tags = {"ModalityLUTSequence": [lut], "RescaleSlope": None, "RescaleIntercept": None}
  unsigned = values(dtype=np.uint16)
  np.testing.assert_array_equal(
    slices(_read(tmp_path, unsigned, "CR", **tags))[0], 2000.0 - 2 * unsigned
  )


def test_monochrome1_is_inverted_within_its_stored_range(tmp_path):
  ds = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 1000.5, "WindowWidth": 1001}
  plain = {"RescaleSlope": None, "RescaleIntercept": None}
  stored = values(low=0, high=4096, dtype=np.uint16)
  volume = _read(tmp_path, stored, "CR", BitsStored=12, HighBit=11, **(ds | plain))
  np.testing.assert_array_equal(slices(volume)[0], 4095.0 - stored)
  assert volume.window == (4095 - 1500, 4095 - 500)  # as far from white as it was from black
  signed = _read(tmp_path, values(), "CR", **(ds | plain))
  np.testing.assert_array_equal(slices(signed)[0], -1.0 - values())
  ct = _read(tmp_path, stored, BitsStored=12, HighBit=11, **ds)
  np.testing.assert_array_equal(slices(ct)[0], (4095.0 - stored) - 1024)
  assert ct.unit == "a.u."  # no longer Hounsfield units, and said so
  assert "no longer HU" in ct.notes[0]
  pet = _read(tmp_path, values(), **phantoms.pet_tags(PhotometricInterpretation="MONOCHROME1"))
  np.testing.assert_allclose(slices(pet)[0], values() * SUV, rtol=1e-5)


def test_padding_takes_the_lowest_value_beside_it(tmp_path):
  stored = values()
  stored[0], stored[1, 0] = -2000, -1990
  one = _read(tmp_path, stored, PixelPaddingValue=-2000)
  assert (slices(one)[0, 0] == -1990 - 1024).all()
  several = _read(tmp_path, stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
  assert slices(several)[0].min() == stored[1:, 1:].min() - 1024
  # Nothing but padding: nothing to be taken.
  assert _read(tmp_path, np.full((2, 2), -9, np.int16), PixelPaddingValue=-9).data.max() == -1033


WINDOWS = [
  ({"WindowCenter": 40, "WindowWidth": 400}, (-160, 239)),
  ({"WindowCenter": [40, 600], "WindowWidth": [400, 2000]}, (-160, 239)),
  ({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"}, (-160, 240)),
  ({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"}, (-160, 240)),
  ({"WindowCenter": 40}, None),
  ({"WindowCenter": 40, "WindowWidth": 1}, None),
  ({"WindowCenter": 40, "WindowWidth": -5}, None),
]


@pytest.mark.parametrize(("tags", "window"), WINDOWS)
def test_window(tmp_path, tags, window):
  assert _read(tmp_path, values(), **tags).window == window


def test_windows_of_slices_and_lookup_tables(tmp_path):
  tags = {"WindowCenter": 40, "WindowWidth": lambda k: [400, 401, 800, 401, 90][k]}
  volume = dicom.read_dicom(phantoms.write_series(tmp_path, **tags))
  assert volume.window == (-160.5, 239.5)
  assert "medians" in volume.notes[0]
  lut = pydicom.Dataset()
  lut.LUTDescriptor, lut.LUTData = [256, 100, 8], list(range(256))
  lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
  assert _read(tmp_path, values(), VOILUTSequence=[lut]).window == (100, 355)


# 400 MBq after two half lives are 100 MBq; with 61.25 kg 1 Bq/ml is 61250 g / 1e8 Bq = 6.125e-4.
SUV = 6.125e-4
LATE = {"SeriesTime": "113000", "AcquisitionTime": "100300"}
# A frame of d = 120 s from 180 s on. Its average count rate comes a little before its middle: with
# l = ln 2 / 3600 s the series d / 2 - l d^2 / 24 of the formula's logarithm gives 59.8845 s.
REFERENCE = {"FrameReferenceTime": 180000 + 59884.5, "ActualFrameDuration": 120000}
PETS = [
  # tags, factor to SUV (None: stays as it is), unit, part of the note
  ({}, SUV, "SUV", "START, from SeriesTime"),
  ({"DecayCorrection": "ADMIN"}, SUV / 4, "SUV", "ADMIN"),
  ({"RadiopharmaceuticalStartDateTime": "20240229080000.00"}, SUV, "SUV", "START"),
  # The scan's clock is an hour ahead of the one that stamped the injection.
  (
    {
      "RadiopharmaceuticalStartDateTime": "20240229080000.00+0000",
      "TimezoneOffsetFromUTC": "+0100",
    },
    SUV / 2,
    "SUV",
    "START",
  ),
  # Injected before midnight.
  (
    {"RadiopharmaceuticalStartTime": "2330", "SeriesTime": "0130", "AcquisitionTime": "0200"},
    SUV,
    "SUV",
    "START",
  ),
  (LATE | REFERENCE, SUV, "SUV", "FrameReferenceTime"),
  ({"SeriesTime": None} | REFERENCE | {"AcquisitionTime": "100300"}, SUV, "SUV", "FrameReference"),
  ({"AcquisitionTime": None, "AcquisitionDate": None}, SUV, "SUV", "SeriesTime"),
  (LATE, None, "BQML", "SeriesTime is missing or after the scan"),
  ({"Units": "GML"}, 1, "SUV", "GML"),
  ({"Units": "GML", "SUVType": "LBM"}, None, "GML", "SUVType LBM"),
  ({"Units": "CNTS"}, None, "CNTS", "without the scanner's factors"),
  ({"Units": None}, None, "a.u.", "Units is missing"),
  ({"Units": "PROPCPS"}, None, "PROPCPS", "needs BQML"),
  ({"DecayCorrection": "NONE"}, None, "BQML", "DecayCorrection NONE"),
  ({"CorrectedImage": ["DECY"]}, None, "BQML", "ATTN"),
  ({"CorrectedImage": None}, None, "BQML", "ATTN"),
  ({"PatientWeight": None}, None, "BQML", "no PatientWeight"),
  ({"PatientWeight": "0"}, None, "BQML", "no PatientWeight"),
  ({"RadionuclideTotalDose": None}, None, "BQML", "no RadionuclideTotalDose"),
  ({"RadionuclideTotalDose": 400}, None, "BQML", "too small"),  # in MBq
  ({"RadionuclideHalfLife": None}, None, "BQML", "no RadionuclideHalfLife"),
  ({"RadiopharmaceuticalStartTime": None}, None, "BQML", "no RadiopharmaceuticalStartDateTime"),
  ({"RadiopharmaceuticalStartTime": "2599"}, None, "BQML", "no RadiopharmaceuticalStartDateTime"),
  ({"RadiopharmaceuticalStartDateTime": "20190101080000"}, None, "BQML", "do not belong together"),
  ({"RadiopharmaceuticalInformationSequence": None}, None, "BQML", "no RadionuclideTotalDose"),
]


@pytest.mark.parametrize(("tags", "factor", "unit", "note"), PETS)
def test_pet_becomes_suv_where_the_tags_allow(tmp_path, tags, factor, unit, note):
  with pydicom.config.disable_value_validation():
    tags = phantoms.pet_tags(WindowCenter=500, WindowWidth=1001, **tags)
    volume = _read(tmp_path, values(), **tags)
  assert volume.unit == unit
  # Only what is not as it should be is a note.
  (told,) = volume.notes if factor is None else (volume.unit_from,)
  assert note in told
  assert bool(volume.notes) == (factor is None)
  factor = 1 if factor is None else factor
  np.testing.assert_allclose(slices(volume)[0], values() * factor, rtol=1e-5)
  np.testing.assert_allclose(volume.window, (-0.5 * factor, 999.5 * factor), rtol=1e-5)
  assert not any(secret in told for secret in SECRETS)


def test_pet_of_scanners_with_private_tags(tmp_path):
  ds = phantoms.dataset(values(), **phantoms.pet_tags(Units="CNTS", RescaleSlope=2))
  block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
  block.add_new(0x09, "DS", "3")  # counts to Bq/ml
  volume = dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))
  np.testing.assert_allclose(slices(volume)[0], values() * 6 * SUV, rtol=1e-5)
  block.add_new(0x00, "DS", "0.25")  # counts to SUV
  ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
  volume = dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))
  np.testing.assert_allclose(slices(volume)[0], values() * 0.5, rtol=1e-5)

  ge = phantoms.dataset(values(), **phantoms.pet_tags(**LATE))
  block = ge.private_block(0x0009, "GEMS_PETD_01", create=True)
  block.add_new(0x0D, "DT", "20240229100000.00")
  volume = dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ge))
  np.testing.assert_allclose(slices(volume)[0], values() * SUV, rtol=1e-5)
  assert "GE" in volume.unit_from


def test_pet_series_starts_with_its_first_bed_position(tmp_path):
  """SeriesTime after some acquisitions but not all: a series made later, as for one image."""
  tags = phantoms.pet_tags(SeriesTime="100500", **REFERENCE)
  tags |= {"AcquisitionTime": lambda k: ["101000", "100300", "101000"][k]}
  volume = dicom.read_dicom(phantoms.write_series(tmp_path, count=3, **tags))
  assert "FrameReferenceTime" in volume.unit_from
  np.testing.assert_allclose(slices(volume)[1], values(1) * SUV, rtol=1e-5)


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_enhanced_multiframe(tmp_path, orientation):
  stored, order = np.stack([values(i) for i in range(4)]), [2, 0, 3, 1]
  ds = phantoms.enhanced(stored, order, orientation)
  volume = dicom.read_dicom(phantoms.save(tmp_path / "x.dcm", ds))
  assert [frame.index for frame in volume.source] == [1, 3, 0, 2]
  for s, i in enumerate([1, 3, 0, 2]):
    np.testing.assert_array_equal(slices(volume)[s], stored[i].astype(float) * (i + 1) - 10 * i)
  assert (volume.unit, volume.window, volume.notes) == ("HU", (-160, 239), ())
  flat = phantoms.write_series(tmp_path / "flat", 4, orientation=orientation)
  np.testing.assert_allclose(volume.affine, dicom.read_dicom(flat).affine, atol=1e-6)


@pytest.mark.parametrize("spacing", [3.0, -3.0])
def test_nuclear_medicine_stacks_by_the_sign_of_its_spacing(tmp_path, spacing):
  detector = pydicom.Dataset()
  detector.ImagePositionPatient = [-30.5, -20.25, 12.0]
  detector.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
  tags = {"DetectorInformationSequence": [detector], "SpacingBetweenSlices": spacing}
  tags |= {"ImagePositionPatient": None, "ImageOrientationPatient": None}
  tags |= {"ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]}
  stored = np.stack([values(i) for i in range(3)])
  volume = _read(tmp_path, stored, "NM", RescaleSlope=None, RescaleIntercept=None, **tags)
  order = [0, 1, 2] if spacing > 0 else [2, 1, 0]
  assert [frame.index for frame in volume.source] == order
  np.testing.assert_array_equal(slices(volume), stored[order].astype(np.float32))
  heights = [frame.position[2] for frame in volume.source]
  np.testing.assert_allclose(heights, sorted(12 + spacing * i for i in range(3)))


def test_frames_that_no_tag_places_have_no_geometry(tmp_path):
  """One position for a heart's gated phases or an ultrasound's times does not stack them."""
  stored = np.stack([values(i) for i in range(3)])
  gated = {"ImageType": ["ORIGINAL", "PRIMARY", "RECON GATED TOMO"], "SpacingBetweenSlices": 3}
  volume = _read(tmp_path, stored, "NM", **gated)
  assert all(frame.position is None for frame in volume.source)
  assert not volume.placed
  assert "order of the file" in volume.notes[0]


@pytest.mark.parametrize(
  ("offsets", "orientation", "z"),
  [
    ([0, 2, 4], (1, 0, 0, 0, 1, 0), [12, 14, 16]),
    ([12, 10, 8], (1, 0, 0, 0, 1, 0), [8, 10, 12]),
    ([12, 10, 8], (1, 0, 0, 0, -1, 0), [12, 10, 8]),  # each frame's own z
  ],
)
def test_dose_frames_lie_at_their_offsets(tmp_path, offsets, orientation, z):
  tags = {"GridFrameOffsetVector": offsets, "ImageOrientationPatient": list(orientation)}
  tags |= {"RescaleSlope": None, "RescaleIntercept": None, "DoseGridScaling": 0.25}
  stored = np.stack([values(i) for i in range(3)])
  volume = _read(tmp_path, stored, "RTDOSE", DoseUnits="GY", **tags)
  np.testing.assert_allclose([frame.position[2] for frame in volume.source], z)
  order = [frame.index for frame in volume.source]
  np.testing.assert_array_equal(slices(volume), stored[order] * 0.25)
  assert volume.unit == "GY"


def test_colour(tmp_path):
  rgb = np.random.default_rng(1).integers(0, 256, (ROWS, COLUMNS, 3)).astype(np.uint8)
  volume = _read(tmp_path, rgb, "OT")
  assert volume.is_rgb
  assert volume.data.dtype == np.uint8
  assert volume.unit == ""
  np.testing.assert_array_equal(slices(volume), rgb[None])
  planar = np.ascontiguousarray(np.moveaxis(rgb, -1, 0))
  ds = phantoms.dataset(rgb, "OT", PlanarConfiguration=1)
  ds.PixelData = planar.tobytes() + b"\0"
  np.testing.assert_array_equal(
    slices(dicom.read_dicom(phantoms.save(tmp_path / "p.dcm", ds))), rgb[None]
  )
  frames = np.stack([rgb, rgb[::-1]])
  np.testing.assert_array_equal(slices(_read(tmp_path, frames, "OT")), frames)
  deep = rgb.astype(np.uint16) * 257
  np.testing.assert_array_equal(slices(_read(tmp_path, deep, "OT")), rgb[None])


def test_palette(tmp_path):
  stored = values(high=4, dtype=np.uint8)
  lut = np.array([0, 100, 200, 255], np.uint16)
  tags = {"PhotometricInterpretation": "PALETTE COLOR"}
  for i, name in enumerate(("Red", "Green", "Blue")):
    tags[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
    tags[f"{name}PaletteColorLookupTableData"] = (np.roll(lut, i) * 257).tobytes()
  volume = _read(tmp_path, stored, "OT", RescaleSlope=None, RescaleIntercept=None, **tags)
  expected = np.stack([np.roll(lut, i)[stored] for i in range(3)], axis=-1)
  np.testing.assert_array_equal(slices(volume)[0], expected)


def _own(name):
  return dicom.read_dicom(get_testdata_file(name, download=False))


def test_pydicoms_ct_and_mr():
  ct = _own("CT_small.dcm")
  assert (ct.shape, ct.unit, ct.source[0].tags.modality) == ((128, 128, 1), "HU", "CT")
  stored = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False)).pixel_array
  np.testing.assert_array_equal(slices(ct)[0], stored - 1024.0)
  np.testing.assert_allclose(ct.affine[:3, 3], [158.135803, 179.035797, -75.699997])
  np.testing.assert_allclose(ct.affine[:3, 2], [0, 0, 5])
  np.testing.assert_allclose(ct.voxel_size[:2], (0.661468, 0.661468))

  mr = _own("MR_small.dcm")
  assert (mr.shape, mr.unit, mr.window) == ((64, 64, 1), "a.u.", (-200, 1399))
  for kind in ("RLE", "bigendian", "expb", "implicit", "jp2klossless", "padded"):
    np.testing.assert_array_equal(_own(f"MR_small_{kind}.dcm").data, mr.data)


def test_pydicoms_dose_and_ultrasound():
  dose = _own("rtdose.dcm")
  assert dose.shape == (10, 10, 15)
  assert dose.placed
  ultrasound = _own("examples_ybr_color.dcm")
  assert ultrasound.data.shape == (320, 240, 30, 3)
  assert not ultrasound.placed
  assert _own("examples_palette.dcm").is_rgb


@pytest.mark.parametrize("name", [phantoms.FRAME_OF_REFERENCE, None])
def test_the_frame_of_reference_is_known_where_the_file_names_one(tmp_path, name):
  """Positions in two frames cannot be compared, however well they agree."""
  series = dicom.read_dicom(phantoms.write_series(tmp_path / "a", FrameOfReferenceUID=name))
  assert series.frame_uid == (name or "")
  other = phantoms.write_series(tmp_path / "b", FrameOfReferenceUID="1.2.840.99.1.2.3.77")
  other = dicom.read_dicom(other)
  assert grids.difference(series, other) == ""
  told = grids.other_frame(series, other)
  assert bool(told) == bool(name)
  if name:
    assert phantoms.FRAME_OF_REFERENCE[-12:] in told
    assert "99.1.2.3.77" in told
  assert grids.other_frame(series, series) == ""


def test_uneven_series_are_compared_by_the_positions_of_their_slices(tmp_path):
  """Two series of four slices, of which different ones are missing, have the same shape."""
  gaps = []
  for missing in (1, 2):
    folder = phantoms.write_series(tmp_path / str(missing))
    dicom.read_dicom(folder).source[missing].path.unlink()
    gaps.append(dicom.read_dicom(folder))
  assert "the same slice up to 3 mm apart" in grids.difference(*gaps)
  assert grids.difference(gaps[0], gaps[0]) == ""


def test_looks_like_dicom(tmp_path):
  series = phantoms.write_series(tmp_path / "series")
  assert dicom.looks_like_dicom(series)
  assert dicom.looks_like_dicom(series / "IM0000")
  (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
  (tmp_path / "y.DCM").write_bytes(b"broken")
  assert not dicom.looks_like_dicom(tmp_path / "x.png")
  assert dicom.looks_like_dicom(tmp_path / "y.DCM")
  assert dicom.looks_like_dicom(tmp_path)
  (tmp_path / "y.DCM").unlink()
  assert not dicom.looks_like_dicom(tmp_path)
  assert not dicom.looks_like_dicom(tmp_path / "missing.png")
  assert dicom.looks_like_dicom(tmp_path / "missing.dcm")
