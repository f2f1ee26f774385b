"""Colour arithmetic against values measured with OpenCV 4.12 and 5.0 (which agree)."""

import hashlib

import numpy as np
import pytest

from dmfnet_jax.io.color import replace_luma, rgb_to_luma

# colour: (COLOR_RGB2GRAY, {new luma: RGB after COLOR_RGB2YCrCb, Y := luma, COLOR_YCrCb2RGB})
MEASURED = {
  (0, 0, 0): (0, {0: (0, 0, 0), 128: (128, 128, 128), 250: (250, 250, 250)}),
  (255, 255, 255): (255, {0: (0, 0, 0), 128: (128, 128, 128), 250: (250, 250, 250)}),
  (255, 0, 0): (76, {0: (178, 0, 0), 128: (255, 52, 52), 250: (255, 174, 174)}),
  (0, 255, 0): (150, {0: (0, 106, 0), 128: (0, 234, 0), 250: (100, 255, 99)}),
  (0, 0, 255): (29, {0: (0, 0, 225), 128: (99, 99, 255), 250: (221, 221, 255)}),
  (255, 255, 0): (226, {0: (29, 29, 0), 128: (157, 157, 0), 250: (255, 255, 25)}),
  (0, 255, 255): (179, {0: (0, 77, 76), 128: (0, 205, 204), 250: (70, 255, 255)}),
  (255, 0, 255): (105, {0: (150, 0, 151), 128: (255, 22, 255), 250: (255, 144, 255)}),
  (12, 200, 77): (130, {0: (0, 70, 0), 128: (10, 198, 75), 250: (132, 255, 197)}),
  (190, 30, 140): (90, {0: (100, 0, 50), 128: (228, 68, 178), 250: (255, 190, 255)}),
  (1, 2, 3): (2, {0: (0, 0, 2), 128: (127, 128, 130), 250: (249, 250, 252)}),
  (128, 127, 129): (128, {0: (0, 0, 2), 128: (128, 128, 130), 250: (250, 250, 252)}),
  # Here OpenCV's grey and its Y differ by one.
  (28, 18, 233): (45, {0: (0, 0, 186), 128: (110, 101, 255), 250: (232, 223, 255)}),
  (173, 227, 66): (193, {0: (0, 34, 0), 128: (108, 162, 2), 250: (230, 255, 124)}),
}


def _every_37th_colour() -> np.ndarray:
  code = np.arange(0, 1 << 24, 37, dtype=np.uint32)
  return np.stack([code >> 16, (code >> 8) & 255, code & 255], axis=-1).astype(np.uint8)


def _sha256(array: np.ndarray) -> str:
  return hashlib.sha256(array.tobytes()).hexdigest()


@pytest.mark.parametrize("rgb", MEASURED)
def test_measured_colours(rgb):
  grey, recoloured = MEASURED[rgb]
  assert rgb_to_luma(np.array(rgb, np.uint8)) == grey
  for luma, expected in recoloured.items():
    result = replace_luma(np.array(rgb, np.uint8), np.array(luma, np.uint8))
    assert tuple(result.tolist()) == expected


def test_half_a_million_colours_equal_opencv():
  """The digests are of OpenCV's results for the same 453,439 colours."""
  rgb = _every_37th_colour()
  luma = (rgb @ np.array([7, 11, 13], np.uint32)).astype(np.uint8)
  assert _sha256(rgb_to_luma(rgb)) == (
    "f47460900a004d1b4b835f330871d519050235b97f575f4672a6647467c8151a"
  )
  assert _sha256(replace_luma(rgb, luma)) == (
    "a41906731bf28017ef508e7e3ee4e73c1bddc020e85b26948d159a078c11dbcb"
  )


def test_neutral_stays_neutral_and_takes_the_luma():
  levels = np.arange(256, dtype=np.uint8)
  old, new = np.meshgrid(levels, levels)
  result = replace_luma(np.stack([old] * 3, axis=-1), new)
  np.testing.assert_array_equal(result, np.stack([new] * 3, axis=-1))
  np.testing.assert_array_equal(rgb_to_luma(np.stack([levels] * 3, axis=-1)), levels)


def test_batches_are_their_pictures():
  rng = np.random.default_rng(0)
  rgb = rng.integers(0, 256, (3, 5, 7, 3), np.uint8)
  luma = rng.integers(0, 256, (3, 5, 7), np.uint8)
  np.testing.assert_array_equal(rgb_to_luma(rgb)[1], rgb_to_luma(rgb[1]))
  np.testing.assert_array_equal(replace_luma(rgb, luma)[2], replace_luma(rgb[2], luma[2]))


def test_the_sources_are_left_alone():
  rgb, luma = np.full((2, 2, 3), 9, np.uint8), np.full((2, 2), 200, np.uint8)
  replace_luma(rgb, luma)
  assert (rgb == 9).all()
  assert (luma == 200).all()


@pytest.mark.parametrize(
  ("rgb", "luma", "error"),
  [
    (np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), TypeError),
    (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), TypeError),
    (np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2), np.uint8), ValueError),
    (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), np.uint8), ValueError),
  ],
)
def test_wrong_arguments(rgb, luma, error):
  with pytest.raises(error):
    replace_luma(rgb, luma)
