"""DC2Fusion: what its goldens and the contract do not show."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import GOLDEN_DIR

from dmfnet_jax.configs import deform3d as recipe
from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.deform3d import METHOD, objectives, published, stages
from dmfnet_jax.methods.deform3d.networks import (
  Block,
  exchange,
  reference_points,
  window_attention,
)


def published_state():
  """The published state dict of E = 48, all zero."""
  shapes = json.loads((GOLDEN_DIR / "deform3d_state_dict.json").read_text())["model_48"]
  return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_every_published_parameter_has_a_counterpart_but_those_that_are_never_used():
  state = published_state()
  params, config = published.from_torch({"model": state})
  assert config["network"] == {
    "width": 48,
    "depths": [2, 2, 6, 2],
    "heads": [3, 6, 12, 24],
    "drop_path": 0.2,
    "plain": False,
  }
  back = published.to_torch(params, 4)
  kept = {key for key in state if not key.endswith("num_batches_tracked")}
  unused = kept - back.keys()
  assert all(".cross_attn.proj." in key or "concat_back_dim.0" in key for key in unused)
  assert len(unused) == 24 * 2 + 2
  for key, value in back.items():
    assert value.shape == state[key].shape, key
  is_trained = lambda key: "running" not in key  # noqa: E731
  assert sum(state[key].size for key in kept if is_trained(key)) == 26_396_714
  trained = sum(leaf.size for leaf in jax.tree.leaves(params["fuser"]))
  assert trained == 26_396_714 - sum(state[key].size for key in unused)


def test_what_does_not_fit_is_named():
  state = published_state()
  wrong = {k: v for k, v in state.items() if k != "out_conv.bias"} | {"more": np.zeros(2)}
  for parts, message in (
    ({}, "give the file: model="),
    ({"model": {}}, "not a DC2Fusion file: it has no swin.patch_embed.proj.weight"),
    ({"model": wrong}, r"1 missing \(out_conv.bias\); 1 unexpected \(more\)"),
  ):
    with pytest.raises(UserError, match=message):
      published.from_torch(parts)


def test_reference_points_are_divided_by_the_next_axis_as_published():
  points = reference_points((2, 4, 8))
  assert points.shape == (2, 4, 8, 3)
  np.testing.assert_allclose(points[1, 2, 3], [1.5 / 4 * 2 - 1, 2.5 / 8 * 2 - 1, 3.5 / 2 * 2 - 1])
  plain = reference_points((2, 4, 8), plain=True)
  np.testing.assert_allclose(plain[1, 2, 3], [1.5 / 2 * 2 - 1, 2.5 / 4 * 2 - 1, 3.5 / 8 * 2 - 1])


@pytest.mark.parametrize("softmax", [False, True])
def test_attention_stays_in_its_window_and_its_head(softmax):
  query, key, value = (draw(1, 4, 2, 2, 6, seed=i) for i in range(3))
  y = window_attention(query, key, value, 2, (2, 2, 2), softmax)
  for half in (slice(0, 2), slice(2, 4)):
    for head in (slice(0, 3), slice(3, 6)):
      q, k, v = (x[0, half, ..., head].reshape(8, 3) for x in (query, key, value))
      weights = q @ k.T
      if softmax:
        weights = np.exp(weights) / np.exp(weights).sum(1, keepdims=True)
      np.testing.assert_allclose(y[0, half, ..., head].reshape(8, 3), weights @ v, atol=1e-5)


def test_both_sources_ask_in_turn_and_move_the_same_statistics():
  """The loop of two is the block called twice, as published: the second sees the first's result."""
  x, y = draw(2, 2, 3, 2, 24), draw(2, 2, 3, 2, 24, seed=1)

  class Twice(nn.Module):
    looped: bool

    @nn.compact
    def __call__(self, x, y):
      made = Block(3, name="block")
      if self.looped:
        return exchange(made, (x, y), None, 0.0, True, None)
      x = made(x, y, 0.0, None, True, None)
      return x, made(y, x, 0.0, None, True, None)

  variables = Twice(True).init(jax.random.key(0), x, y)
  apply = lambda looped: Twice(looped).apply(variables, x, y, mutable=["batch_stats"])  # noqa: E731
  ours, expected = apply(True), apply(False)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)


