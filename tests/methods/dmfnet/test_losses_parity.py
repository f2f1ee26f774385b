"""Stage II's loss and its gradient are the published program's."""

import inspect

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import TOLERANCE, nchw, nhwc, relative_error

from dmfnet_jax import losses


@pytest.fixture(scope="module")
def golden():
  return golden_weights.load("losses")


def _images(golden, case):
  return [nhwc(golden[f"{name}_{case}"]) for name in ("fused", "mri", "other")]


@pytest.mark.parametrize("case", [0, 1, 2])
def test_terms_meet_golden(golden, case):
  loss, terms = jax.jit(losses.fusion_loss)(*_images(golden, case))
  intensity, gradient, ssim = (np.mean(terms[k]) for k in ("intensity", "gradient", "ssim"))
  # The golden terms carry their weights.
  assert relative_error(1.5 * intensity, golden[f"intensity_{case}"]) < TOLERANCE
  assert relative_error(0.5 * (1 - ssim), golden[f"ssim_{case}"]) < TOLERANCE
  both = golden[f"gradient_plus_ssim_{case}"]
  assert relative_error(gradient + 0.5 * (1 - ssim), both) < TOLERANCE
  assert relative_error(np.mean(loss), golden[f"intensity_{case}"] + both) < TOLERANCE


@pytest.mark.parametrize("case", [0, 1, 2])
def test_gradient_meets_golden(golden, case):
  fused, a, b = _images(golden, case)
  gradient = jax.jit(jax.grad(lambda f: jnp.mean(losses.fusion_loss(f, a, b)[0])))(fused)
  assert relative_error(nchw(gradient), golden[f"grad_wrt_fused_{case}"]) < TOLERANCE


@pytest.mark.parametrize("shape", [(3, 24, 40), (1, 7, 9)])
def test_pictures_on_black_background_meet_torch(shape):
  """Medical pictures: a blob on black, where both sources tie and nothing varies."""
  torch = pytest.importorskip("torch")
  import torch_reference

  batch, height, width = shape
  rng = np.random.default_rng(0)
  y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
  inside = (x**2 + y**2 < 0.6)[None, None]
  fused, a, b = (
    np.where(inside, rng.uniform(-1, 1, (batch, 1, height, width)), -1).astype(np.float32)
    for _ in range(3)
  )
  theirs = torch.from_numpy(fused).requires_grad_()
  expected = torch_reference.fusion_loss_terms(theirs, torch.from_numpy(a), torch.from_numpy(b))
  expected["loss"].backward()

  def mean_loss(fused):
    loss, terms = losses.fusion_loss(fused, nhwc(a), nhwc(b))
    return jnp.mean(loss), terms

  (loss, terms), gradient = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(nhwc(fused))
  assert relative_error(loss, expected["loss"].item()) < TOLERANCE
  for ours, name in (("intensity", "intensity"), ("gradient", "gradient"), ("ssim", "structure")):
    assert terms[ours].shape == (batch,)
    assert relative_error(np.mean(terms[ours]), expected[name].item()) < TOLERANCE
  assert relative_error(nchw(gradient), theirs.grad) < TOLERANCE


def test_overlap_brightens_the_target_where_both_sources_are_bright():
  """By hand: max + 0.1 (min + 1), cut at 1."""
  a, b = np.float32([-1, 0.0, 0.9]), np.float32([0.5, 0.0, 0.95])
  target = np.float32([0.5, 0.1, 1.0])
  a, b, target = (np.tile(x[:, None, None, None], (1, 8, 8, 1)) for x in (a, b, target))
  _, terms = losses.fusion_loss(target, a, b, overlap=0.1)
  np.testing.assert_allclose(terms["intensity"], 0, atol=1e-7)
  _, terms = losses.fusion_loss(target - 0.25, a, b, overlap=0.1)
  np.testing.assert_allclose(terms["intensity"], 0.25, rtol=1e-6)
  _, terms = losses.fusion_loss(target, a, b)
  np.testing.assert_allclose(terms["intensity"], [0, 0.1, 0.05], atol=1e-6)
  # The second one's brightness is a half.
  _, terms = losses.fusion_loss(target, a, b, overlap=0.1, overlap_power=1)
  np.testing.assert_allclose(terms["intensity"], [0, 0.05, 0], atol=1e-6)


