"""Bad and odd pictures and NIfTI volumes, made here, all fused in one run of `dmfnet fuse`.

A bad file must give one clear line, an odd one its result, and neither may disturb the others.
DICOM has a table of its own, tests/io/test_dicom_bad_input.py.
"""

import contextlib
import gzip
import io
import struct
import zlib

import nibabel
import numpy as np
import pytest
from fake_model import FakeModel, in_place
from PIL import Image

from dmfnet_jax.cli import main
from dmfnet_jax.io import pictures

HEIGHT, WIDTH = 6, 9
GREY = (np.arange(HEIGHT * WIDTH, dtype=np.uint8) * 4).reshape(HEIGHT, WIDTH)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
DEEP = GREY.astype(np.uint16) * 257
SHAPE = (8, 7, 4)
VALUES = np.random.default_rng(0).integers(1, 4000, SHAPE).astype(np.int16)


def _picture(array, form="PNG", mode=None, **options) -> bytes:
  image = Image.fromarray(array)
  data = io.BytesIO()
  (image.convert(mode) if mode else image).save(data, form, **options)
  return data.getvalue()


def _tiff(samples: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
  """A little-endian, uncompressed, one-strip TIFF of kinds that Pillow does not write."""
  content = samples.tobytes()
  tags = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1}
  tags |= {278: HEIGHT, 279: len(content), 339: sample_format}
  tags[273] = 8 + 2 + 12 * len(tags) + 4
  entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
  return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def _png_of_size(width: int, height: int) -> bytes:
  """A small PNG that claims a size."""
  png = bytearray(_picture(GREY))
  png[16:24] = struct.pack(">II", width, height)
  png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
  return bytes(png)


def _changed(data: bytes, at: int, new: bytes) -> bytes:
  return data[:at] + new + data[at + len(new) :]


def _pages() -> bytes:
  data = io.BytesIO()
  Image.fromarray(GREY).save(data, "TIFF", save_all=True, append_images=[Image.fromarray(GREY)] * 2)
  return data.getvalue()


def _bits_12() -> np.ndarray:
  """GREY in 12 bits, most significant bit first, rows padded to whole bytes."""
  bits = ((GREY.astype(np.uint16)[..., None] * 16 >> np.arange(11, -1, -1)) & 1).astype(np.uint8)
  return np.packbits(bits.reshape(HEIGHT, -1), axis=1)


