"""Figures for notebooks."""

import subprocess
import sys

import numpy as np
import pytest

import dmfnet_jax
from dmfnet_jax.errors import UserError
from dmfnet_jax.io.panels import overlay
from dmfnet_jax.plot import difference, panel

GREY = np.array([[0, 100, 200], [50, 150, 250]], np.uint8)
RED = np.zeros((2, 3, 3), np.uint8)
RED[..., 0] = 255  # luma 76


@pytest.fixture
def pyplot():
  matplotlib = pytest.importorskip("matplotlib")
  matplotlib.use("Agg")
  return pytest.importorskip("matplotlib.pyplot")


def test_a_panel(pyplot):
  fused = np.full((2, 3, 3), 90, np.uint8)
  figure = panel(GREY, RED, fused, title="pet_$1")
  shown = [axis for axis in figure.axes if axis.images]
  assert [axis.get_title() for axis in shown] == ["A", "B", "fused", "fused − max(A, B)"]
  for axis, picture in zip(shown, (GREY, RED, fused), strict=False):
    np.testing.assert_array_equal(axis.images[0].get_array(), picture)
    assert axis.images[0].get_clim() == (0, 255)
  change = shown[3].images[0]
  np.testing.assert_array_equal(change.get_array(), [[14, -10, -110], [14, -60, -160]])
  assert change.get_clim() == (-160, 160)  # white is no difference
  assert figure.get_suptitle() == "pet_$1"
  figure.canvas.draw()
  assert pyplot.get_fignums() == []  # nothing is left open


def test_an_overlay_is_a_further_column(pyplot):
  figure = panel(GREY, RED, GREY, overlay=0.5)
  shown = [axis for axis in figure.axes if axis.images]
  titles = ["A", "B", "overlay", "fused", "fused − max(A, B)"]
  assert [axis.get_title() for axis in shown] == titles
  np.testing.assert_array_equal(shown[2].images[0].get_array(), overlay(GREY, RED, 0.5))
  with pytest.raises(UserError, match=r"overlay is an opacity, 0 to 1, got 50"):
    panel(GREY, RED, GREY, overlay=50)


def test_floats_are_pictures_in_minus_one_to_one(pyplot):
  figure = panel(*[(x.astype(np.float32) / 127.5 - 1) for x in (GREY, RED, GREY)])
  np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), RED)


def test_the_difference_of_equal_pictures_is_nothing(pyplot):
  figure = panel(GREY, GREY, GREY)
  assert figure.axes[3].images[0].get_clim() == (-1, 1)
  assert not difference(GREY, GREY, GREY).any()


@pytest.mark.parametrize(
  ("pictures", "message"),
  [
    ((GREY, GREY, GREY[:, :2]), r"one height and width, got \[\(2, 3\), \(2, 3\), \(2, 2\)\]"),
    ((GREY, GREY[0], GREY), r"b must be one picture, .* got \(3,\)"),
    ((GREY[:0], GREY, GREY), r"a must be one picture, .* got \(0, 3\)"),
    ((GREY, GREY, GREY.astype(float)), r"fused must be uint8 or float in \[-1, 1\]"),
    ((GREY / 255, RED, GREY), r"a is float and must lie in \[-1, 1\], but has no negative value"),
    ((GREY.astype(int), GREY, GREY), r"a must be uint8 or float .* got int64"),
    ((GREY, GREY, np.full((2, 3), np.nan)), "fused must be uint8 or float"),
  ],
)
def test_what_does_not_fit_is_refused(pictures, message):
  with pytest.raises(UserError, match=message):
    panel(*pictures)


def test_without_matplotlib(monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.raises(UserError, match="pip install matplotlib"):
    panel(GREY, GREY, GREY)


def test_matplotlib_waits_for_a_figure():
  code = (
    "import sys, dmfnet_jax; light = {'numpy', 'dmfnet_jax.plot'} & sys.modules.keys();"
    "dmfnet_jax.plot.panel; sys.exit(str(light) if light or 'matplotlib' in sys.modules else 0)"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  with pytest.raises(AttributeError, match="no attribute 'plots'"):
    _ = dmfnet_jax.plots
