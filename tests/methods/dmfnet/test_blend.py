"""The head's output that weighs the sources' own pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmfnet_jax.methods.dmfnet import features
from dmfnet_jax.methods.dmfnet.fusion_head import FusionHead
from dmfnet_jax.methods.dmfnet.unet import UNet

SIZE = (4, 6)
HEAD = FusionHead(level_widths=(16, 8), num_timesteps=2, output="blend")


def draw(*shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def inputs():
  """Features of A and of B, and the sources themselves."""
  levels = [(2, 1, 2, 3, 16), (2, 1, 4, 6, 8)]
  a, b = ([draw(*shape, seed=seed + i) for i, shape in enumerate(levels)] for seed in (0, 2))
  return a, b, (draw(1, *SIZE, 1, seed=4), draw(1, *SIZE, 1, seed=5))


@pytest.fixture(scope="module")
def params(inputs):
  return HEAD.init(jax.random.key(0), *inputs)["params"]


def fuse(params, inputs, bias):
  last = {**params["out2"], "bias": jnp.float32(bias)}
  return HEAD.apply({"params": {**params, "out2": last}}, *inputs)


def test_it_begins_as_the_mean_of_the_sources(params, inputs):
  a, b = inputs[2]
  np.testing.assert_allclose(HEAD.apply({"params": params}, *inputs), (a + b) / 2, atol=1e-7)


def test_gate_chooses_a_source_and_the_rest_is_added(params, inputs):
  a, b = inputs[2]
  np.testing.assert_allclose(fuse(params, inputs, [50, 0]), a, atol=1e-6)
  np.testing.assert_allclose(fuse(params, inputs, [-50, 0]), b, atol=1e-6)
  brighter = fuse(params, inputs, [50, 0.5])
  np.testing.assert_allclose(brighter, np.minimum(a + 0.5, 1), atol=1e-6)
  assert brighter.max() == 1


def test_features_move_it(params, inputs):
  """Once its last convolution has left zero."""
  kernel = jnp.full_like(params["out2"]["kernel"], 0.1)
  moved = {**params, "out2": {**params["out2"], "kernel": kernel}}
  first = HEAD.apply({"params": moved}, *inputs)
  other = HEAD.apply({"params": moved}, inputs[1], *inputs[1:])
  assert np.abs(first - other).max() > 1e-3


def test_it_needs_the_sources(params, inputs):
  with pytest.raises(ValueError, match="needs them"):
    HEAD.apply({"params": params}, *inputs[:2])


@pytest.mark.parametrize("passes", [None, 1])
def test_without_clean_images_the_least_noisy_stand_in(params, inputs, passes):
  unet = UNet(width=8, multipliers=(1, 2), num_res_blocks=1, norm_groups=4)
  noisy_a, noisy_b = draw(2, 1, *SIZE, 1, seed=6), draw(2, 1, *SIZE, 1, seed=7)
  levels = np.float32([0.8, 0.5])
  weights = unet.init(jax.random.key(1), noisy_a[0], levels[:1])["params"]
  both = {"unet": weights, "fusion_head": params}

  def run(**sources):
    return features.fuse_noisy(
      unet, HEAD, both, noisy_a, noisy_b, levels, passes_per_step=passes, **sources
    )

  estimated = run()
  np.testing.assert_allclose(estimated, np.clip((noisy_a[0] + noisy_b[0]) / 1.6, -1, 1), atol=1e-6)
  a, b = inputs[2]
  np.testing.assert_allclose(run(sources=(a, b)), (a + b) / 2, atol=1e-6)
