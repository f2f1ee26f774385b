"""Values through windows, and colour maps: exact values, what is refused, DICOM's own tables."""

import warnings

import numpy as np
import pytest

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import color, scaling


def test_to_uint8_is_linear_and_rounds():
  values = np.array([[-5.0, 0, 1, 2, 49.9, 50, 100, 101]])
  np.testing.assert_array_equal(
    scaling.to_uint8(values, (0, 100)), [[0, 0, 3, 5, 127, 128, 255, 255]]
  )


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.float32, np.float64])
def test_to_uint8_takes_any_type(dtype):
  values = np.arange(0, 120, 10).astype(dtype).reshape(2, 2, 3)
  expected = np.rint(np.clip((values - 20.0) / 60, 0, 1) * 255)
  np.testing.assert_array_equal(scaling.to_uint8(values, (20, 80)), expected)


def test_to_uint8_of_odd_values():
  values = np.array([[np.nan, np.inf, -np.inf, 3e38, -3e38]], np.float32)
  np.testing.assert_array_equal(scaling.to_uint8(values, (-1, 1)), [[0, 255, 0, 255, 0]])
  # A window whose width overflows.
  np.testing.assert_array_equal(scaling.to_uint8(values, (-1.7e308, 1.7e308))[0, 3:], [128, 128])


@pytest.mark.parametrize("name", scaling.LUT_NAMES)
def test_named_maps(name):
  table = scaling.read_lut(name)
  assert table.shape == (256, 3)
  assert table.dtype == np.uint8
  np.testing.assert_array_equal(table[[0, -1]], [[0, 0, 0], [255, 255, 255]])


@pytest.mark.parametrize(("name", "file"), [("hot", "hotiron"), ("pet", "pet")])
def test_two_maps_are_those_of_dicom(name, file):
  pydicom = pytest.importorskip("pydicom")
  from pydicom.data import get_palette_files

  dataset = pydicom.dcmread(get_palette_files(f"{file}.dcm")[0])
  keys = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
  palette = np.stack([np.frombuffer(dataset[key].value, np.uint8) for key in keys], axis=-1)
  assert np.abs(scaling.read_lut(name).astype(int) - palette).max() <= 4


def test_hot_grows_in_luma():
  luma = color.rgb_to_luma(scaling.read_lut("hot")).astype(int)
  assert (np.diff(luma) >= 0).all()
  assert len(np.unique(luma)) > 200


TABLES = {
  "spaces": b"0 0 0\n255 128 0\n",
  "commas and comments": b"# a map\n0,0,0\n\n255,128,0 # top\n",
  "heading and index": b"Index Red Green Blue\n0 0 0 0\n255 255 128 0\n",
  "fractions": b"0 0 0\n1.0 0.50196 0\n",
  "semicolons, Windows": b"0;0;0\r\n255;128;0\r\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_text_tables(tmp_path, name):
  (tmp_path / "map.txt").write_bytes(TABLES[name])
  table = scaling.read_lut(str(tmp_path / "map.txt"))
  ramp = np.arange(256)
  np.testing.assert_array_equal(table, np.stack([ramp, np.rint(ramp * 128 / 255), 0 * ramp], -1))


def test_the_binary_table_of_imagej(tmp_path):
  table = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
  (tmp_path / "x.lut").write_bytes(table.T.tobytes())
  np.testing.assert_array_equal(scaling.read_lut(str(tmp_path / "x.lut")), table)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "fewer than two lines"),
    (b"0 0 0\n", "fewer than two lines"),
    (b"0 0 0\n1 2\n", "line 2 is not three numbers"),
    (b"0 0 0\n0 0 256\n", "line 2 is not three numbers"),
    (b"0 0 0\n0 nan 3\n", "line 2 is not three numbers"),
    (b"0 0 0\nred\n", "line 2 holds no colour"),
    (b"\x89PNG\r\n\x1a\n\x00\x00", "fewer than two lines"),
    (b"0 " * (1 << 20), "too large"),
  ],
)
def test_what_is_no_table(tmp_path, data, message):
  (tmp_path / "x").write_bytes(data)
  with pytest.raises(UserError, match=message) as caught:
    scaling.read_lut(str(tmp_path / "x"))
  assert "\n" not in str(caught.value)


