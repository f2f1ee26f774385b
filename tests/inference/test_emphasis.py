"""Tracer first: more uptake is brighter, and the anatomy's detail stays."""

import matplotlib
import numpy as np
import pytest
from scipy import ndimage

from dmfnet_jax.data.builders import mni_template, simulate
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.emphasis import follow_tracer
from dmfnet_jax.inference.model import load_model
from dmfnet_jax.io import color
from dmfnet_jax.metrics import compute_reader_metrics, qabf


def signed(grey):
  return (grey / 127.5 - 1).astype(np.float32)


def grey_levels(x):
  return (x + 1) * 127.5


@pytest.fixture(scope="module")
def slice_with_a_lesion():
  """T1 [H, W] of the template, its PET through `hot` with a lesion, and where that is.

  The lesion is a disc of 8 mm in white matter, with three times the uptake of the cortex.
  """
  mri, _, _ = mni_template.mni_pair("pet", "axial", 80)
  uptake = simulate.activity(simulate.PET, mni_template.tissue_slab("axial", 80, 0)[:, 0])
  y, x = np.indices(uptake.shape)
  distance = np.hypot(y - 115, x - 97)
  uptake = simulate.blur(np.where(distance <= 8, 3.0, uptake), simulate.PET.fwhm)
  shown = np.clip(np.rint(uptake / uptake.max() * 255), 0, 255).astype(np.uint8)
  table = np.rint(matplotlib.colormaps["hot"](np.arange(256))[:, :3] * 255).astype(np.uint8)
  return mri, table[shown], distance


def brightness_of_lesion(luma, distance):
  """Over that of its surroundings."""
  return luma[distance <= 5].mean() / luma[(distance > 12) & (distance < 20)].mean()


def test_a_hot_lesion_stands_out_as_in_an_overlay(slice_with_a_lesion):
  mri, pet, distance = slice_with_a_lesion
  uptake = color.to_grey(pet)
  brighter = np.maximum(mri, uptake)
  assert brightness_of_lesion(brighter.astype(float), distance) < 1.7
  emphasised = grey_levels(follow_tracer(signed(brighter), signed(uptake)))
  assert brightness_of_lesion(emphasised, distance) >= 1.8


def test_order_of_uptake_is_kept_and_detail_too(slice_with_a_lesion):
  mri, pet, _ = slice_with_a_lesion
  uptake = color.to_grey(pet).astype(float)
  brighter = np.maximum(mri, uptake)
  emphasised = grey_levels(follow_tracer(signed(brighter), signed(uptake)))
  triples = [(mri[None], uptake[None], f[None]) for f in (brighter, emphasised)]
  before, after = (float(compute_reader_metrics(*t)["tracer_order"][0]) for t in triples)
  assert after > before + 0.4
  # Without the anatomy's detail it would be the blurred tracer.
  blurred = (mri[None], uptake[None], ndimage.gaussian_filter(uptake, 3)[None])
  assert qabf(*triples[1])[0] > 2 * qabf(*blurred)[0]


def test_where_the_tracer_shows_nothing_all_stays():
  rng = np.random.default_rng(0)
  fused = rng.uniform(-1, 1, (48, 40)).astype(np.float32)
  nothing = np.full_like(fused, -1)
  assert follow_tracer(fused, nothing) is fused
  tracer = nothing.copy()
  tracer[10:20, 10:20] = 0.5
  changed = np.abs(follow_tracer(fused, tracer) - fused) > 1e-6
  assert changed[12:18, 12:18].all()
  assert not changed[tracer == -1].any()


def test_a_tracer_of_one_value_has_no_own_width():
  flat = np.zeros((48, 40), np.float32)
  assert np.isfinite(follow_tracer(flat, flat)).all()


def test_the_scale_is_the_picture_s(slice_with_a_lesion):
  """Twice the pixels, the same picture."""
  mri, pet, _ = slice_with_a_lesion
  uptake = color.to_grey(pet)
  sources = [signed(x) for x in (np.maximum(mri, uptake), uptake)]
  small = follow_tracer(*sources)
  large = follow_tracer(*(ndimage.zoom(x, 2, order=1) for x in sources))
  assert np.abs(large[::2, ::2] - small).mean() < 0.02


def test_in_the_public_interface(slice_with_a_lesion):
  mri, pet, distance = slice_with_a_lesion
  model = load_model("max")
  uptake = color.to_grey(pet)
  fused = model.fuse(mri, uptake, emphasis="tracer")
  expected = follow_tracer(signed(np.maximum(mri, uptake)), signed(uptake))
  assert np.abs(fused - grey_levels(expected)).max() <= 0.501
  coloured = model.fuse(mri, pet, emphasis="tracer")
  assert brightness_of_lesion(color.to_grey(coloured).astype(float), distance) >= 1.8
  with pytest.raises(UserError, match="no emphasis 'uptake': there is tracer"):
    model.fuse(mri, pet, emphasis="uptake")
