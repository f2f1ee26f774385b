"""Picture files: every kind that is read, every way in which one can be bad, whole writes."""

import io
import os
import stat
import struct
import zlib
from typing import ClassVar

import numpy as np
import pytest
from etils import epath
from PIL import Image

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths, pictures

HEIGHT, WIDTH = 5, 7  # not square: a swapped axis shows
GREY = (np.arange(HEIGHT * WIDTH, dtype=np.uint8) * 7).reshape(HEIGHT, WIDTH)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
ALPHA = np.where(np.arange(WIDTH) < 3, 0, 255).astype(np.uint8) * np.ones((HEIGHT, 1), np.uint8)
DEEP = (np.arange(HEIGHT * WIDTH, dtype=np.uint16) * 1873).reshape(HEIGHT, WIDTH)
DEEP_AS_8_BIT = np.rint(DEEP / 257).astype(np.uint8)
BLACK_AND_WHITE = np.where(GREY > 99, 255, 0).astype(np.uint8)


def _tiff(
  samples: bytes,
  bits: int,
  photometric: int = 1,
  sample_format: int = 1,
  *,
  channels: int = 1,
  order: str = "<",
  deflated: bool = False,
) -> bytes:
  """A one-strip TIFF of kinds that Pillow does not write."""
  samples = zlib.compress(samples) if deflated else samples
  tags = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 8 if deflated else 1, 262: photometric}
  tags |= {273: 0, 277: channels, 278: HEIGHT, 279: len(samples), 339: sample_format}
  tags[273] = 8 + 2 + 12 * len(tags) + 4
  entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items())
  start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
  return start + entries + bytes(4) + samples


def _pack_12_bits(values: np.ndarray) -> bytes:
  """Rows of 12-bit numbers, most significant bit first, each row padded to a whole byte."""
  rows = []
  for row in values:
    bits = "".join(f"{value:012b}" for value in row)
    bits += "0" * (-len(bits) % 8)
    rows.append(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)))
  return b"".join(rows)


def _save(path, array, **options):
  image = array if isinstance(array, Image.Image) else Image.fromarray(array)
  image.save(path, **options)


def _png_of_size(width: int, height: int) -> bytes:
  """A small PNG that claims a size."""
  data = io.BytesIO()
  Image.new("L", (1, 1)).save(data, "PNG")
  png = bytearray(data.getvalue())
  png[16:24] = struct.pack(">II", width, height)
  # The checksum of the header chunk is verified first.
  png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
  return bytes(png)


LOSSLESS = [
  ("grey.png", GREY, GREY, {}),
  ("grey.tif", GREY, GREY, {}),
  ("grey.bmp", GREY, GREY, {}),
  ("rgb.png", RGB, RGB, {}),
  ("rgb.tiff", RGB, RGB, {"compression": "tiff_lzw"}),
  ("rgb.bmp", RGB, RGB, {}),
  ("UPPER.PNG", RGB, RGB, {"format": "PNG"}),
  ("a png by its content.jpg", RGB, RGB, {"format": "PNG"}),
  ("palette.png", Image.fromarray(BLACK_AND_WHITE).convert("RGB").convert("P"), None, {}),
  ("one_bit.png", Image.fromarray(BLACK_AND_WHITE).convert("1"), BLACK_AND_WHITE, {}),
  ("one_bit.tif", Image.fromarray(BLACK_AND_WHITE).convert("1"), BLACK_AND_WHITE, {}),
  ("one_bit.bmp", Image.fromarray(BLACK_AND_WHITE).convert("1"), BLACK_AND_WHITE, {}),
  ("grey_alpha.png", np.dstack([GREY, ALPHA]), np.where(ALPHA == 255, GREY, 0), {}),
  ("rgb_alpha.png", np.dstack([RGB, ALPHA]), np.where(ALPHA[..., None] == 255, RGB, 0), {}),
  ("rgb_alpha.tif", np.dstack([RGB, ALPHA]), np.where(ALPHA[..., None] == 255, RGB, 0), {}),
  ("grey_key.png", GREY, np.where(GREY == 70, 0, GREY), {"transparency": 70}),
  ("deep.png", DEEP, DEEP_AS_8_BIT, {}),
  ("deep.tif", DEEP, DEEP_AS_8_BIT, {}),
  ("rgb.gif", Image.fromarray(RGB).quantize(256), RGB, {}),
  ("rgb.webp", RGB, RGB, {"lossless": True}),
  ("rgb_alpha.webp", np.dstack([RGB, ALPHA]), RGB * (ALPHA[..., None] > 0), {"lossless": True}),
  ("float.tif", (GREY / 255).astype(np.float32), GREY, {}),
]


