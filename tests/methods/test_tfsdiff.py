"""TFS-Diff: what its goldens and the contract do not show."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import GOLDEN_DIR
from PIL import Image

from dmfnet_jax.configs import tfsdiff as recipe
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.model import Model
from dmfnet_jax.interop.torch import to_state_dict, to_torch_layout, torch_name
from dmfnet_jax.io.pictures import from_float, to_float
from dmfnet_jax.methods import tfsdiff
from dmfnet_jax.methods.method import Compute
from dmfnet_jax.methods.tfsdiff import (
  networks,
  objectives,
  published,
  resampling,
  sampling,
  stages,
)
from dmfnet_jax.weights import load_params
from dmfnet_jax.weights.convert import convert

SIZES = {
  "unet_128_256": ("paper", 97_811_034),
  "unet_16_128": ("paper-16-128", 97_811_034),
  "unet_16_256": ("paper-16-256", 155_337_882),
}


def published_shapes(part):
  return json.loads((GOLDEN_DIR / "tfsdiff_state_dict.json").read_text())[part]


@pytest.mark.parametrize("part", SIZES)
def test_every_published_parameter_has_its_place(part):
  """By name and shape; and the file tells which of the three networks it is."""
  size, count = SIZES[part]
  unet = recipe.get_config(f"size={size}").unet.to_dict()
  network = networks.build(unet)
  made = jax.eval_shape(lambda: networks.init(jax.random.key(0), network, 3))
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(made):
    name = torch_name("/".join(entry.key for entry in path), published.LAYERS)
    found[f"denoise_fn.{name}"] = list(to_torch_layout(np.broadcast_to(0, leaf.shape)).shape)
  expected = published_shapes(part)
  assert found == expected
  assert sum(leaf.size for leaf in jax.tree.leaves(made)) == count
  blank = {k.removeprefix("denoise_fn."): np.broadcast_to(0, v) for k, v in expected.items()}
  assert published.unet_of(blank).items() <= unet.items()


def test_a_file_becomes_its_parameters(tmp_path):
  """With the wrapper of several GPUs, and beside buffers of a schedule; fields are set by words."""
  torch = pytest.importorskip("torch")
  unet = {"width": 32, "multipliers": (1, 2), "num_res_blocks": 1, "attention_levels": (1,)}
  network = networks.build(unet)
  made = jax.eval_shape(lambda: networks.init(jax.random.key(0), network, 3))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), made)
  state = {
    f"module.denoise_fn.{name}": torch.tensor(value.copy())
    for name, value in to_state_dict(params, published.LAYERS).items()
  }
  torch.save(state | {"module.betas": torch.zeros(9)}, tmp_path / "gen.pth")
  few = {"sampling.steps": "7", "sampling.eta": "0", "enlargement.factor": "4"}
  convert("tfsdiff", {"unet": tmp_path / "gen.pth"}, tmp_path / "x.safetensors", few)
  found, config = load_params(tmp_path / "x.safetensors")
  assert jax.tree.all(jax.tree.map(np.array_equal, found, {"unet": params}))
  assert config["sampling"] == {"steps": 7, "eta": 0.0}
  assert config["enlargement"]["factor"] == 4
  assert {k: config["unet"][k] for k in unet} == {
    **unet,
    "multipliers": [1, 2],
    "attention_levels": [1],
  }
  with pytest.raises(UserError, match=r"config.sampling.steps=5000 must be in 1\.\.4000"):
    convert("tfsdiff", {"unet": tmp_path / "gen.pth"}, tmp_path / "y", {"sampling.steps": "5000"})
  assert not (tmp_path / "y").exists()


def test_what_does_not_fit_is_named():
  shapes = published_shapes("unet_128_256") | published_shapes("buffers")
  state = {k: np.broadcast_to(np.float32(0), v) for k, v in shapes.items()}
  some = "denoise_fn.final_conv.block.3.bias"
  wrong = {k: v for k, v in state.items() if k != some} | {"denoise_fn.more": np.zeros(2)}
  for parts, message in (
    ({}, r"give unet=I\.\.\._E\.\.\._gen\.pth"),
    ({"unet": {"more": np.zeros(2)}}, "not a network of TFS-Diff: it has no SE_block.linear1"),
    ({"unet": wrong}, r"1 missing \(final_conv.block.3.bias\); 1 unexpected \(more\)"),
  ):
    with pytest.raises(UserError, match=message):
      published.from_torch(parts)


@pytest.mark.parametrize(
  ("before", "after"),
  [((16, 12), (64, 48)), ((37, 50), (74, 100)), ((64, 48), (4, 3)), ((20, 17), (9, 41))],
)
def test_resizing_is_pillows(before, after):
  """To the last grey level, both ways."""
  picture = np.random.default_rng(0).integers(0, 256, (*before, 3)).astype(np.uint8)
  theirs = Image.fromarray(picture).resize(after[::-1], Image.Resampling.BICUBIC)
  ours = jax.jit(lambda x: resampling.resize(x, *after))(to_float(picture)[None])
  np.testing.assert_array_equal(from_float(ours)[0], np.asarray(theirs))


def test_what_is_enlarged_already_stays():
  picture = np.random.default_rng(0).uniform(-1, 1, (1, 4, 6, 3)).astype(np.float32)
  assert resampling.enlarge(picture, 1) is picture
  assert resampling.coarsen(picture, 1) is picture


def test_training_sees_what_fusing_will():
  """Of sharp sources what is left of them; of enlarged ones themselves, in the sources' order."""
  rng = np.random.default_rng(0)
  sharp = {name: rng.integers(0, 256, (8, 16, 3)).astype(np.uint8) for name in "abc"}
  batch = {name: to_float(x)[None] for name, x in sharp.items()}

  def twice(x):
    coarse = Image.fromarray(x).resize((8, 4), Image.Resampling.BICUBIC)
    return np.asarray(coarse.resize((16, 8), Image.Resampling.BICUBIC))

  for is_sharp, seen in ((True, twice), (False, lambda x: x)):
    config = {"enlargement": {"factor": 2, "sharp_sources": is_sharp}}
    condition = from_float(stages.condition_of(config, batch))[0]
    expected = np.concatenate([seen(sharp[name]) for name in "abc"], axis=-1)
    np.testing.assert_array_equal(condition, expected)


