"""Broken, odd and mixed DICOM: one clear line for each, the good files around them still read."""

import shutil
import struct
import warnings
from pathlib import Path

import dicom_phantoms as phantoms
import numpy as np
import pydicom
import pytest
from dicom_phantoms import SECRETS, dataset, enhanced, save, slices, values
from pydicom import uid

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import dicom

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def _cut(keep):
  """A file cut after a part of its length (a fraction), or after so many bytes."""

  def make(path):
    save(path, dataset(values()))
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])

  return make


def _bytes(data):
  return lambda path: path.write_bytes(data)


def _tags(**tags):
  return lambda path: save(path, dataset(values(), **tags))


def _own(name):
  return lambda path: shutil.copy(TEST_FILES / name, path)


def _patch(old, new):
  """A file in which some bytes are replaced by as many others."""

  def make(path):
    save(path, dataset(values(), NumberOfFrames=1))
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))

  return make


def _compressed(syntax, stored=b"\xff\xd8 no picture \xff\xd9"):
  def make(path):
    ds = dataset(values(), syntax=syntax)
    ds.PixelData = pydicom.encaps.encapsulate([stored])
    ds["PixelData"].VR = "OB"
    save(path, ds)

  return make


def _not_an_image(sop_class, modality):
  def make(path):
    ds = dataset(values(), SOPClassUID=sop_class, Modality=modality)
    pixels = [element.tag for element in ds if element.tag.group in (0x0028, 0x7FE0)]
    for tag in pixels:
      del ds[tag]
    save(path, ds)

  return make


def _without_pixels(path):
  ds = dataset(values())
  del ds.PixelData
  save(path, ds)


def _frames_missing(path):
  ds = enhanced(np.stack([values(i) for i in range(4)]), [0, 1, 2, 3])
  del ds.PerFrameFunctionalGroupsSequence[2:]
  save(path, ds)


def _no_finite_number(path):
  ds = dataset(values(), PixelRepresentation=None, BitsAllocated=32)
  del ds.PixelData
  ds.FloatPixelData = np.full(values().shape, np.nan, np.float32).tobytes()
  save(path, ds)


def _palette_without_table(path):
  tags = {"PhotometricInterpretation": "PALETTE COLOR", "RescaleSlope": None}
  save(path, dataset(values(dtype=np.uint8, high=4), "OT", **tags))


def _rows(value):
  return struct.pack("<HH2sHH", 0x0028, 0x0010, b"US", 2, value)