def test_no_such_map_lists_what_there_is(tmp_path):
  for name in ("jets", "hot_r_r", str(tmp_path / "none.txt"), str(tmp_path)):
    with pytest.raises(UserError) as caught:
      scaling.read_lut(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: no colour map of this name and no readable file: give")
    for part in (
      "hot, pet, spectrum",
      "HOT_IRON, PET, HOT_METAL_BLUE",
      " inferno, jet, ",
      "NAME_r",
    ):
      assert part in message
    assert "jet_r" not in message
    assert message.count(" hot,") == 1
    assert "\n" not in message


@pytest.mark.parametrize("name", ["jet", "viridis", "PuBuGn", "tab10", "viridis_r", "turbo_r"])
def test_names_of_matplotlib(name):
  colormaps = pytest.importorskip("matplotlib").colormaps
  shown = colormaps[name](np.arange(256) / 255)[:, :3] * 255
  np.testing.assert_array_equal(scaling.read_lut(name), np.rint(shown))


def test_matplotlibs_hot_is_ours():
  """The name was taken: results of it stay what they were."""
  np.testing.assert_array_equal(scaling.read_lut("hot")[128], [255, 0, 0])


@pytest.mark.parametrize(
  ("names", "colours"),
  [
    (("HOT_IRON", "Hot Iron", "hot-iron"), {0: (0, 0, 0), 64: (128, 0, 0), 255: (255, 255, 255)}),
    (("PET", "Pet"), {0: (0, 0, 0), 1: (0, 2, 1), 2: (0, 4, 3)}),
    (("HOT_METAL_BLUE", "hot metal blue"), {0: (0, 0, 0), 1: (0, 0, 2), 255: (255, 255, 255)}),
    (("PET_20_STEP", "pet_20_step"), {0: (0, 0, 0), 13: (96, 0, 80), 255: (255, 255, 255)}),
  ],
)
def test_palettes_of_dicom(names, colours):
  """Entries of PS3.6, tables B.1-1 to B.1-4, in any writing of the names."""
  for name in names:
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      table = scaling.read_lut(name)
    assert (table.shape, table.dtype) == ((256, 3), np.uint8)
    for value, colour in colours.items():
      np.testing.assert_array_equal(table[value], colour)


@pytest.mark.parametrize("name", ["hot", "spectrum", "PET", "inferno"])
def test_r_is_reversed(name):
  np.testing.assert_array_equal(scaling.read_lut(f"{name}_r"), scaling.read_lut(name)[::-1])


CTBL = """# Color table file C:/Users/x/PET.ctbl
# 3 values
0 Background 0 0 0 0
128 warm grey 255 0 64 255

256 256 255 255 0 255
"""


def test_a_table_of_slicer(tmp_path):
  """Each colour stands where its number says; names may be numbers or hold spaces."""
  (tmp_path / "x.ctbl").write_text(CTBL)
  table = scaling.read_lut(str(tmp_path / "x.ctbl")).astype(int)
  np.testing.assert_array_equal(table[[0, 255]], [[0, 0, 0], [255, 255, 0]])
  assert np.abs(table[64] - [128, 0, 32]).max() <= 1
  assert np.abs(table[191] - [255, 127, 32]).max() <= 1
  for line, message in (
    ("3 x 1 2 3", "line 7 is not: number, name, and RGBA"),
    ("3 x 1 2 3 256", "line 7 is not"),
    ("red", "line 7 is not"),
  ):
    (tmp_path / "y.ctbl").write_text(CTBL + line)
    with pytest.raises(UserError, match=message):
      scaling.read_lut(str(tmp_path / "y.ctbl"))
  (tmp_path / "y.ctbl").write_text("# nothing")
  with pytest.raises(UserError, match="fewer than two lines of colours"):
    scaling.read_lut(str(tmp_path / "y.ctbl"))


def test_a_table_of_fsleyes(tmp_path):
  (tmp_path / "x.cmap").write_text("0.0 0.0 0.0\n5.019607843e-01 0.0 0.0\n1.0 1.0 0.5\n")
  table = scaling.read_lut(str(tmp_path / "x.cmap")).astype(int)
  np.testing.assert_array_equal(table[[0, 255]], [[0, 0, 0], [255, 255, 128]])
  assert np.abs(table[127] - [128, 0, 0]).max() <= 1


def test_apply_lut():
  table = scaling.read_lut("spectrum")
  grey = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
  assert scaling.apply_lut(grey, table).shape == (4, 8, 8, 3)
  np.testing.assert_array_equal(scaling.apply_lut(grey, table).reshape(-1, 3), table)