def test_the_similarity_is_bounded():
  """Where the SSIM is negative the term is 1/2, and does not pull."""
  texture = np.random.default_rng(0).uniform(-0.25, 0.25, (2, 16, 16, 3)).astype(np.float32)
  target, opposite = 0.5 + texture, 0.5 - texture
  np.testing.assert_allclose(objectives.dissimilarity(target, target), 0, atol=1e-6)
  total = lambda x: jnp.sum(objectives.dissimilarity(target, x))  # noqa: E731
  value, gradient = jax.value_and_grad(total)(opposite)
  np.testing.assert_allclose(value, 2 * 0.5, rtol=1e-6)
  np.testing.assert_array_equal(gradient, 0)
  total, terms = objectives.noise_loss(target, target, target + 0.25, batch_size=8)
  np.testing.assert_allclose(terms["l1"], 0.25, rtol=1e-5)
  share = terms["dissimilarity"] / (8 * 16 * 16 * 3)
  np.testing.assert_allclose(total, terms["l1"] + share, rtol=1e-6)


def sampler_of(monkeypatch, predict, **options):
  """A sampler of 200 steps whose network is `predict(condition, x, level)`."""
  apply = lambda params, *args: predict(*args)  # noqa: E731
  monkeypatch.setattr(sampling, "build", lambda unet, dtype: types.SimpleNamespace(apply=apply))
  schedule = {"name": "linear", "num_timesteps": 200, "start": 1e-4, "end": 0.05}
  config = {"unet": {}, "schedule": schedule, "sampling": {"steps": 200, "eta": 1.0} | options}
  return sampling.make_sampler(config)


WAYS = [{}, {"eta": 0.0}, {"steps": 20, "eta": 0.0}, {"steps": 20}]


@pytest.mark.parametrize("options", WAYS)
def test_who_knows_the_noise_finds_the_picture(monkeypatch, options):
  """Whatever the steps."""

  def predict(condition, x, level):
    g = level[:, None, None, None]
    return (x - g * condition[..., :3]) / jnp.sqrt(1 - g**2)

  target = np.random.default_rng(0).uniform(-1, 1, (2, 4, 6, 3)).astype(np.float32)
  sample = jax.jit(sampler_of(monkeypatch, predict, **options))
  keys = jax.random.split(jax.random.key(0), 2)
  found = sample({}, np.concatenate([target, -target, -target], axis=-1), keys)
  np.testing.assert_allclose(found, target, atol=2e-3)


def expected_spread(spread, *, steps=200, eta=1.0):
  """The deviation of samples of values that are normal: every step is linear in them."""
  alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.05, 200))
  kept = np.rint(np.linspace(199, 0, steps)).astype(int)
  variance = 1.0
  for here, there in zip(alpha_bar[kept], [*alpha_bar[kept[1:]], 1.0], strict=True):
    clean = np.sqrt(here) * spread**2 / (here * spread**2 + 1 - here)  # of x, what is expected
    if eta:  # Ho et al. 2020, equation 7
      beta = 1 - here / there
      of_clean = beta * np.sqrt(there) / (1 - here)
      factor = of_clean * clean + (1 - there) * np.sqrt(1 - beta) / (1 - here)
      variance = factor**2 * variance + (1 - there) / (1 - here) * beta
    else:  # Song et al. 2021, equation 12
      noise = (1 - np.sqrt(here) * clean) / np.sqrt(1 - here)
      variance *= (np.sqrt(there) * clean + np.sqrt(1 - there) * noise) ** 2
  return np.sqrt(variance)


