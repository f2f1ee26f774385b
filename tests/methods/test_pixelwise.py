"""What needs no weights: max, mean and overlay are what their names say, to the grey level."""

import numpy as np
import pytest
from PIL import Image

from dmfnet_jax import methods
from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import measure
from dmfnet_jax.inference.model import load_model
from dmfnet_jax.io import color, panels

RNG = np.random.default_rng(0)
A = RNG.integers(0, 256, (20, 28)).astype(np.uint8)
GREY = RNG.integers(0, 256, A.shape).astype(np.uint8)
GREY[:8] = 0
COLOURED = np.dstack([GREY, GREY[:, ::-1], GREY // 2])


def test_they_are_those_without_networks():
  assert methods.without_weights() == ["max", "mean", "overlay"]
  assert load_model("max").trained_on == ()


@pytest.mark.parametrize(
  ("name", "rule"), [("max", np.maximum), ("mean", lambda a, b: (a + b) / 2)]
)
def test_the_luma_is_fused_and_the_colour_kept(name, rule):
  model = load_model(name)
  for b in (GREY, COLOURED):
    luma = np.rint(rule(A.astype(float), color.to_grey(b))).astype(np.uint8)
    want = luma if b.ndim == 2 else color.replace_luma(b, luma)
    np.testing.assert_array_equal(model.fuse(A, b), want)


@pytest.mark.parametrize(
  "b", [GREY, np.dstack([GREY] * 3), COLOURED], ids=["grey", "rgb", "colour"]
)
def test_the_overlay_is_that_of_fusing(b):
  want = panels.overlay(A, color.drop_neutral(b), 0.5)
  np.testing.assert_array_equal(load_model("overlay").fuse(A, b), want)


def test_they_are_what_reports_compare_with():
  """A report and the demo compute the lumas themselves, in NumPy and without a program per size."""
  assert [*measure.BASELINES] == methods.without_weights()
  for name, luma in measure.baselines(A, GREY).items():
    np.testing.assert_array_equal(luma, color.to_grey(load_model(name).fuse(A, GREY)))


def test_a_name_is_a_model_of_the_command_but_a_path_wins(tmp_path, monkeypatch):
  Image.fromarray(A).save(tmp_path / "a.png")
  Image.fromarray(GREY).save(tmp_path / "b.png")
  monkeypatch.chdir(tmp_path)
  assert main(["fuse", "a.png", "b.png", "-o", "f.png", "--model", "max"]) == 0
  np.testing.assert_array_equal(Image.open("f.png"), np.maximum(A, GREY))
  (tmp_path / "max").mkdir()
  with pytest.raises(UserError, match="no checkpoint in max"):
    load_model("max")


def test_a_wrong_name_is_told_of_them():
  with pytest.raises(UserError, match="or max, mean, overlay, which have no weights"):
    load_model("maxx")