def _pictures() -> dict[str, tuple[bytes, str | None]]:
  """File -> (content, what the error says or None where it is fused)."""
  png, jpeg = _picture(GREY), _picture(RGB, "JPEG")
  floats = GREY.astype(np.float32)
  noise = _picture(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
  turned = Image.Exif()
  turned[0x0112] = 6
  no_picture, broken = "not a readable PNG, JPEG, TIFF, BMP, GIF or WebP", "broken picture: "
  return {
    # Bad.
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"Dear colleague,", no_picture),
    "html.jpg": (b"<!DOCTYPE html><title>404 Not Found</title>", no_picture),
    "zeros.bmp": (bytes(3000), no_picture),
    "ppm.png": (_picture(GREY, "PPM"), no_picture),
    "pdf.tif": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", no_picture),
    "header only.png": (png[:30], no_picture),
    "truncated.png": (noise[: len(noise) // 2], broken + "the file is truncated"),
    "truncated.jpeg": (jpeg[: len(jpeg) - 60], broken + "the file is truncated"),
    "truncated.bmp": (_picture(RGB, "BMP")[:100], broken),
    "truncated.tiff": (_tiff(GREY, 8)[:-20], broken),
    "flipped bit.png": (_changed(noise, 60, bytes([noise[60] ^ 255])), broken),
    "bomb.png": (_png_of_size(30_000, 30_000), "over the limit"),
    "large.png": (_png_of_size(10_000, 9_000), "10000 x 9000 pixels, over the limit"),
    "no pixels.png": (_png_of_size(0, 0), no_picture),
    "pages.tif": (_pages(), "holds 3 pages or frames"),
    "signed 16.tif": (_tiff(DEEP.astype("<i2"), 16, sample_format=2), "signed integers"),
    "signed 8.tif": (_tiff(GREY.astype("i1"), 8, sample_format=2), "signed integers"),
    "unsigned 32.tif": (_tiff(DEEP.astype("<u4"), 32), "32-bit integers"),
    "float 0..255.tif": (_tiff(floats, 32, sample_format=3), "float values 0 to 212"),
    "nan.tif": (_tiff(floats * np.nan, 32, sample_format=3), "float values nan to nan"),
    "infinite.tif": (_tiff(floats + np.float32(np.inf), 32, sample_format=3), "float values"),
    "other size.png": (_picture(GREY[:, 1:]), "A is 8 x 6 and B 9 x 6 pixels"),
    "exif turned.jpg": (_picture(GREY, "JPEG", exif=turned), "A is 6 x 9 and B 9 x 6 pixels"),
    # Odd, and fused.
    "16 bit.png": (_picture(DEEP), None),
    "16 bit.tif": (_tiff(DEEP, 16), None),
    "12 bit.tif": (_tiff(_bits_12(), 12), None),
    "white is zero.tif": (_tiff(DEEP, 16, photometric=0), None),
    "float 0..1.tif": (_tiff(floats / 255, 32, sample_format=3), None),
    "cmyk.jpg": (_picture(RGB, "JPEG", mode="CMYK"), None),
    "cmyk.tif": (_picture(RGB, "TIFF", mode="CMYK"), None),
    "ycbcr.tif": (_picture(RGB, "TIFF", mode="YCbCr", compression="jpeg"), None),
    "gif.png": (_picture(GREY, "GIF"), None),
    "webp.jpg": (_picture(RGB, "WEBP"), None),
    "palette.png": (_picture(RGB, mode="P"), None),
    "one bit.png": (_picture(GREY, mode="1"), None),
    "alpha.png": (_picture(RGB, mode="RGBA"), None),
    "grey alpha.png": (_picture(GREY, mode="LA"), None),
    "progressive.jpg": (_picture(RGB, "JPEG", progressive=True), None),
    "jpeg inside.png": (_picture(GREY, "JPEG"), None),
    "trailing bytes.png": (png + b"more", None),
    "LOUD.PNG": (png, None),
    "two  spaces .png": (png, None),
    "脳の画像.png": (png, None),
    "МРТ ёж.png": (png, None),
    "quote's & %20;$(x).png": (png, None),
    "1.2.840.113619.png": (png, None),
    "-o.png": (png, None),
  }


def _nifti(data=VALUES, affine=None, kind=nibabel.Nifti1Image, **fields) -> bytes:
  image = kind(data, np.eye(4) if affine is None else affine, dtype=data.dtype)
  for field, value in fields.items():
    image.header[field] = value
  return image.to_bytes()


def _field(data: bytes, at: int, form: str, *values) -> bytes:
  """Overwrites a field of a NIfTI-1 header, whatever nibabel would say."""
  return _changed(data, at, struct.pack(f"<{form}", *values))


def _with(values: np.ndarray, *bad: float) -> np.ndarray:
  values = values.astype(np.float32)
  values.flat[: len(bad)] = bad
  return values


def _volumes() -> dict[str, tuple[bytes, str | None]]:
  plain = _nifti()
  packed = gzip.compress(plain)
  shifted = np.eye(4)
  shifted[:3, 3] = 0.5
  rgb = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
  rgb = rgb.view([(name, "u1") for name in "RGB"])[..., 0]
  slope = nibabel.Nifti1Image(VALUES, np.eye(4))
  slope.header.set_slope_inter(0.5, -1)
  no_place = nibabel.Nifti1Image(VALUES, np.eye(4))
  no_place.set_sform(None, 0)
  no_place.set_qform(None, 0)
  vectors = np.zeros((*SHAPE, 1, 3), np.float32)
  header_lies = _field(plain, 40, "8h", 3, 60, 50, 40, 1, 1, 1, 1)
  no_nifti = "is no NIfTI file"
  turned = _nifti(VALUES[::-1].copy(), np.diag([-1.0, 1, 1, 1]) + np.eye(4, k=3) * 7)
  return {
    # Bad.
    "empty.nii": (b"", "the file is empty"),
    "empty.nii.gz": (b"", "the file is empty"),
    "packed nothing.nii.gz": (gzip.compress(b""), no_nifti),
    "text.nii": (b"Dear colleague," * 50, no_nifti),
    "png.nii": (_picture(GREY), no_nifti),
    "freesurfer.nii.gz": (gzip.compress(struct.pack(">i", 1) + bytes(400)), no_nifti),
    "short.nii": (plain[:200], no_nifti),
    "header only.nii": (plain[:348], "is truncated"),
    "truncated.nii": (plain[:-1], f"is truncated: {len(plain) - 1} of {len(plain)} bytes"),
    "truncated.nii.gz": (packed[: len(packed) // 2], "gzip file is truncated"),
    "no checksum.nii.gz": (packed[:-8], "gzip file is truncated"),
    "wrong checksum.nii.gz": (_changed(packed, len(packed) - 8, b"abcd"), "broken gzip file"),
    "flipped bit.nii.gz": (_changed(packed, 200, bytes([packed[200] ^ 4])), "gzip file"),
    "no gzip.nii.gz": (b"\x1f\x8b" + bytes(100), "broken gzip file"),
    "packed twice.nii.gz": (gzip.compress(packed), no_nifti),
    "bomb.nii.gz": (gzip.compress(_field(plain[:352], 42, "3h", 30_000, 30_000, 30_000)), "claims"),
    "lies about its size.nii": (header_lies, "is truncated"),
    "four dimensions.nii": (_nifti(np.stack([VALUES] * 3, -1)), r"holds 3 volumes (8 x 7 x 4 x 3)"),
    "vectors.nii": (_nifti(vectors), "holds 3 volumes"),
    "complex.nii": (_nifti(VALUES.astype(np.complex64)), "complex numbers"),
    "no voxels.nii": (_field(plain, 42, "h", 0), "an empty volume"),
    "negative size.nii": (_field(plain, 42, "h", -8), "an empty volume"),
    "one dimension.nii": (_field(plain, 40, "h", 1), "an empty volume"),
    "nine dimensions.nii": (_field(plain, 40, "h", 9), no_nifti),
    "unknown type.nii": (_field(plain, 70, "h", 3), "cannot be read (code 3)"),
    "one bit.nii": (_field(plain, 70, "2h", 1, 1), "cannot be read (code 1)"),
    "wrong magic.nii": (_field(plain, 344, "4s", b"abcd"), no_nifti),
    "half of a pair.nii": (_field(plain, 344, "4s", b"ni1\0"), "half of a .hdr and .img pair"),
    "far offset.nii": (_field(plain, 108, "f", 1e9), "is truncated"),
    "offset is no number.nii": (_field(plain, 108, "f", np.nan), "vox_offset"),
    "flat affine.nii": (_field(plain, 280, "12f", *[0] * 12), "affine is singular"),
    "affine is no number.nii": (_field(plain, 280, "f", np.nan), "affine is singular"),
    "all zero.nii": (_nifti(VALUES * 0), "every value is 0"),
    "constant.nii.gz": (gzip.compress(_nifti(VALUES * 0 + 7)), "every value is 7"),
    "all nan.nii": (_nifti(VALUES * np.float32(np.nan)), "no finite value"),
    "all infinite.nii": (_nifti(VALUES * np.float32(np.inf)), "no finite value"),
    "other shape.nii": (_nifti(VALUES[:-1]), "7 x 7 x 4 against 8 x 7 x 4 voxels"),
    "other place.nii": (_nifti(affine=shifted), "the same voxel up to 0.866 mm apart"),
    "other axes.nii": (turned, "axes stored as LAS against RAS"),
    "other voxels.nii": (_nifti(affine=np.diag([1, 1, 1.2, 1])), "voxels of 1 x 1 x 1.2 against"),
    # Odd, and fused.
    "signed.nii": (_nifti((VALUES - 2000).astype(np.int8)), None),
    "12 bit.nii.gz": (gzip.compress(_nifti(VALUES.astype(np.uint16))), None),
    "big endian.nii": (_nifti(VALUES.astype(">f4")), None),
    "double.nii": (_nifti(VALUES.astype(np.float64)), None),
    "64 bit.nii": (_nifti(VALUES.astype(np.int64), kind=nibabel.Nifti2Image), None),
    "mask.nii": (_nifti((VALUES > 3900).astype(np.uint8)), None),
    "some nan.nii": (_nifti(_with(VALUES, np.nan, np.inf, -np.inf)), None),
    "huge values.nii": (_nifti(_with(VALUES, 3e38, -3e38)), None),
    "one volume.nii": (_nifti(VALUES[..., None]), None),
    "five dimensions.nii": (_nifti(VALUES[..., None, None]), None),
    "slope.nii": (slope.to_bytes(), None),
    "slope is no number.nii": (_field(plain, 112, "2f", np.nan, np.nan), None),
    "slope is infinite.nii": (_field(plain, 112, "2f", np.inf, 0), None),
    "slope is zero.nii": (_field(plain, 112, "2f", 0, 0), None),
    "no place.nii": (no_place.to_bytes(), None),
    "colours.nii": (_nifti(rgb), None),
    "version 2.nii": (_nifti(kind=nibabel.Nifti2Image), None),
    "packed.nii": (packed, None),
    "not packed.nii.gz": (plain, None),
    "trailing bytes.nii": (plain + bytes(999), None),
    "LOUD volume.NII.GZ": (packed, None),
    "脳 体積 ё.nii.gz": (packed, None),
    "sub-01_ses.2_T1w.nii.gz": (packed, None),
    "slightly moved.nii": (_nifti(affine=np.eye(4) + np.eye(4, k=3) * 0.01), None),
  }


PICTURES, VOLUMES = _pictures(), _volumes()
FILES = PICTURES | VOLUMES
BAD = {name: reason for name, (_, reason) in FILES.items() if reason is not None}
ODD = [name for name, (_, reason) in FILES.items() if reason is None]


def _stem(name: str) -> str:
  lower = name.lower()
  return name[:-7] if lower.endswith(".nii.gz") else name.rpartition(".")[0]


# Files of one stem are of one pair: each gets a stem of its own.
STEMS = {name: f"{i:03d} {_stem(name)}" for i, name in enumerate(FILES)}


def _suffix(name: str) -> str:
  return name[len(_stem(name)) :]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
  """Fuses every file as A with a good B: (exit code, lines on stderr, the output folder)."""
  root = tmp_path_factory.mktemp("bad input")
  a, b, out = root / "a", root / "b", root / "out"
  a.mkdir()
  b.mkdir()
  good_picture, good_volume = _picture(GREY[::-1].copy()), _nifti(VALUES[::-1].copy())
  for name, (content, _) in FILES.items():
    (a / (STEMS[name] + _suffix(name))).write_bytes(content)
    if name in VOLUMES:
      (b / f"{STEMS[name]}.nii").write_bytes(good_volume)
    else:
      (b / f"{STEMS[name]}.png").write_bytes(good_picture)
  stderr = io.StringIO()
  with in_place(FakeModel()), contextlib.redirect_stderr(stderr):
    code = main(["fuse", str(a), str(b), "-o", str(out)])
  return code, stderr.getvalue().replace("\r", "\n").splitlines(), out


def test_the_table_is_long_enough():
  assert len(FILES) >= 60
  assert len(BAD) >= 40


def test_the_run_goes_to_its_end(outcome):
  code, lines, _ = outcome
  assert code == 1
  assert lines[-1].startswith(f"dmfnet: {len(ODD)} of {len(FILES)} pairs fused into ")
  assert sum("error: pair" in line for line in lines) == len(BAD)
  assert not any("Traceback" in line or "Warning" in line for line in lines)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_clear_line(outcome, name):
  _, lines, out = outcome
  start = f"dmfnet: error: pair {STEMS[name]}: "
  (line,) = [line for line in lines if line.startswith(start)]
  reason = line.removeprefix(start)
  assert BAD[name] in reason, reason
  assert len(reason) < 400
  assert not list(out.glob(f"{STEMS[name][:3]} *"))


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_fused(outcome, name):
  _, _, out = outcome
  if name in PICTURES:
    assert pictures.read_image(out / f"{STEMS[name]}.png").shape[:2] == (HEIGHT, WIDTH)
  else:
    fused = nibabel.load(out / f"{STEMS[name]}.nii.gz")
    assert fused.shape == SHAPE
    assert np.asarray(fused.dataobj).any()


WINDOWED = ["signed 16.tif", "signed 8.tif", "unsigned 32.tif", "float 0..255.tif", "16 bit.png"]
WINDOWED += ["12 bit.tif", "palette.png", "one bit.png"]


@pytest.mark.parametrize("name", WINDOWED)
def test_a_window_makes_measurements_of_pictures(tmp_path, model, name):
  """What has no agreed white can be shown through a window; grey is needed for it."""
  (tmp_path / name).write_bytes(FILES[name][0])
  (tmp_path / "b.png").write_bytes(_picture(GREY))
  paths = [str(tmp_path / name), str(tmp_path / "b.png"), "-o", str(tmp_path / "out" / "f.png")]
  code = main(["fuse", *paths, "--window-a", "auto"])
  assert code == (1 if name == "palette.png" else 0)


def test_every_file_alone_is_a_pair_or_a_line(tmp_path, model, capsys):
  """The same files as B, one by one: never a traceback, and the exit code says which."""
  for good, table in ((_picture(GREY), PICTURES), (_nifti(VALUES[::-1].copy()), VOLUMES)):
    suffix = ".png" if table is PICTURES else ".nii"
    (tmp_path / f"good{suffix}").write_bytes(good)
    for i, (name, (content, reason)) in enumerate(table.items()):
      path = tmp_path / f"{i}{_suffix(name)}"
      path.write_bytes(content)
      out = tmp_path / "out" / f"{i}{suffix}"
      code = main(["fuse", str(tmp_path / f"good{suffix}"), str(path), "-o", str(out)])
      err = capsys.readouterr().err
      assert code == (0 if reason is None else 1), (name, err)
      assert out.exists() == (reason is None)
      assert "Traceback" not in err