@pytest.mark.parametrize(
  ("name", "stored", "expected", "options"), LOSSLESS, ids=[case[0] for case in LOSSLESS]
)
def test_lossless_kinds_are_read_exactly(tmp_path, name, stored, expected, options):
  _save(tmp_path / name, stored, **options)
  if expected is None:
    expected = np.stack([BLACK_AND_WHITE] * 3, axis=-1)
  result = pictures.read_image(tmp_path / name)
  assert result.dtype == np.uint8
  np.testing.assert_array_equal(result, expected)


def test_half_transparent_is_laid_over_black(tmp_path):
  _save(tmp_path / "x.png", np.full((2, 2, 4), [200, 100, 50, 128], np.uint8))
  assert pictures.read_image(tmp_path / "x.png")[0, 0].tolist() == [100, 50, 25]


def test_16_bit_rgb_is_within_a_level(tmp_path):
  rows = np.stack([DEEP, DEEP[::-1], DEEP], axis=-1).astype(">u2")
  scanlines = b"".join(b"\0" + row.tobytes() for row in rows)

  def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
  png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
  png += chunk(b"IDAT", zlib.compress(scanlines)) + chunk(b"IEND", b"")
  (tmp_path / "x.png").write_bytes(png)
  result = pictures.read_image(tmp_path / "x.png").astype(int)
  error = np.rint(rows / 257) - result
  assert result.shape == (HEIGHT, WIDTH, 3)
  assert np.abs(error).max() <= 1


def test_a_grey_webp_is_grey(tmp_path):
  smooth = np.add.outer(np.arange(32), 3 * np.arange(40)).astype(np.uint8)
  Image.fromarray(smooth).save(tmp_path / "x.webp", quality=90)
  found = pictures.read_image(tmp_path / "x.webp")
  assert found.ndim == 2
  np.testing.assert_allclose(found.astype(int), smooth, atol=12)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u2", "i2", "f4", "f8"])
def test_tiff_values_in_either_byte_order_packed_or_not(tmp_path, dtype, order, deflated):
  values = (DEEP / (65535 if dtype[0] == "f" else 3)).astype(dtype) - (40 if dtype == "i2" else 0)
  sample_format = {"u": 1, "i": 2, "f": 3}[dtype[0]]
  stored = values.astype(order + dtype).tobytes()
  bits = 8 * values.itemsize
  for photometric in (1, 0) if dtype[0] == "f" else (1,):
    data = _tiff(stored, bits, photometric, sample_format, order=order, deflated=deflated)
    (tmp_path / "x.tif").write_bytes(data)
    read = pictures.read_values(tmp_path / "x.tif")
    np.testing.assert_allclose(read, values if photometric else -values, rtol=1e-6)
  if dtype[0] == "f":
    (tmp_path / "x.tif").write_bytes(_tiff(stored, bits, 1, 3, order=order, deflated=deflated))
    np.testing.assert_array_equal(pictures.read_image(tmp_path / "x.tif"), DEEP_AS_8_BIT)


def test_tiff_of_other_depths_and_polarity(tmp_path):
  path = tmp_path / "x.tif"
  path.write_bytes(_tiff(DEEP.astype("<u2").tobytes(), bits=16, photometric=0))
  np.testing.assert_array_equal(pictures.read_image(path), 255 - DEEP_AS_8_BIT)
  path.write_bytes(_tiff((255 - GREY).tobytes(), bits=8, photometric=0))
  np.testing.assert_array_equal(pictures.read_image(path), GREY)
  twelve = DEEP >> 4
  path.write_bytes(_tiff(_pack_12_bits(twelve), bits=12))
  np.testing.assert_array_equal(pictures.read_image(path), np.rint(twelve / 4095 * 255))


