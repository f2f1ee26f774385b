"""Contact sheets with their colour bars, and B laid over A, as viewers of volumes show two."""

import numpy as np
import pytest

from dmfnet_jax.io import color, panels, scaling

A = np.array([[100, 0, 255]], np.uint8)


@pytest.mark.parametrize(
  ("alpha", "expected"),
  [
    (0, [[100, 100, 100], [0, 0, 0], [255, 255, 255]]),
    (0.25, [[100, 100, 100], [64, 64, 64], [223, 191, 191]]),
    (1, [[100, 100, 100], [255, 255, 255], [128, 0, 0]]),
  ],
)
def test_a_grey_b_is_laid_in_hot_where_it_is_above_black(alpha, expected):
  """By hand: hot is white at 255, and (128, 0, 0) at 64; nothing of B stands at its 0."""
  laid = panels.overlay(A, np.array([[0, 255, 64]], np.uint8), alpha)
  assert (laid.shape, laid.dtype) == ((1, 3, 3), np.uint8)
  assert np.abs(laid[0].astype(int) - expected).max() <= 1


def test_black_is_bs_black_whatever_the_map_makes_of_it():
  table = np.full((256, 3), 200, np.uint8)
  laid = panels.overlay(A, np.array([[0, 1, 1]], np.uint8), 1, table=table)
  np.testing.assert_array_equal(laid[0], [[100] * 3, [200] * 3, [200] * 3])


def test_a_coloured_b_keeps_its_colours():
  b = np.array([[[0, 0, 0], [0, 0, 40], [10, 200, 30]]], np.uint8)
  table = scaling.read_lut("pet")
  laid = panels.overlay(A, b, 1, table=table)
  np.testing.assert_array_equal(laid[0, 1:], b[0, 1:])
  np.testing.assert_array_equal(laid[0, 0], [100] * 3)


def test_three_equal_channels_are_grey():
  b = np.array([[7, 255, 64]], np.uint8)
  rgb_a, rgb_b = (np.stack([x] * 3, axis=-1) for x in (A, b))
  laid = panels.overlay(rgb_a, color.drop_neutral(rgb_b), 0.5)
  np.testing.assert_array_equal(laid, panels.overlay(A, b, 0.5))
  np.testing.assert_array_equal(panels.overlay(A, rgb_b, 1)[0], [[7] * 3, [255] * 3, [64] * 3])
  coloured = np.stack([rgb_b, rgb_b * [[[1, 0, 0]]]]).astype(np.uint8)  # a volume: one grey plane
  assert color.drop_neutral(coloured, 3) is coloured


def test_a_sheet_has_room_for_its_words_and_bars():
  green = (0, 200, 0)
  cell = np.full((10, 12, 3), green, np.uint8)
  words = {"column_titles": ["a title wider than its picture", "b"]}
  plain = panels.panel([[cell, cell]], **words)
  bar = np.arange(256, dtype=np.uint8)[None], "0 to 80 HU"
  sheet = panels.panel([[cell, cell]], **words, heading=["one", "two"], bars=[bar, None])
  assert sheet.shape[1] == plain.shape[1] > 2 * 150
  assert sheet.shape[0] > plain.shape[0] + 2 * 10
  ramps = [row for row in sheet[..., 0] if (np.diff(row[10:100].astype(int)) >= 0).all()]
  assert any(np.ptp(row[10:100]) > 80 for row in ramps)
  assert (sheet == green).all(axis=-1).sum() == 2 * 10 * 12