@pytest.mark.parametrize("options", WAYS)
def test_samples_spread_as_the_equations_say(monkeypatch, options):
  """Of values that are normal, what the best network predicts is known; all steps come close."""
  spread = 0.25

  def predict(condition, x, level):
    g = level[:, None, None, None]
    clean = g * spread**2 * x / (g**2 * spread**2 + 1 - g**2)
    return (x - g * clean) / jnp.sqrt(1 - g**2)

  sample = jax.jit(sampler_of(monkeypatch, predict, **options))
  found = sample({}, np.zeros((2, 48, 48, 9), np.float32), jax.random.split(jax.random.key(0), 2))
  assert abs(float(jnp.mean(found))) < 0.01
  np.testing.assert_allclose(jnp.std(found), expected_spread(spread, **options), rtol=0.025)
  correlation = np.corrcoef(np.ravel(found[0]), np.ravel(found[1]))[0, 1]
  assert abs(correlation) < 0.05


def test_fusing_enlarges_and_tells_of_each_step(monkeypatch):
  seen, told = [], []

  def predict(condition, x, level):
    jax.debug.callback(lambda c: seen.append(np.asarray(c)), condition)
    return x

  sampler_of(monkeypatch, predict)
  config = tfsdiff.defaults(1) | {"sampling": {"steps": 3, "eta": 0.0}}
  rng = np.random.default_rng(0)
  sources = {name: rng.integers(0, 256, (1, 6, 4, 3)).astype(np.uint8) for name in "abc"}
  fuse = tfsdiff.fuse(config, Compute(on_step=lambda done, n: told.append((int(done), int(n)))))
  images = {name: to_float(x) for name, x in sources.items()}
  fused = fuse({"unet": {}}, images, jax.random.split(jax.random.key(0), 1))["fused"]
  jax.effects_barrier()
  assert fused.shape == (1, 12, 8, 3)
  assert sorted(told) == [(1, 3), (2, 3), (3, 3)]
  enlarged = [
    np.asarray(Image.fromarray(x[0]).resize((8, 12), Image.Resampling.BICUBIC))
    for x in sources.values()
  ]
  np.testing.assert_array_equal(from_float(seen[0])[0], np.concatenate(enlarged, axis=-1))


def test_a_model_takes_and_gives_colours(monkeypatch):
  """Also where a source is grey; and the deviation over draws is that of the luma."""
  noisy = lambda condition, x, level: jnp.zeros_like(x)  # noqa: E731
  sampler_of(monkeypatch, noisy)
  # A config of its own: compiled programs are kept by it.
  config = {"method": "tfsdiff", **tfsdiff.defaults(1), "sampling": {"steps": 2, "eta": 0.0}}
  config["schedule"] = {"name": "const", "num_timesteps": 3, "start": 0.1, "end": 0.1}
  model = Model({"unet": {}}, config)
  rng = np.random.default_rng(0)
  a, b = (rng.integers(0, 256, (10, 7, 3)).astype(np.uint8) for _ in range(2))
  fused, deviation = model.fuse(a, b[..., 0], b, samples=4)
  assert (fused.shape, fused.dtype) == ((20, 14, 3), np.uint8)
  assert (deviation.shape, deviation.dtype) == ((20, 14), np.float32)
  draws = [model.fuse(*([x / 127.5 - 1] for x in (a, b[..., 0], b)), seed=s)[0] for s in range(2)]
  assert draws[0].shape == (20, 14, 3)
  # Independent in the three channels: less of the luma's than of each.
  weights = np.sqrt(np.sum(np.square([0.299, 0.587, 0.114])))
  expected = weights * np.std(draws) * 127.5 * np.sqrt(3 / 4)
  assert 0.8 < deviation.mean() / expected < 1.1


def test_sides_become_multiples_of_what_the_network_halves():
  for factor, stride in ((1, 16), (2, 8), (3, 16), (8, 2), (16, 1), (32, 1)):
    config = tfsdiff.defaults(1)
    config["enlargement"]["factor"] = factor
    assert tfsdiff.stride(config) == stride
    assert tfsdiff.METHOD.scale(config) == factor


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("crop_size", 24, "config.crop_size=24 must be a multiple of 16"),
    ("enlargement.factor", 3, "config.crop_size=32 must be a multiple of 48"),
    ("enlargement.factor", 0, "config.enlargement.factor=0 must be at least 1"),
    ("unet.norm_groups", 5, "config.unet.norm_groups=5 must divide the width 16"),
    ("schedule.name", "x", "config.schedule.name is one of 'linear'"),
    ("sampling.steps", 4001, "config.sampling.steps=4001 must be in 1..4000"),
  ],
)
def test_what_cannot_be_trained_is_refused(field, value, message):
  config = recipe.get_config("size=tiny")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=message):
    tfsdiff.check(config)