def test_shade_darkens_dark_greys_and_leaves_black_and_white():
  """By hand: of 0, 1/4, 1/2 and 1 remain 0, 1/4 - 9/64 s, 1/2 - s/8 and 1."""
  a = np.float32([0, 0.25, 0.5, 1]) * 2 - 1
  target = np.float32([0, 0.25 - 0.1 * 9 / 64, 0.5 - 0.1 / 8, 1]) * 2 - 1
  a, target = (np.tile(x[:, None, None, None], (1, 8, 8, 1)) for x in (a, target))
  black = np.full_like(a, -1)
  _, terms = losses.fusion_loss(target, a, black, shade=0.1)
  np.testing.assert_allclose(terms["intensity"], 0, atol=1e-7)
  # The darker source lifts as before: of two equal middle greys by 0.2 of a half.
  _, terms = losses.fusion_loss(target + 0.1 * (a + 1), a, a, shade=0.1, overlap=0.1)
  np.testing.assert_allclose(terms["intensity"][:3], 0, atol=1e-7)


def test_the_mean_is_mixed_into_the_target():
  """By hand: a quarter of (-1 + 0.5) / 2, three quarters of 0.5."""
  a, b = np.full((1, 8, 8, 1), -1, np.float32), np.full((1, 8, 8, 1), 0.5, np.float32)
  _, terms = losses.fusion_loss(np.full_like(a, 0.3125), a, b, mean_share=0.25)
  np.testing.assert_allclose(terms["intensity"], 0, atol=1e-7)


def test_what_a_reader_objects_to_costs_what_it_should():
  """By hand: a white square on black, with a dark hole and a halo that neither source has."""
  a = np.full((1, 32, 32, 1), -1, np.float32)
  a[:, 8:24, 8:24] = 1
  b = np.full_like(a, -1)
  fused = a.copy()
  fused[:, 16, 16] = 0  # 1 below the brighter source
  fused[:, 4, 8:24] = -0.5  # 0.5 above all around it
  plain, _ = losses.fusion_loss(fused, a, b)
  loss, terms = losses.fusion_loss(fused, a, b, lost_weight=20, invention_weight=3)
  assert terms["lost"] == pytest.approx([(1 - 0.12) ** 2 / 32**2])
  assert terms["invention"] == pytest.approx([16 * 0.5 / 32**2])
  assert loss == pytest.approx(plain + 20 * terms["lost"] + 3 * terms["invention"])
  _, same = losses.fusion_loss(a, a, b, lost_weight=20, invention_weight=3)
  assert same["lost"] == same["invention"] == same["gradient"] == 0
  _, steeper = losses.fusion_loss(a, a, b, gradient_gain=1.5)
  edges = (
    losses.sobel_gradient(jnp.asarray(a)).mean() - losses.sobel_gradient(jnp.asarray(b)).mean()
  )
  assert steeper["gradient"] > 0.4 * edges
  # By hand: of a ramp of gradient 1, everywhere but at the border, 1 + 0.5 * 1 / (1 + 3).
  ramp = np.tile(np.arange(32, dtype=np.float32)[:, None] / 8 - 2, (1, 1, 32))[..., None]
  _, terms = losses.fusion_loss(ramp, ramp, ramp, gradient_gain=1.5, gain_half=3.0)
  inner = 30 * 30 * 0.125
  border = losses.sobel_gradient(jnp.asarray(ramp))
  border = border.at[:, 1:-1, 1:-1].set(0)
  at_border = jnp.sum(0.5 * border**2 / (border + 3))
  np.testing.assert_allclose(terms["gradient"], (inner + at_border) / 32**2, rtol=1e-4)
  # With the power 2 of the inner ones 0.5 / (1 + 3^2).
  _, terms = losses.fusion_loss(ramp, ramp, ramp, gradient_gain=1.5, gain_half=3.0, gain_power=2.0)
  at_border = jnp.sum(0.5 * border**3 / (border**2 + 9))
  np.testing.assert_allclose(terms["gradient"], (900 * 0.05 + at_border) / 32**2, rtol=1e-4)
  # The border's gradients are far above the floor.
  _, terms = losses.fusion_loss(ramp, ramp, ramp, gradient_floor=0.25)
  np.testing.assert_allclose(
    terms["gradient"], 0.25 * (np.asarray(border) > 0).sum() / 32**2 + 0.25 * 900 / 32**2, rtol=1e-2
  )


def test_a_config_has_what_the_function_takes_by_itself():
  parameters = inspect.signature(losses.fusion_loss).parameters.values()
  own = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
  assert own == losses.FUSION_WEIGHTS
