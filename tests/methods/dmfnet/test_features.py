"""Noise, the features that fusion uses, and the arithmetic that they save."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dmfnet_jax.diffusion.schedule import make_schedule
from dmfnet_jax.methods.dmfnet import features
from dmfnet_jax.methods.dmfnet.networks import build_fusion_head, build_unet
from dmfnet_jax.methods.dmfnet.unet import UNet

SCHEDULE = make_schedule("linear", 2000)
TIMESTEPS = (5, 10, 20)


def keys(count, seed=0):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def noise(a, b, keys):
  return jax.tree.map(np.asarray, features.noise_sources(SCHEDULE, TIMESTEPS, a, b, keys))


def test_sources_are_noised_to_the_levels_of_the_steps():
  """One level a pair and step, shared by the sources; each source and step with its own noise."""
  x = np.full((3, 40, 40, 1), 0.5, np.float32)
  noisy_a, noisy_b, levels = noise(x, x, keys(3))
  assert noisy_a.shape == noisy_b.shape == (3, 3, 40, 40, 1)
  assert levels.shape == (3, 3)
  g = np.asarray(SCHEDULE.noise_levels)
  for level, t in zip(levels, TIMESTEPS, strict=True):
    assert ((level >= g[t]) & (level <= g[t - 1])).all()
    assert len(set(level)) == 3
  g = levels[..., None, None, None]
  rests = [(noisy - g * x) / np.sqrt(1 - g**2) for noisy in (noisy_a, noisy_b)]
  rests = np.concatenate(rests).reshape(18, -1)  # standard normal, of 1,600 values each
  np.testing.assert_allclose(rests.std(1), 1, atol=0.1)
  correlation = np.corrcoef(rests) - np.eye(18)
  assert np.abs(correlation).max() < 0.15


def test_noise_belongs_to_the_pair():
  a, b = draw(2, 3, 6, 4, 1)
  together, alone = noise(a, b, keys(3)), noise(a[2:], b[2:], keys(3)[2:])
  for ours, theirs in zip(alone, together, strict=True):
    np.testing.assert_array_equal(ours[:, 0], theirs[:, 2])


def test_noise_belongs_to_the_picture_and_not_to_the_tile():
  a, b = draw(2, 2, 12, 8, 1)
  whole = noise(a, b, keys(2))
  cut = [x[:, 4:12, 2:6] for x in (a, b)]
  window = jnp.array([[4, 2, 12, 8]] * 2)
  tile = features.noise_sources(SCHEDULE, TIMESTEPS, *cut, keys(2), window=window)
  for ours, theirs in zip(tile[:2], whole[:2], strict=True):
    np.testing.assert_allclose(ours, theirs[:, :, 4:12, 2:6], rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(tile[2], whole[2])


def test_without_noise_nothing_is_drawn():
  a, b = draw(2, 3, 6, 4, 1)
  noisy_a, noisy_b, levels = features.noise_sources(SCHEDULE, TIMESTEPS, a, b, keys(3), noise=False)
  g = np.asarray(SCHEDULE.noise_levels)[list(TIMESTEPS)]
  np.testing.assert_array_equal(levels, np.tile(g[:, None], (1, 3)))
  g = g[:, None, None, None, None]
  np.testing.assert_allclose(noisy_a, g * a, rtol=1e-6)
  np.testing.assert_allclose(noisy_b, g * b, rtol=1e-6)


@pytest.fixture(scope="module")
def unet():
  params, config = tiny.model()
  return build_unet(config["unet"]), params["unet"]


@pytest.fixture(scope="module")
def noisy():
  """Two pairs at three steps, with a level for each."""
  a, b = draw(2, 3, 2, 4, 6, 1)
  return a, b, np.random.default_rng(1).uniform(size=(3, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def all_features(unet, noisy):
  """Every feature of the whole UNet, each pass alone: {(source, t, pair): features}."""
  net, params = unet
  a, b, levels = noisy

  @jax.jit
  def run(images, levels):
    return net.apply({"params": params}, images, levels)[1]

  images = np.concatenate([a, b]).reshape(12, 4, 6, 1)
  return jax.tree.map(np.asarray, run(images, np.tile(levels.reshape(-1), 2)))


def extract(unet, noisy, **options):
  net, params = unet
  return jax.jit(lambda *noisy: features.extract_features(net, params, *noisy, **options))(*noisy)


def test_features_are_the_whole_unets(unet, noisy, all_features):
  """The first up-block of each level, coarse to fine, of every step and source."""
  computed = extract(unet, noisy)
  # Two up-blocks a level, the last first: 3 is the coarse level's first, 1 the fine level's.
  for level, index in enumerate((3, 1)):
    whole = all_features["decoder"][index]
    expected = whole.reshape(2, 3, 2, *whole.shape[1:])
    for source in range(2):
      np.testing.assert_allclose(computed[source][level], expected[source], rtol=1e-5, atol=1e-5)


def test_encoder_features_are_each_levels_last_block(unet, noisy, all_features):
  """Stem, block, downsample, block: the coarse level's block is 3, the fine level's 1."""
  computed = extract(unet, noisy, source="encoder")
  for level, index in enumerate((3, 1)):
    whole = all_features["encoder"][index]
    expected = whole.reshape(2, 3, 2, *whole.shape[1:])
    for source in range(2):
      np.testing.assert_allclose(computed[source][level], expected[source], rtol=1e-5, atol=1e-5)


def test_one_level_for_all_pairs_is_enough(unet, noisy):
  a, b, levels = noisy
  shared = extract(unet, (a, b, levels[:, 0]))
  spread = extract(unet, (a, b, np.repeat(levels[:, :1], 2, axis=1)))
  jax.tree.map(np.testing.assert_array_equal, shared, spread)


@pytest.fixture(scope="module")
def whole_fused(noisy):
  return fuse(noisy)


def fuse(noisy, **options):
  params, config = tiny.model()
  unet = build_unet(config["unet"])
  head = build_fusion_head(config["fusion_head"], config["unet"], 3)

  def run(params, *noisy):
    return features.fuse_noisy(unet, head, params, *noisy, **options)

  return np.asarray(jax.jit(run)(params, *noisy))


@pytest.mark.parametrize("passes_per_step", [1, 2, 3, 6])
def test_the_passes_may_follow_one_another(noisy, whole_fused, passes_per_step):
  """Every timestep's share reaches its own source, in any chunks."""
  chunked = fuse(noisy, passes_per_step=passes_per_step)
  np.testing.assert_allclose(chunked, whole_fused, rtol=1e-4, atol=1e-5)
  swapped = fuse((noisy[1], noisy[0], noisy[2]), passes_per_step=passes_per_step)
  assert np.abs(swapped - whole_fused).max() > 1e-2


def test_impossible_requests_are_refused(unet, noisy):
  with pytest.raises(ValueError, match="passes_per_step must divide 6, got 4"):
    fuse(noisy, passes_per_step=4)
  with pytest.raises(ValueError, match="'decoder' or the 'encoder', not from 'middle'"):
    extract(unet, noisy, source="middle")
  with pytest.raises(ValueError, match=r"height and width must be multiples of 2, got \(3, 6\)"):
    extract(unet, (noisy[0][:, :, 1:], noisy[1][:, :, 1:], noisy[2]))


def test_fusion_leaves_out_a_third_of_the_arithmetic():
  """The finest level's last blocks and the output convolution are not in the program."""
  net = UNet(width=8, norm_groups=4)  # the paper's levels and blocks
  image, level = jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32), jnp.ones(1)
  variables = jax.eval_shape(net.init, jax.random.key(0), image, level)

  def flops(**options):
    lowered = jax.jit(functools.partial(net.apply, **options)).lower(variables, image, level)
    return lowered.cost_analysis()["flops"]

  whole, fusion = flops(), flops(method="fusion_features")
  assert 0.5 * whole < fusion < 0.75 * whole
