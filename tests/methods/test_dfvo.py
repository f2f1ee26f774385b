"""DFVO: what its goldens and the contract do not show."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import GOLDEN_DIR

from dmfnet_jax.configs import dfvo as recipe
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import color
from dmfnet_jax.methods.dfvo import METHOD, dark, objectives, published, stages
from dmfnet_jax.methods.method import STATS, Context, Field


def zeros():
  """The published state dict of the full network, all zero."""
  shapes = json.loads((GOLDEN_DIR / "dfvo_state_dict.json").read_text())["model"]
  return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}


def test_every_published_name_is_known():
  """Of the full network, and of what the program keeps of it to fuse."""
  state = zeros()
  params, width = published.networks_of(state)
  assert width == 16
  ours = published.to_torch(params)
  buffers = {key for key in state if "running" in key}
  unused = {"IrDeConv.weight", "IrDeConv.bias"}
  assert ours.keys() == state.keys() - buffers - unused
  assert all(value.shape == state[key].shape for key, value in ours.items())
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
  unused_size = sum(state[key].size for key in unused)
  # Its page's counts.
  assert count({name: params[name] for name in stages.NETWORKS}) == 10_105_316 - unused_size
  assert count(params["fuser"]) == 9_720_449 - unused_size
  others = tuple(published._OTHERS.values())
  kept = {k: v for k, v in state.items() if not any(keys.fullmatch(k) for keys in others)}
  converted, config = METHOD.from_torch({"model": kept})
  assert set(converted) == {"fuser", STATS}
  assert config == {"network": {"width": 16}}


def test_what_does_not_fit_is_named():
  state = zeros()
  wrong = {k: v for k, v in state.items() if k != "EnSigmoid.Conv.bias"} | {"more": np.zeros(2)}
  for parts, message in (
    ({}, r"give the file: model=DFModel.pth"),
    ({"model": {"x": np.zeros(1)}}, "not DFVO's file: it has no ViEncode1.Conv.weight"),
    ({"model": wrong}, r"the fuser does not fit the model: 1 unexpected \(more\)"),
    ({"model": {k: v for k, v in wrong.items() if k != "more"}}, r"1 missing \(EnSigmoid.Conv.bi"),
  ):
    with pytest.raises(UserError, match=message):
      METHOD.from_torch(parts)


def test_colours_are_opencvs():
  """There and back, through the luma of another picture too."""
  rgb = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
  ycrcb = np.array(dark.rgb_to_ycrcb(jnp.asarray(rgb, jnp.int32)))
  luma = np.random.default_rng(1).integers(0, 256, rgb.shape[:-1], np.uint8)
  ycrcb[..., 0] = luma
  back = dark.ycrcb_to_rgb(jnp.asarray(ycrcb))
  np.testing.assert_array_equal(back, color.replace_luma(rgb, luma))


def test_the_fusion_counts_more_from_epoch_to_epoch():
  """The very step at which an epoch begins; in evaluation the last one's weight."""
  config = recipe.get_config()
  every = config.num_train_steps // 100
  epochs = {}
  for step in (0, every - 1, every, 37 * every - 1, 37 * every, config.num_train_steps - 1):
    progress = jnp.float32(step) / config.num_train_steps
    epochs[step] = int(stages.epoch_of(config, Context(None, True, progress)))
  assert list(epochs.values()) == [0, 0, 1, 36, 37, 99]
  assert stages.epoch_of(config, Context(None, False, jnp.float32(0))) == 99
  weights = METHOD.defaults(1)["loss"]
  terms = {name: jnp.ones(1) for name in weights if name not in ("epochs", "fusion_growth")}
  first, later = (float(stages.total_of(weights, terms, jnp.float32(e))[0]) for e in (0, 20))
  np.testing.assert_allclose(later - first, 2 * (0.65 + 1.75 + 0.35), rtol=1e-5)


def test_black_has_colours_with_a_finite_gradient():
  black = jnp.zeros((1, 4, 4, 1))
  grey = jnp.full((1, 4, 4, 2), 0.5)
  value, gradient = jax.value_and_grad(lambda x: objectives.colour_loss(x, black, grey)[0])(black)
  assert value == 1
  assert np.isfinite(gradient).all()


def test_training_wants_the_visible_pictures_colours():
  stage = stages.training(recipe.get_config("size=tiny"))
  assert stage.targets == (Field("b", channels=3),)


def test_the_result_is_stretched_where_the_config_says_so():
  fused = {"fused": jnp.linspace(-0.5, 0.25, 16).reshape(1, 4, 4, 1)}
  result = METHOD.after_crop({"fusion": {"stretch": True}})(fused)["fused"]
  assert (result.min(), result.max()) == (-1, 1)
  assert METHOD.after_crop({"fusion": {"stretch": False}}) is None


def test_a_wrong_width_is_refused():
  config = recipe.get_config("size=tiny")
  config.network.width = 0
  with pytest.raises(UserError, match=r"config.network.width=0 must be at least 1"):
    METHOD.check(config)
