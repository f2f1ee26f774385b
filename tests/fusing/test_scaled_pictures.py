"""Windows, colour maps and deviations of pictures, with a stand-in for the model."""

import json
import shlex

import numpy as np
import pytest
from fake_model import listing
from PIL import Image

from dmfnet_jax.cli import main
from dmfnet_jax.io import color, panels, pictures, scaling

HEIGHT, WIDTH = 40, 50
# A PET of 12 significant bits in a 16-bit file: as stored it is all but black.
COUNTS = np.random.default_rng(0).integers(0, 4000, (HEIGHT, WIDTH)).astype(np.uint16)
MRI = np.random.default_rng(1).integers(0, 100, (HEIGHT, WIDTH), np.uint8)


@pytest.fixture
def pair(tmp_path):
  """An MRI and a PET as files."""
  pictures.write_image(tmp_path / "mri.png", MRI)
  Image.fromarray(COUNTS).save(tmp_path / "pet.png")
  return str(tmp_path / "mri.png"), str(tmp_path / "pet.png")


def _fuse(*arguments) -> int:
  return main(["fuse", *map(str, arguments)])


def test_a_window_works_on_the_stored_numbers(pair, tmp_path, model, capsys):
  out = tmp_path / "f.png"
  assert _fuse(*pair, "-o", out, "--window-b", "500,3500") == 0
  expected = np.maximum(MRI, scaling.to_uint8(COUNTS, (500, 3500)))
  fused = pictures.read_image(out)
  assert fused.ndim == 2
  assert np.abs(fused.astype(int) - expected).max() <= 3  # but for the stand-in's mark
  assert "windows: B 500 to 3500 (given)" in capsys.readouterr().err
  record = json.loads((tmp_path / "f.json").read_text())
  assert record["window_a"] is None
  assert record["window_b"] == [500, 3500]


def test_a_colour_map_colours_the_result(pair, tmp_path, model):
  assert _fuse(*pair, "-o", tmp_path / "f.png", "--window-b", "0,4000", "--lut", "spectrum") == 0
  coloured = scaling.apply_lut(scaling.to_uint8(COUNTS, (0, 4000)), scaling.read_lut("spectrum"))
  fused = pictures.read_image(tmp_path / "f.png")
  largest = np.maximum(MRI, color.rgb_to_luma(coloured))
  assert np.abs(fused.astype(int) - color.replace_luma(coloured, largest)).max() <= 3
  assert fused.shape == (HEIGHT, WIDTH, 3)


def test_a_colour_map_alone_takes_pictures_as_stored(pair, tmp_path, model):
  """Also a grey picture with three equal channels."""
  for name, stored in (("1", MRI), ("3", np.stack([MRI] * 3, axis=-1))):
    pictures.write_image(tmp_path / "b.png", stored)
    assert _fuse(pair[0], tmp_path / "b.png", "-o", tmp_path / f"{name}.png", "--lut", "hot") == 0
  first, second = (pictures.read_image(tmp_path / f"{name}.png") for name in "13")
  np.testing.assert_array_equal(first, second)
  assert first.shape == (HEIGHT, WIDTH, 3)
  assert json.loads((tmp_path / "1.json").read_text())["window_b"] is None


