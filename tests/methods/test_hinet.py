"""Hi-Net: what its goldens and the contract do not show."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import GOLDEN_DIR

from dmfnet_jax.configs import hinet as recipe
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.model import Model
from dmfnet_jax.methods.hinet import METHOD, networks, patches, published, stages
from dmfnet_jax.methods.method import STATS, Compute, Field, select
from dmfnet_jax.weights.convert import convert
from dmfnet_jax.weights.files import read_weights


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def published_states():
  """The published state dicts, all zero."""
  shapes = json.loads((GOLDEN_DIR / "hinet_state_dict.json").read_text())
  return [
    {key: np.zeros(shape, np.float32) for key, shape in shapes[part].items()}
    for part in ("generator", "discriminator")
  ]


def test_published_files_become_what_training_and_fusing_need():
  generator, discriminator = published_states()
  generator["deconv_6_2.1.running_var"][:] = 5
  generator["down_3_1.3.weight"][7, 3, 1, 2] = 2
  discriminator["model.9.bias"][:] = 3
  params, config = published.from_torch({"generator": generator, "discriminator": discriminator})
  assert config == {"network": {"width": 32}}
  assert set(params) == {"generator", "decoders", "discriminator", STATS}
  # Its page's counts.
  assert count(params["generator"]) + count(params["decoders"]) == 3_872_259
  assert count(params["discriminator"]) == 391_041
  assert (params[STATS]["decoders"]["b"]["level0"]["norm1"]["var"] == 5).all()
  assert params["generator"]["encode3_b"]["conv2"]["kernel"][1, 2, 3, 7] == 2
  assert (params["discriminator"]["norm4"]["bias"] == 3).all()
  for part, state in (("generator", generator), ("discriminator", discriminator)):
    back = published.to_torch(params, part)
    assert back.keys() == state.keys()
    assert all((back[key] == state[key]).all() for key in state)


def test_the_recipe_trains_what_was_published():
  made = jax.eval_shape(lambda: stages.init(recipe.get_config("size=paper"), jax.random.key(0)))
  assert (
    count(select(made, ("generator", "decoders")))
    - count(select(made, ("generator", "decoders"))[STATS])
    == 3_872_259
  )
  assert count(made["discriminator"]) == 391_041


def test_what_does_not_fit_is_named(tmp_path):
  generator, discriminator = published_states()
  wrong = {k: v for k, v in generator.items() if k != "out.0.bias"} | {"more": np.zeros(2)}
  for parts, message in (
    ({}, "give generator=generator_E.pkl, and discriminator="),
    ({"discriminator": discriminator}, "give generator=generator_E.pkl, and discriminator="),
    ({"generator": discriminator}, r"not Hi-Net's generator: it has no down_1_0.0.weight"),
    ({"generator": wrong}, r"1 missing \(out.0.bias\); 1 unexpected \(more\)"),
    ({"generator": generator, "discriminator": generator}, "the discriminator does not fit"),
  ):
    with pytest.raises(UserError, match=message):
      published.from_torch(parts)


def test_a_pickle_is_converted_to_a_model_of_the_generator(tmp_path):
  torch = pytest.importorskip("torch")
  generator, _ = published_states()
  file, out = tmp_path / "generator_300.pkl", tmp_path / "hinet.safetensors"
  torch.save({k: torch.tensor(v) for k, v in generator.items()}, file)
  convert("hinet", {"generator": file}, out, {"synthesis.statistics": "picture"})
  params, config = read_weights(out)
  assert config["synthesis"] == {"statistics": "picture", "patched": False}
  assert "generator" in params
  with pytest.raises(UserError, match=r"synthesis.statistics is one of 'running', 'picture'"):
    convert("hinet", {"generator": file}, out, {"synthesis.statistics": "batch"})
  with pytest.raises(UserError, match=r"hinet has no part 'unet': give generator=FILE"):
    convert("hinet", {"unet": file}, out)


def test_of_two_equal_features_the_first_has_the_gradient():
  one = jnp.ones((1, 2, 2, 1))
  for gradient, expected in zip(
    jax.grad(lambda a, b: networks.larger(a, b).sum(), (0, 1))(one, one), (1, 0), strict=True
  ):
    np.testing.assert_array_equal(gradient, np.full((1, 2, 2, 1), expected))
  # As in torch's pooling, row by row.
  gradient = jax.grad(lambda x: networks.halve(x).sum())(one)
  np.testing.assert_array_equal(gradient[0, ..., 0], [[1, 0], [0, 0]])
  x = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
  expected = x.reshape(2, 2, 2, 3, 2, 3).max((2, 4))
  np.testing.assert_array_equal(networks.halve(jnp.asarray(x)), expected)


def test_patches_are_laid_together():
  """Each is scaled to its own range; where two overlap their mean counts."""
  rng = np.random.default_rng(0)
  slices = rng.uniform(-0.5, 0.5, (2, 160, 180, 1)).astype(np.float32)
  slices[1, 20:140, 60:120] = 0.5  # one patch of the second slice, and not of the first, differs
  joined = jax.jit(lambda x: patches.join(patches.cut(x), 160, 180))(slices)
  total, times = np.zeros((2, 160, 180, 1)), np.zeros((1, 160, 180, 1))
  for top in (0, 32):
    for left in (0, 52):
      window = np.s_[:, top : top + 128, left : left + 128]
      patch = slices[window]
      low, high = (f(patch, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
      total[window] += 2 * (patch - low) / (high - low) - 1
      times[window] += 1
  np.testing.assert_allclose(joined, total / times, atol=1e-6)


def model(**synthesis):
  config = {"method": "hinet"} | METHOD.defaults(1)
  config["network"] = {"width": 2}
  config["synthesis"] |= synthesis
  params = stages.init(config, jax.random.key(0))
  return Model(select(params, ("generator",)), config)


def slices(*shape, count=2):
  from scipy import ndimage

  x = np.random.default_rng(1).standard_normal((2, count, *shape))
  x = ndimage.gaussian_filter(x, 2, axes=(2, 3))
  return list((x / np.abs(x).max()).astype(np.float32))


def test_a_slices_own_statistics_do_not_depend_on_the_batch():
  """They are those of a batch of that slice alone, as in training."""
  made = model(statistics="picture")
  a, b = slices(24, 32)
  together = made.fuse(a, b)
  generator = networks.build(2, "float32", train=True)["generator"]

  @jax.jit
  def train(*inputs):
    own = {
      "params": made.params["generator"],
      "batch_stats": made.params[STATS]["generator"],
    }
    return generator.apply(own, *(x[None, ..., None] for x in inputs), mutable=["batch_stats"])[0]

  for i in range(2):
    np.testing.assert_allclose(together[i], train(a[i], b[i])["made"][0, ..., 0], atol=2e-5)


def test_the_published_way_is_that_of_the_patches():
  """Of BraTS' slices the published window is made, and around it all is black."""
  whole, plain = model(patched=True), model()
  a, b = slices(240, 240, count=1)
  made = whole.fuse(a, b)
  window = np.s_[:, 40:200, 20:200]
  cut = [np.asarray(jax.jit(patches.cut)(x[window][..., None]))[0, ..., 0] for x in (a, b)]
  of_patches = plain.fuse(*cut)
  join = jax.jit(lambda x: patches.join(x, 160, 180))
  expected = join(of_patches[None, ..., None])[..., 0]
  np.testing.assert_allclose(made[window], expected, atol=2e-4)  # stretched, rounding is enlarged
  outside = made.copy()
  outside[window] = -1
  assert (outside == -1).all()
  with pytest.raises(UserError, match="needs slices of 128 to 256 pixels a side, not 64 x 130"):
    whole.fuse(*slices(130, 64, count=1))


def test_the_dataset_has_its_own_names():
  config = recipe.get_config("size=tiny")
  config.contrasts.update(a="t1", b="flair", target="t2")
  stage = METHOD.stages[1](config)
  assert stage.targets == (Field("target"),)
  assert stage.stored == {"a": "t1", "b": "flair", "target": "t2"}


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("contrasts.target", "t1", "config.contrasts are t1, t2, t1: name three that differ"),
    ("synthesis.statistics", "batch", "config.synthesis.statistics is one of 'running', 'picture'"),
    ("crop_size", 32, "config.crop_size=32 must be a multiple of 16, and at least 48"),
    ("network.width", 0, "config.network.width=0 must be at least 1"),
  ],
)
def test_what_cannot_be_trained_is_refused(field, value, message):
  config = recipe.get_config("size=tiny")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=message):
    METHOD.check(config)


def test_unknown_statistics_of_a_model_are_refused():
  config = METHOD.defaults(1)
  config["synthesis"]["statistics"] = "batch"
  with pytest.raises(UserError, match=r"synthesis.statistics is one of 'running', 'picture'"):
    METHOD.fuse(config, Compute())