BAD = [
  # name, how it is made, what the line says
  ("empty.dcm", _bytes(b""), "the file is empty"),
  ("one byte.dcm", _bytes(b"D"), "not a DICOM file"),
  (
    "text.dcm",
    _bytes(b"Zyxwolski^Quennetta was here, and not in a DICOM file. " * 9),
    "marker DICM",
  ),
  ("zeros.dcm", _bytes(bytes(5000)), "not a DICOM file"),
  ("picture.dcm", _bytes(b"\x89PNG\r\n\x1a\n" + bytes(500)), "not a DICOM file"),
  ("zipped.dcm", _own("zipMR.gz"), "not a DICOM file"),
  ("marker only.dcm", _bytes(bytes(128) + b"DICM"), "truncated"),
  ("noise.dcm", _bytes(bytes(128) + b"DICM" + np.random.default_rng(0).bytes(3000)), "broken"),
  ("noise after a tag.dcm", _bytes(b"\x08\0\x05\0CS\4\0" + b"\xfe" * 999), ""),
  ("cut in the preamble.dcm", _cut(100), "not a DICOM file"),
  ("cut in the meta header.dcm", _cut(200), ""),
  ("cut in the header.dcm", _cut(0.4), ""),
  ("cut before the pixels.dcm", _cut(0.9), ""),
  ("cut in the pixels.dcm", _cut(0.99), "the file is truncated: 5"),
  ("cut by pydicom.dcm", _own("MR_truncated.dcm"), "8130 of 8192 bytes"),
  ("header only.dcm", _without_pixels, "holds no pixel data"),
  ("größe 日本 no rows.dcm", _tags(Rows=None), "lacks Rows"),
  ("no rows and columns.dcm", _tags(Rows=None, Columns=None), "lacks Rows, Columns"),
  ("zero rows.dcm", _tags(Rows=0), "without rows or columns"),
  ("more rows than pixels.dcm", _patch(_rows(5), _rows(9)), "the file is truncated: 70 of 126"),
  ("no bits.dcm", _tags(BitsAllocated=None), "lacks BitsAllocated"),
  ("odd bits.dcm", _tags(BitsAllocated=13), "pixel data is broken"),
  (
    "bits by the thousand.dcm",
    _tags(BitsStored=60000, PhotometricInterpretation="MONOCHROME1"),
    "",
  ),
  ("no photometric.dcm", _tags(PhotometricInterpretation=None), "lacks PhotometricInterpretation"),
  ("odd photometric.dcm", _tags(PhotometricInterpretation="GREEN"), "pixel data is broken"),
  ("two samples.dcm", _tags(SamplesPerPixel=2), "pixel data"),
  ("colour without planes.dcm", _tags(SamplesPerPixel=3), "pixel data"),
  ("palette without table.dcm", _palette_without_table, "pixel data is broken"),
  ("frames no number.dcm", _own("badVR.dcm"), "NumberOfFrames is no number"),
  ("frames missing.dcm", _frames_missing, "announces 4 frames and describes 2"),
  ("frames by the million.dcm", _tags(NumberOfFrames=99_999_999), "over the limit"),
  ("frames beyond the file.dcm", _tags(NumberOfFrames=9), "the file is truncated: 70 of 630"),
  ("bomb.dcm", _tags(Rows=65535, Columns=65535), "over the limit"),
  ("huge slope.dcm", _tags(RescaleSlope="1e300"), "too large"),
  ("not a number.dcm", _no_finite_number, "no finite number"),
  ("report.dcm", _not_an_image(uid.ComprehensiveSRStorage, "SR"), "Comprehensive SR Storage"),
  ("structures.dcm", _not_an_image(uid.RTStructureSetStorage, "RTSTRUCT"), "RT Structure Set"),
  ("plan.dcm", _own("rtplan.dcm"), "holds no image (RT Plan Storage)"),
  ("ecg.dcm", _own("waveform_ecg.dcm"), "holds no image (12-lead ECG"),
  ("pdf.dcm", _not_an_image(uid.EncapsulatedPDFStorage, "DOC"), "Encapsulated PDF Storage"),
  ("state.dcm", _not_an_image("1.2.840.10008.5.1.4.1.1.11.1", "PR"), "Presentation State"),
  ("private.dcm", _not_an_image("1.2.3.4.5", "XX"), "holds no image (1.2.3.4.5)"),
  ("image without tags.dcm", _not_an_image(uid.CTImageStorage, "CT"), "image tags are missing"),
  ("segmentation.dcm", _own("liver_1frame.dcm"), "a segmentation, not an image"),
  ("DICOMDIR", _own("dicomdirtests/DICOMDIR"), "an index of files (DICOMDIR)"),
  ("jpeg.dcm", _compressed(uid.JPEGBaseline8Bit), "compressed as JPEG Baseline"),
  ("jpeg 2000.dcm", _compressed(uid.JPEG2000Lossless), "compressed as JPEG 2000"),
  ("rle.dcm", _compressed(uid.RLELossless), "compressed as RLE Lossless"),
  ("rle bomb.dcm", _compressed(uid.RLELossless, bytes([1, 0, 0, 0]) + bytes(60)), "RLE Lossless"),
  ("video.dcm", _compressed(uid.MPEG2MPML), "cannot be decoded here"),
  ("jpeg 12 bit.dcm", _own("JPEG-lossy.dcm"), "compressed as JPEG Extended"),
  ("jpeg 2000 broken.dcm", _own("JPEG2000-embedded-sequence-delimiter.dcm"), "compressed as"),
  ("deflated noise.dcm", _patch(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"[:20]), ""),
  ("syntax unknown.dcm", _patch(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0"), "cannot be"),
]


@pytest.mark.parametrize(("name", "make", "says"), BAD, ids=[case[0] for case in BAD])
def test_one_line_for_a_bad_file_and_the_rest_goes_on(tmp_path, capfd, name, make, says):
  folder = phantoms.write_series(tmp_path / "series", count=3)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of pydicom, which is asked to write nonsense
    make(folder / name)
  capfd.readouterr()
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with pytest.raises(UserError) as caught:
      dicom.read_dicom(folder / name)
    volume = dicom.read_dicom(folder)

  message = str(caught.value)
  assert message.startswith(f"{folder / name}: ")
  reason = message.removeprefix(f"{folder / name}: ")
  assert says in reason
  assert 10 < len(reason) < 200
  assert "\n" not in message
  assert volume.shape[2] == 3
  left_out = [note for note in volume.notes if "left out" in note]
  assert left_out == [f"{name} is left out: {reason}"]
  shown = message + repr(volume) + "".join(volume.notes)
  shown += "".join(capfd.readouterr())
  assert not any(secret in shown for secret in SECRETS)


def test_enough_bad_files():
  assert len(BAD) >= 30
  assert len({name for name, _, _ in BAD}) == len(BAD)


@pytest.mark.parametrize(
  ("syntax", "name"), [(uid.JPEGLSLossless, "JPEG-LS"), (uid.JPEGLosslessSV1, "JPEG Lossless")]
)
def test_a_missing_decoder_is_named(tmp_path, monkeypatch, syntax, name):
  monkeypatch.setattr(type(pydicom.pixels.get_decoder(syntax)), "is_available", False)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _compressed(syntax)(tmp_path / "x.dcm")
  with pytest.raises(UserError, match=f"compressed as {name}.*pip install python-gdcm"):
    dicom.read_dicom(tmp_path / "x.dcm")


# Series that are not one volume: how the last of five slices differs, and what is said.
MIXED = [
  ({"SeriesInstanceUID": "1.2.3.77"}, ["2 series", phantoms.SERIES, "1.2.3.77 (CT, 1 image)"]),
  ({"SeriesInstanceUID": None}, ["no Series Instance UID (CT, 1 image)", "folder of its own"]),
  ({"stored": values(rows=6)}, ["2 sizes", "5 x 7 (4 images", "6 x 7 (1 image"]),
  ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, ["2 orientations", "localizers"]),
  ({"ImageOrientationPatient": [1, 0, 0, 0, 0.99, 0.141067]}, ["2 orientations"]),
  ({"PixelSpacing": [2.6, 1.25]}, ["2 pixel spacings", "2.5 x 1.25", "2.6 x 1.25"]),
  ({"PixelSpacing": None}, ["2 pixel spacings", "none (1 image"]),
  ({"ImagePositionPatient": [-30.5, -20.25, 15.0]}, ["5 images at 4 positions", "one image a pos"]),
  (
    {"ImagePositionPatient": [-30.5, -20.25, 15.0], "EchoTime": "80", "AcquisitionNumber": 2},
    ["differing in EchoTime, AcquisitionNumber"],
  ),
  ({"RescaleType": "US"}, ["2 units: HU (4 images", "a.u. (1 image, last)"]),
]


@pytest.mark.parametrize(("tags", "says"), MIXED)
def test_what_is_not_one_volume_is_refused_with_what_there_is(tmp_path, tags, says):
  phantoms.write_series(tmp_path, count=4)
  tags = {"ImagePositionPatient": [-30.5, -20.25, 24.0]} | tags
  save(tmp_path / "last", dataset(tags.pop("stored", values(9)), **tags))
  with pytest.raises(UserError) as caught:
    dicom.read_dicom(tmp_path)
  message = str(caught.value)
  assert message.startswith(f"{tmp_path}: ")
  assert all(part in message for part in says), message
  assert "\n" not in message
  assert not any(secret in message for secret in SECRETS)


def test_colour_among_grey_is_another_size(tmp_path):
  phantoms.write_series(tmp_path, count=3)
  save(tmp_path / "shot", dataset(np.zeros((5, 7, 3), np.uint8), "OT"))
  with pytest.raises(UserError, match=r"2 sizes: 5 x 7 \(3 images.*5 x 7 x 3 \(1 image, shot\)"):
    dicom.read_dicom(tmp_path)


def test_time_series_in_one_file_is_refused(tmp_path):
  stored = np.stack([values(i) for i in range(4)])
  path = save(tmp_path / "x.dcm", enhanced(stored, [0, 1, 0, 1]))
  with pytest.raises(
    UserError, match=r"4 images at 2 positions \(x\.dcm frame 1 and x\.dcm frame 3"
  ):
    dicom.read_dicom(path)


def test_a_slice_without_position_is_left_out(tmp_path):
  phantoms.write_series(tmp_path, count=3)
  save(tmp_path / "lost", dataset(values(), ImagePositionPatient=None))
  volume = dicom.read_dicom(tmp_path)
  assert volume.shape[2] == 3
  assert [note.split(" or ")[0] for note in volume.notes] == [
    "lost is left out: lacks ImagePositionPatient"
  ]


def test_a_frame_without_position_is_no_volume(tmp_path):
  ds = enhanced(np.stack([values(i) for i in range(4)]), [0, 1, 2, 3])
  del ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
  with pytest.raises(UserError, match=r"x\.dcm: lacks ImagePositionPatient"):
    dicom.read_dicom(save(tmp_path / "x.dcm", ds))


def test_a_slice_that_fails_leaves_a_gap(tmp_path):
  series = phantoms.write_series(tmp_path)
  middle = dicom.read_dicom(series).source[2].path
  middle.write_bytes(middle.read_bytes()[:-20])
  volume = dicom.read_dicom(series)
  np.testing.assert_array_equal(slices(volume)[2], values(3).astype(float) - 1024)
  assert volume.notes == (
    f"{middle.name} is left out: the file is truncated: 50 of 70 bytes of pixel data",
    "a gap after slice 2: 1 image missing (slices are 3 mm apart)",
  )


def test_folders_without_images(tmp_path):
  with pytest.raises(UserError, match="holds no files"):
    dicom.read_dicom(tmp_path)
  phantoms.write_series(tmp_path / "inside")
  with pytest.raises(UserError, match="name the subfolder of one series"):
    dicom.read_dicom(tmp_path)
  for i in range(5):
    (tmp_path / f"{i}.txt").write_text("no image")
  with pytest.raises(
    UserError, match=r"no DICOM image that can be read: 0\.txt: not a.*and 2 more"
  ):
    dicom.read_dicom(tmp_path)
  with pytest.raises(UserError, match="no such file"):
    dicom.read_dicom(tmp_path / "missing.dcm")


def test_orientation_that_is_none_counts_as_missing(tmp_path):
  for bad in ([0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0]):
    tags = {"ImageOrientationPatient": bad}
    volume = dicom.read_dicom(save(tmp_path / "x.dcm", dataset(values(), **tags)))
    assert not volume.placed
    assert "no geometry" in volume.notes[0]
  for bad in ([0, 1.25], [-1, 1]):
    volume = dicom.read_dicom(save(tmp_path / "x.dcm", dataset(values(), PixelSpacing=bad)))
    assert volume.source[0].spacing is None
    assert not volume.placed


def test_files_without_preamble_are_read(tmp_path):
  """As scanners of the 1990s wrote them."""
  for syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian):
    path = save(tmp_path / "x.ima", dataset(values(), syntax=syntax))
    data = path.read_bytes()
    meta_length = struct.unpack("<I", data[140:144])[0]
    path.write_bytes(data[144 + meta_length :])
    np.testing.assert_array_equal(slices(dicom.read_dicom(path))[0], values() - 1024.0)


def test_patient_is_silent_when_values_are_broken(tmp_path, capfd, caplog):
  """pydicom quotes what it cannot parse, in warnings and in its log."""
  path = save(tmp_path / "x.dcm", dataset(values()))
  data = path.read_bytes().replace(b"19530817", b"1953/8/1").replace(b"61.25", b"PID-7")
  path.write_bytes(data.replace(b"2.5\\1.25", b"Zyx\\1.25"))
  volume = dicom.read_dicom(path)
  assert volume.source[0].spacing is None
  shown = "".join(capfd.readouterr()) + caplog.text + repr(volume) + "".join(volume.notes)
  assert not any(secret in shown for secret in [*SECRETS, "1953/8/1", "Zyx"])


def test_damaged_bytes_raise_nothing_else(tmp_path, capfd):
  """Bytes changed anywhere in the header: a volume or one line, whatever they come to mean."""
  seeds = [
    dataset(values(), WindowCenter=4, WindowWidth=5, PixelPaddingValue=-5),
    dataset(values(), **phantoms.pet_tags()),
    enhanced(np.stack([values(i) for i in range(3)]), [2, 0, 1]),
  ]
  contents = [save(tmp_path / "x.dcm", ds).read_bytes() for ds in seeds]
  rng = np.random.default_rng(3)
  path, read = tmp_path / "x.dcm", 0
  for i in range(200):
    data = bytearray(contents[i % 3])
    for place in rng.integers(132, min(len(data), 3000), rng.integers(1, 6)):
      data[place] = rng.integers(256)
    path.write_bytes(data)
    try:
      volume = dicom.read_dicom(path)
      assert np.isfinite(volume.data).all()
      shown, read = repr(volume) + "".join(volume.notes), read + 1
    except UserError as error:
      shown = str(error)
      assert "\n" not in shown
    assert not any(secret in shown for secret in SECRETS)
  assert 20 < read < 180
  assert capfd.readouterr() == ("", "")


def _pydicoms_files():
  files = [
    path for path in TEST_FILES.rglob("*") if path.is_file() and "TINY_ALPHA" not in str(path)
  ]
  return sorted(files + [path for path in TEST_FILES.rglob("*") if path.is_dir()])


def test_pydicoms_own_files_are_read_or_named(capfd):
  """All that its wheel carries, and their folders: broken, compressed, reports, phantoms."""
  read = refused = 0
  for path in _pydicoms_files():
    names = []
    try:
      volume = dicom.read_dicom(path)
    except UserError as error:
      refused += 1
      line = str(error)
      assert line.startswith(f"{path}: ")
      assert "\n" not in line
    else:
      read += 1
      assert np.isfinite(volume.data).all()
      assert volume.data.dtype == (np.uint8 if volume.is_rgb else np.float32)
      line = repr(volume) + "".join(volume.notes)
      names = [
        str(frame.header.get(key) or "")
        for frame in volume.source
        for key in ("PatientName", "PatientID")
      ]
    assert not any(name in line for name in names if len(name) > 3)
  assert read > 60
  assert refused > 30
  assert capfd.readouterr().out == ""