@pytest.mark.parametrize(("name", "mode"), [("x.jpg", "L"), ("x.jpg", "RGB"), ("x.jpg", "CMYK")])
def test_jpeg_is_read_nearly(tmp_path, name, mode):
  colour = np.full((16, 24, 3), [180, 90, 40], np.uint8)
  image = Image.fromarray(colour).convert(mode)
  image.save(tmp_path / name, quality=95)
  result = pictures.read_image(tmp_path / name)
  expected = np.asarray(image if mode == "L" else image.convert("RGB")).astype(int)
  assert result.shape == expected.shape
  assert np.abs(result - expected).max() <= 2


def test_exif_orientation_is_applied(tmp_path):
  upright = np.zeros((16, 24), np.uint8)
  upright[:8, :8] = 255  # the top left corner
  stored = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}
  for orientation, array in stored.items():
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("jpg", "png", "tif"):
      path = tmp_path / f"{orientation}.{suffix}"
      _save(path, np.ascontiguousarray(array), exif=exif)
      result = pictures.read_image(path)
      assert result.shape == upright.shape, path.name
      assert np.abs(result.astype(int) - upright).max() < 20, path.name


def _bad_files() -> dict[str, tuple[bytes, str]]:
  whole = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  Image.fromarray(noise).save(whole, "PNG")
  jpeg = io.BytesIO()
  Image.fromarray(noise).save(jpeg, "JPEG")
  pages = io.BytesIO()
  frame = Image.fromarray(GREY)
  frame.save(pages, "TIFF", save_all=True, append_images=[frame, frame])
  animated = io.BytesIO()
  frame.save(animated, "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)])
  ppm, animated_gif = io.BytesIO(), io.BytesIO()
  frame.save(ppm, "PPM")
  frame.save(animated_gif, "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)])
  flipped = bytearray(whole.getvalue())
  flipped[200] ^= 255
  floats = np.linspace(0, 255, GREY.size, dtype="<f4").tobytes()
  not_numbers = np.full(GREY.size, np.nan, "<f4").tobytes()
  return {
    "empty.png": (b"", "the file is empty"),
    "text.png": (b"not a picture at all", "not a readable PNG, JPEG, TIFF, BMP, GIF or WebP"),
    "other_format.png": (ppm.getvalue(), "not a readable PNG, JPEG, TIFF, BMP, GIF or WebP"),
    "animated.gif": (animated_gif.getvalue(), "holds 2 pages or frames"),
    "cut_header.png": (whole.getvalue()[:12], "not a readable PNG"),
    "truncated.png": (whole.getvalue()[:900], "broken picture: the file is truncated"),
    "truncated.jpg": (jpeg.getvalue()[:900], "broken picture: the file is truncated"),
    "damaged.png": (bytes(flipped), "broken picture: "),
    "pages.tif": (pages.getvalue(), "holds 3 pages or frames"),
    "animated.png": (animated.getvalue(), "holds 2 pages or frames"),
    "large.png": (_png_of_size(10_000, 9_000), "10000 x 9000 pixels, over the limit"),
    "bomb.png": (_png_of_size(50_000, 50_000), "over the limit"),
    "signed.tif": (_tiff(DEEP.tobytes(), 16, sample_format=2), "signed integers"),
    "signed8.tif": (_tiff(GREY.tobytes(), 8, sample_format=2), "signed integers"),
    "integers.tif": (_tiff(DEEP.astype("<u4").tobytes(), 32), "32-bit integers"),
    "floats.tif": (_tiff(floats, 32, sample_format=3), "float values 0 to 255"),
    "nan.tif": (_tiff(not_numbers, 32, sample_format=3), "float values nan to nan"),
    "half.tif": (_tiff(floats[: 2 * GREY.size], 16, sample_format=3), "TIFF of 16-bit floats"),
    "long.tif": (_tiff(floats * 2, 64), "TIFF of 64-bit integers"),
    "complex.tif": (_tiff(floats * 2, 64, sample_format=6), "TIFF of 64-bit complex floats"),
    "rgb.tif": (
      _tiff(floats * 3, 32, sample_format=3, channels=3),
      "TIFF of 32-bit floats in 3 channels, which is not read: save it as 8 bits a channel",
    ),
  }


BAD_FILES = _bad_files()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_with_the_reason(tmp_path, name):
  data, reason = BAD_FILES[name]
  (tmp_path / name).write_bytes(data)
  with pytest.raises(UserError) as caught:
    pictures.read_image(tmp_path / name)
  message = str(caught.value)
  assert message.startswith(f"{tmp_path / name}: ")
  assert reason in message
  assert "\n" not in message


def test_missing_files_and_folders_are_named(tmp_path):
  with pytest.raises(UserError, match=r"none\.png: no such file"):
    pictures.read_image(tmp_path / "none.png")
  with pytest.raises(UserError, match="is a folder, not a file"):
    pictures.read_image(tmp_path)
  with pytest.raises(UserError, match="no such folder"):
    pictures.list_images(tmp_path / "none")
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="is not a folder"):
    pictures.list_images(tmp_path / "file")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp", ".PNG"])
@pytest.mark.parametrize("array", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_formats_give_back_what_was_written(tmp_path, suffix, array):
  path = tmp_path / f"ÿ 画像{suffix}"
  pictures.write_image(path, array)
  np.testing.assert_array_equal(pictures.read_image(str(path)), array)
  assert os.listdir(tmp_path) == [path.name]


def test_jpeg_keeps_sharp_colours(tmp_path):
  """Red and blue columns, one pixel wide: subsampled chroma would make them all purple."""
  array = np.zeros((16, 16, 3), np.uint8)
  array[:, ::2, 0] = array[:, 1::2, 2] = 255
  pictures.write_image(tmp_path / "x.jpg", array)
  assert np.abs(pictures.read_image(tmp_path / "x.jpg").astype(int) - array).max() < 40


def test_float_tiff_holds_any_value(tmp_path):
  values = np.linspace(-3, 300, GREY.size, dtype=np.float32).reshape(GREY.shape)
  pictures.write_image(tmp_path / "x.tiff", values)
  with Image.open(tmp_path / "x.tiff") as image:
    np.testing.assert_array_equal(np.asarray(image), values)


def test_a_new_file_replaces_the_old_and_has_the_usual_permissions(tmp_path):
  path, usual = tmp_path / "x.png", tmp_path / "usual"
  path.write_text("old")
  usual.touch()
  pictures.write_image(path, GREY)
  np.testing.assert_array_equal(pictures.read_image(path), GREY)
  assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
  path = tmp_path / "x.png"
  path.write_text("old")

  def fail(*args):
    raise error

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
    pictures.write_image(path, GREY)
  assert os.listdir(tmp_path) == ["x.png"]
  assert path.read_text() == "old"


def test_what_cannot_be_written(tmp_path):
  with pytest.raises(UserError, match=r"x\.gif: cannot write this format: use one of \.png"):
    pictures.write_image(tmp_path / "x.gif", GREY)
  with pytest.raises(UserError, match=r"none/x\.png: cannot write: No such file or directory"):
    pictures.write_image(tmp_path / "none" / "x.png", GREY)
  for path, array in [
    ("x.png", GREY.astype(np.float32)),
    ("x.png", GREY.astype(np.int64)),
    ("x.tif", np.zeros((2, 2, 4), np.uint8)),
    ("x.tif", np.zeros((0, 2), np.uint8)),
  ]:
    with pytest.raises(ValueError, match="no picture of this format"):
      pictures.write_image(tmp_path / path, array)
  assert os.listdir(tmp_path) == []


def test_paths_with_a_scheme_go_through_epath():
  remote = paths.as_path("gs://bucket/folder/x.png")
  assert os.fspath(remote) == "gs://bucket/folder/x.png"
  assert isinstance(remote, epath.Path)
  assert paths.file_stem(remote) == "x"
  with pytest.raises(UserError, match="ftp:// is not a place"):
    pictures.read_image("ftp://host/x.png")


class _Bucket:
  """Stands for a remote place: objects that appear whole."""

  objects: ClassVar[dict[str, bytes]] = {}

  def __init__(self, url: "str | _Bucket"):
    self.url = os.fspath(url)
    self.name = self.url.rpartition("/")[2]
    self.suffix = os.path.splitext(self.name)[1]
    self.stem = os.path.splitext(self.name)[0]

  def __fspath__(self) -> str:
    return self.url

  def is_dir(self) -> bool:
    return any(url.startswith(f"{self.url}/") for url in self.objects)

  def iterdir(self):
    return (_Bucket(url) for url in self.objects if url.startswith(f"{self.url}/"))

  def read_bytes(self) -> bytes:
    if self.url not in self.objects:
      raise FileNotFoundError(self.url)
    return self.objects[self.url]

  def write_bytes(self, data: bytes) -> None:
    self.objects[self.url] = data


def test_remote_files(monkeypatch):
  monkeypatch.setattr(epath, "Path", _Bucket)
  monkeypatch.setattr(_Bucket, "objects", {})
  pictures.write_image("gs://b/a/x.png", RGB)
  found = pictures.list_images("gs://b/a")
  assert list(found) == ["x"]
  np.testing.assert_array_equal(pictures.read_image(found["x"]), RGB)
  with pytest.raises(UserError, match=r"gs://b/a/y\.png: no such file"):
    pictures.read_image("gs://b/a/y.png")
  with pytest.raises(UserError, match="gs://b/none: no such folder"):
    pictures.list_images("gs://b/none")


def test_list_images(tmp_path):
  names = ["b.png", "a b.JPG", "é画.tif", "c.001.bmp", ".hidden.png", "._c.png", "notes.txt"]
  for name in names:
    (tmp_path / name).touch()
  (tmp_path / "folder.png").mkdir()
  found = pictures.list_images(tmp_path)
  assert list(found) == ["a b", "b", "c.001", "é画"]
  assert found["a b"] == tmp_path / "a b.JPG"


def test_list_images_composes_names(tmp_path):
  (tmp_path / "e\u0301.png").touch()  # as macOS stores it
  assert list(pictures.list_images(tmp_path)) == ["\u00e9"]


def test_list_images_refuses_two_files_of_one_stem(tmp_path):
  for name in ("x.png", "x.jpg"):
    (tmp_path / name).touch()
  with pytest.raises(UserError, match=r"x\.jpg and x\.png have the same stem"):
    pictures.list_images(tmp_path)


def test_float_range_and_back():
  levels = np.arange(256, dtype=np.uint8)
  values = pictures.to_float(levels)
  assert values.dtype == np.float32
  assert (values[0], values[-1]) == (-1, 1)
  np.testing.assert_allclose(values, levels / 255 * 2 - 1, atol=1e-7)
  np.testing.assert_array_equal(pictures.from_float(values), levels)
  np.testing.assert_array_equal(pictures.from_float(np.array([-7.0, 7.0, 0.0])), [0, 255, 128])


def test_a_folder_is_moved_where_nothing_can_be_renamed(tmp_path, monkeypatch):
  monkeypatch.setattr(paths, "is_remote", lambda path: True)
  monkeypatch.setattr(epath.Path, "rename", None)
  source, target = epath.Path(tmp_path) / "5", epath.Path(tmp_path) / "damaged" / "5_0"
  (source / "state" / "d").mkdir(parents=True)
  (source / "state" / "d" / "part").write_bytes(b"1")
  (source / "manifest").write_bytes(b"2")
  paths.move_folder(source, target)
  assert not source.exists()
  assert (target / "state" / "d" / "part").read_bytes() == b"1"
  paths.move_folder(target / "manifest", target / "other")
  assert [path.name for path in sorted(target.iterdir())] == ["other", "state"]