def test_the_record_repeats_the_run(pair, tmp_path, model):
  first = ["--window-a", "auto", "--window-b", "auto", "--lut", "pet", "--seed", 4, "--samples", 2]
  assert _fuse(*pair, "-o", tmp_path / "1.png", *first) == 0
  record = json.loads((tmp_path / "1.json").read_text())
  assert record["window_b_from"] == "percentiles 0.5 and 99.5"
  assert _fuse(*pair, "-o", tmp_path / "2.png", *shlex.split(record["options"])) == 0
  for ending in (".png", "_std.tiff", "_std.png"):
    files = [tmp_path / f"{name}{ending}" for name in "12"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_without_options_nothing_changes(pair, tmp_path, model):
  assert _fuse(*pair, "-o", tmp_path / "out") == 0
  assert listing(tmp_path / "out") == ["mri.png"]


def test_coloured_pictures_need_none(pair, tmp_path, model, capsys):
  rgb = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
  pictures.write_image(tmp_path / "rgb.png", rgb)
  for arguments, message in [
    ((pair[0], "rgb.png", "--lut", "hot"), "rgb.png: is coloured already: --lut is for grey"),
    ((pair[0], "rgb.png", "--window-b", "0,9"), "rgb.png: is coloured: a window is for grey"),
    (("rgb.png", pair[1], "--window-a", "0,9"), "rgb.png: is coloured: a window is for grey"),
  ]:
    a, b, *options = (tmp_path / x if x == "rgb.png" else x for x in arguments)
    assert _fuse(a, b, "-o", tmp_path / "f.png", *options) == 1
    assert message in capsys.readouterr().err


def test_windows_of_a_folder_are_told_when_they_change(tmp_path, model, capsys):
  for folder in "ab":
    (tmp_path / folder).mkdir()
    for i in range(5):
      picture = np.random.default_rng(i // 2).integers(0, 4000, (6, 6)).astype(np.uint16)
      Image.fromarray(picture).save(tmp_path / folder / f"{i}.png")
  folders = tmp_path / "a", tmp_path / "b"
  assert _fuse(*folders, "-o", tmp_path / "given", "--window-b", "0,4000") == 0
  assert capsys.readouterr().err.count("windows:") == 1
  assert _fuse(*folders, "-o", tmp_path / "auto", "--window-b", "auto") == 0
  assert capsys.readouterr().err.count("windows:") == 3
  assert len(list((tmp_path / "auto").glob("[0-9].json"))) == 5


def test_options_of_volumes_have_no_effect_here(pair, tmp_path, model, capsys):
  assert _fuse(*pair, "-o", tmp_path / "f.png", "--rgb") == 0
  assert "--rgb: for volumes alone, no effect here" in capsys.readouterr().err


def test_nothing_to_see_is_an_error(pair, tmp_path, model, capsys):
  pictures.write_image(tmp_path / "black.png", np.zeros((HEIGHT, WIDTH), np.uint8))
  assert _fuse(pair[0], tmp_path / "black.png", "-o", tmp_path / "f.png", "--window-b=auto") == 1
  assert "black.png: every value is 0" in capsys.readouterr().err


def test_the_map_of_the_deviation():
  fused = np.full((40, 400), 200, np.uint8)
  std = np.zeros((40, 400), np.float32)
  std[:20, :200], std[:20, 200:] = 1.7, 0.4
  assert panels.deviation_top(std) == 2
  sheet = panels.deviation_map(fused, std, samples=8)
  assert sheet.shape == (74, 400, 3)
  assert sheet.dtype == np.uint8
  np.testing.assert_array_equal(sheet[30, 10], [100, 100, 100])  # no deviation: grey, dimmed
  large, small = sheet[10, 10].astype(int), sheet[10, 300].astype(int)
  assert large[0] - large[2] > 100
  assert 0 < small[0] - small[2] < large[0] - large[2]
  coloured = panels.deviation_map(np.stack([fused] * 3, axis=-1), std, samples=8)
  np.testing.assert_array_equal(coloured, sheet)
  # The legend has room under a picture that is narrower than it.
  assert panels.deviation_map(fused[:, :30], std[:, :30], samples=8).shape[1] > 150


@pytest.mark.parametrize(
  ("largest", "top"), [(0, 0.01), (0.011, 0.02), (1, 1), (1.01, 2), (4, 5), (60, 100), (1e4, 500)]
)
def test_the_scale_of_the_deviation_ends_at_a_round_number(largest, top):
  assert panels.deviation_top(np.full((5, 5), largest, np.float32)) == pytest.approx(top)