def test_sums_grow_with_the_volume_and_means_do_not():
  maps, shown = draw(2, 4, 4, 4, 2), np.ones((2, 4, 4, 4, 1), np.float32)
  wider, part = (np.pad(x, ((0, 0), (0, 4), (0, 0), (0, 0), (0, 0))) for x in (maps, shown))
  for weights in stages.WEIGHTS:
    whole = stages.combine(maps, shown, weights)
    # Black around it changes neither.
    np.testing.assert_allclose(stages.combine(wider, part, weights)[:, :4], whole, rtol=1e-5)
    doubled = stages.combine(*(np.concatenate([x, x], axis=1) for x in (maps, shown)), weights)
    factor = {"sum": 2, "mean": 1}[weights]
    np.testing.assert_allclose(doubled[:, :4], factor * whole, rtol=1e-5)
  sums = np.abs(maps).sum((1, 2, 3), keepdims=True)
  expected = (sums * maps).sum(-1, keepdims=True)
  np.testing.assert_allclose(stages.combine(maps, shown, "sum"), expected, rtol=1e-5)


def test_a_quarter_turn_moves_voxels_to_their_places():
  cube = draw(6, 6, 6, 2)
  for axis in range(3):
    plane = tuple(i for i in range(3) if i != axis)
    turned = stages.turn(cube, jnp.zeros(3).at[axis].set(np.pi / 2))
    turns = [np.rot90(cube, k, plane) for k in (1, -1)]
    # Corners fall to either side of the border by rounding.
    inner = (slice(1, -1),) * 3
    assert min(np.abs(turned - x)[inner].max() for x in turns) < 1e-5


def test_augmentation_varies_the_mri_and_turns_both():
  a, b = (np.abs(draw(3, 6, 6, 6, 1, seed=i)) / 5 for i in range(2))
  keys = jax.random.split(jax.random.key(1), 3)
  same = stages.augment(keys, a, b, rotate=0.0, gamma=0.0, noise=0.0)
  np.testing.assert_array_equal(same, (a, b))
  for chance in ("gamma", "noise"):
    options = dict.fromkeys(("rotate", "gamma", "noise"), 0.0) | {chance: 1.0}
    varied, kept = stages.augment(keys, a, b, **options)
    np.testing.assert_array_equal(kept, b)
    assert (np.abs(varied - a).max((1, 2, 3, 4)) > 1e-3).all()
  options = {"rotate": 1.0, "gamma": 0.0, "noise": 0.0}
  first, second = stages.augment(keys, a, a, **options)
  np.testing.assert_array_equal(first, second)
  assert (np.abs(first - a).max((1, 2, 3, 4)) > 1e-3).all()


def test_the_loss_of_a_volume_with_itself_is_the_least():
  x = np.random.default_rng(0).uniform(size=(2, 12, 13, 14, 1)).astype(np.float32)
  value, terms = objectives.fusion_loss(x, x, x, weight_a=2.0, weight_b=1.0)
  np.testing.assert_allclose(terms["lncc_a"], -1, atol=1e-3)
  np.testing.assert_allclose(terms["ssim_b"], 0, atol=1e-4)
  np.testing.assert_allclose(value, -3, atol=5e-3)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"network.heads": (3,)}, "config.network.heads=(3,) must have a number for each level"),
    ({"network.width": 20}, "config.network.width=20 must be a multiple of 8"),
    ({"network.heads": (3, 5)}, "config.network.heads=(3, 5) must divide the levels' channels"),
    ({"network.drop_path": 1.0}, "config.network.drop_path=1.0 must be in [0, 1)"),
    ({"fusion.weights": "max"}, "config.fusion.weights is one of 'sum', 'mean', not 'max'"),
    ({"augment.noise": 2.0}, "config.augment.noise=2.0 is a probability"),
    ({"crop_size": 8}, "config.crop_size=8 must be at least 11"),
  ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
  config = recipe.get_config("size=tiny")
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError) as error:
    METHOD.check(config)
  assert message in str(error.value)
