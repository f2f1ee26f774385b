"""What holds for every method: the trunk relies on it and asks for nothing else."""

import dataclasses
import functools
import importlib
import json

import jax
import numpy as np
import pytest
import toy

from dmfnet_jax import methods
from dmfnet_jax.configs import common
from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.engine import Engine, name_code
from dmfnet_jax.inference.export import export_fuse
from dmfnet_jax.inference.model import Model
from dmfnet_jax.methods.method import STATS, Field, batch_fields, join, select
from dmfnet_jax.nn import layers
from dmfnet_jax.training import setup, steps
from dmfnet_jax.training.config import parse_config
from dmfnet_jax.weights.files import complete, read_weights, save_weights
from dmfnet_jax.weights.workdir import model_config

NAMES = methods.names()
# Smaller than `tiny`, for compile time: what is asked here does not depend on width or levels.
SMALLER = {
  "dmfnet": {
    1: ["unet.width=8", "unet.multipliers=(1,2)", "unet.num_res_blocks=1", "unet.norm_groups=4"],
  },
  "adafuse": {1: ["network.widths=(4,8)", "network.patch=32", "network.depth=0"]},
  "deform3d": {1: ["crop_size=16", "network.depths=(1,)", "network.heads=(3,)"]},
  "hinet": {1: ["network.width=4", "crop_size=48"]},
  "tformer": {1: ["network.depths=(1,1,1,1)"]},
  "waveae": {1: ["network.levels=1", "network.convs=1"]},
  "emma": {
    1: ["sensing.width=4", "sensing.levels=2", "crop_size=32"],
    2: ["fuser.widths=(4,)", "fuser.heads=1", "crop_size=32"],
  },
  # Stretched to its range, what an untrained network makes shows its rounding enlarged.
  "dfvo": {1: ["fusion.stretch=False"]},
  # In the noise of all 4000 steps, rounding is enlarged thousands of times.
  "tfsdiff": {
    1: [
      *("unet.width=8", "unet.multipliers=(1,2)", "unet.norm_groups=4"),
      *("unet.num_res_blocks=1", "unet.attention_levels=(1,)"),
      *("schedule.num_timesteps=100", "sampling.steps=3"),
    ],
  },
}
# Methods that are not trained: whose model theirs is made of, and what is other than by default.
UNTRAINED = {"ddfm": ("dmfnet", {"sampling": {"steps": 3}})}
# Losses with a term of the whole batch, in training.
OF_THE_BATCH = {"cddfuse": "the decomposition's correlations are the batch's, as published"}
STAGES = [(name, stage) for name in NAMES for stage in methods.get(name).stages]


@functools.cache
def run_of(name, stage):
  """What the smallest config of a stage stands for, with networks of the stages before it."""
  words = [f"--config.{change}" for change in SMALLER.get(name, {}).get(stage, ())]
  config = parse_config(["--config", f"configs/{name}.py:stage={stage},size=tiny", *words])
  method = methods.get(name)
  earlier = [run_of(name, n) for n in method.stages if n < stage]
  params = join(*(join(run.frozen, init(run)) for run in earlier))
  for run in earlier:
    config = setup.with_sections(config, model_config(run.config.to_dict()))
  made = method.stages[stage](config)
  if made.substitute is not None:
    params = join(params, jax.tree.map(np.asarray, made.substitute(gaussian.make_key(0))))
  return setup.Setup(config, method, made, select(params, made.frozen))


@functools.cache
def init_of(name, stage):
  run = run_of(name, stage)
  return jax.tree.map(np.asarray, run.stage.init(gaussian.make_key(stage)))


def init(run):
  return init_of(run.config.method, run.config.stage)


@functools.cache
def model_of(name):
  """Parameters and config of a model with its initial weights."""
  method = methods.get(name)
  if not method.networks:
    return {}, complete({"method": name})
  if name in UNTRAINED:
    other, changes = UNTRAINED[name]
    params, config = method.from_model(*model_of(other))
    return params, json.loads(json.dumps(complete({"method": name, **config, **changes})))
  runs = [run_of(name, stage) for stage in method.stages]
  params = select(join(*(join(run.frozen, init(run)) for run in runs)), method.networks)
  sections = [model_config(run.config.to_dict()) for run in runs]
  config = model_config(runs[-1].config.to_dict(), *sections)
  return jax.tree.map(np.asarray, params), json.loads(json.dumps(config))


def smooth(rng, shape):
  from scipy import ndimage

  x = ndimage.gaussian_filter(rng.standard_normal(shape), 2, axes=(-2, -1))
  return (x / np.abs(x).max()).astype(np.float32)


def size_for(method, size):
  """A size in pixels; for volumes half as large, and of three axes."""
  return size if method.space == 2 else tuple(-(-side // 2) for side in (*size, size[0]))


def pictures_of(name, count, size=(32, 48)):
  """Sources of a method as `Model.fuse` takes them."""
  rng = np.random.default_rng(0)
  size = size_for(methods.get(name), size)
  return [
    rng.integers(0, 2, (count, field.channels)).astype(np.float32)
    if field.is_vector
    else smooth(rng, (count, *size))
    for field in methods.get(name).sources
  ]


def results_of(model, sources, names=None, seed=0, batch_size=None):
  """What a model makes of a batch: pictures, or the probabilities of all classes."""
  if not model.method.is_classification:
    return model.fuse(*sources, names=names, seed=seed, batch_size=batch_size)
  found = model.classify(*map(list, sources), batch_size=batch_size)
  return np.stack([np.concatenate(list(of_one.values())) for of_one in found])


def shape_of_results(model, sources):
  """The sources', or larger by the method's factor; without channels."""
  count, *size = sources[0].shape
  if model.method.is_classification:
    return (count, sum(field.channels for field in model.method.outputs))
  return (count, *(model.method.scale(model.config) * side for side in size))


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_the_same_alone_and_in_a_batch(name):
  model, sources = Model(*model_of(name)), pictures_of(name, 3)
  names = ["x", "y", "z"]
  together = results_of(model, sources, names, batch_size=3)
  shape = shape_of_results(model, sources)
  assert together.shape[: len(shape)] == shape
  assert np.ptp(together) > 0
  assert np.abs(together).max() <= 1
  for i in range(3):
    alone = results_of(model, [x[i : i + 1] for x in sources], names[i : i + 1])
    np.testing.assert_allclose(alone[0], together[i], atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_drawn_where_the_record_says_so(name):
  model, sources = Model(*model_of(name)), pictures_of(name, 1)
  same = (results_of(model, sources, seed=0) == results_of(model, sources, seed=1)).all()
  assert same != model.method.is_random


@pytest.mark.parametrize("name", NAMES)
def test_any_split_of_the_parts_is_the_whole(name):
  params, config = model_of(name)
  sources, count = pictures_of(name, 1), methods.get(name).parts(config)
  results = [
    results_of(Model(params, config, parts_per_step=n), sources)
    for n in range(1, count + 1)
    if count % n == 0
  ]
  for result in results[1:]:
    np.testing.assert_allclose(result, results[0], atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(37, 50), (20, 17)])
def test_any_size_fuses(name, size):
  sources = pictures_of(name, 1, size)
  model = Model(*model_of(name))
  fused = results_of(model, sources)
  shape = shape_of_results(model, sources)
  assert fused.shape[: len(shape)] == shape
  assert np.isfinite(fused).all()


def batch_of(run, count=2):
  rng = np.random.default_rng(1)
  size = run.config.crop_size
  batch = {
    field.name: rng.integers(0, 2, (count, field.channels)).astype(np.float32)
    if field.is_vector
    else np.repeat(
      smooth(rng, (count, *[size] * run.method.space))[..., None], field.channels, axis=-1
    )
    for field in batch_fields(run.method, run.stage)
  }
  return {**batch, "index": np.arange(count, dtype=np.int32)}


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_a_step_moves_what_is_trained_and_nothing_else(name, stage):
  """Every trained leaf has a finite gradient and moves; what is frozen stays, bit for bit."""
  run = run_of(name, stage)
  config = run.config.copy_and_resolve_references()
  config.optimizer.warmup_steps = 0
  run = run._replace(config=config)
  state = setup.init_state(run)
  step = setup.pmap_train_step(run, jax.local_devices()[:1])
  lead = lambda tree: jax.tree.map(lambda x: np.asarray(x)[None], tree)  # noqa: E731
  new, metrics = step(lead(state), lead(batch_of(run)))
  new = jax.tree.map(lambda x: np.asarray(x)[0], new)
  assert all(np.isfinite(value).all() for value in metrics.values())
  assert set(state.params) == set(setup.trained_networks(run.stage))
  assert set(run.stage.continued) <= set(state.params)
  for path, after in jax.tree_util.tree_leaves_with_path(new.params):
    assert np.isfinite(after).all(), path
  moved = jax.tree.map(lambda x, y: (np.asarray(x) != y).any(), state.params, new.params)
  share = np.mean(jax.tree.leaves(moved))
  assert share > 0.8  # a bias before a ReLU that is nowhere on has no gradient
  for network in state.params:
    assert any(jax.tree.leaves(moved[network])), network
  for before, after in zip(jax.tree.leaves(state.frozen), jax.tree.leaves(new.frozen), strict=True):
    np.testing.assert_array_equal(before, after)
  assert set(new.stats) == set(init(run).get(STATS, {}))


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_an_examples_loss_is_its_own(name, stage):
  """It depends on the example and its key, not on its neighbours in the batch."""
  run = run_of(name, stage)
  modes = (False,) if name in OF_THE_BATCH or init(run).get(STATS) else (True, False)
  params = join(run.frozen, init(run))
  batch = batch_of(run, 3)
  index = batch.pop("index")

  @functools.partial(jax.jit, static_argnames="train")
  def losses(batch, keys, train):
    context = methods.method.Context(keys, train, np.float32(0.5))
    return [update.loss(params, batch, context).value for update in run.stage.updates]

  keys = steps.example_keys(0, 3, index)
  order = np.array([2, 0, 1])
  for train in modes:
    expected = losses(batch, keys, train)
    moved = losses({k: v[order] for k, v in batch.items()}, keys[order], train)
    for ours, theirs in zip(moved, expected, strict=True):
      assert ours.shape == (3,)
      np.testing.assert_allclose(ours, np.asarray(theirs)[order], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_file_gives_the_same_model(name, tmp_path):
  params, config = model_of(name)
  save_weights(tmp_path / "model.safetensors", params, config)
  again, config_again = read_weights(tmp_path / "model.safetensors")
  assert config_again == config
  assert jax.tree.structure(again) == jax.tree.structure(params)
  for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_the_exported_program_fuses_the_same(name):
  params, config = model_of(name)
  sources = pictures_of(name, 2, methods.get(name).size(config) or (24, 30))
  size = sources[0].shape[1:]
  exported = export_fuse(params, config, size=size, batch=1, precision="float32")
  program = jax.export.deserialize(exported.serialize())
  codes = np.array([name_code(n) for n in ("x", "y")], np.uint32)
  given = [
    x
    if field.channels == 1 or field.is_vector
    else np.repeat(x[..., None], field.channels, axis=-1)
    for field, x in zip(methods.get(name).sources, sources, strict=True)
  ]
  fused = program.call(*given, np.uint32(7), codes)
  expected = results_of(Model(params, config), sources, ["x", "y"], 7)
  np.testing.assert_allclose(np.clip(fused, -1, 1), expected, atol=2e-5)


def test_what_follows_the_crop_sees_no_padding(users_method):
  """A picture that is stretched to its own range reaches both ends, padded or not, exported too."""
  sizes = [(20, 17), (16, 16), (24, 30)]
  stretching = dataclasses.replace(
    toy.METHOD,
    stride=lambda config: 16,
    after_crop=lambda config: lambda outputs: {"fused": layers.stretch(0.1 * outputs["fused"])},
  )
  config = {"method": users_method(stretching), "toy": {"width": 8}}
  model, names = Model({"toy": toy.PARAMS}, config), ["x", "y", "z"]
  sources = [[smooth(np.random.default_rng(i), size) for size in sizes] for i in range(2)]
  together = model.fuse(*sources, names=names)
  for i, fused in enumerate(together):
    assert (fused.min(), fused.max()) == (-1, 1)
    np.testing.assert_array_equal(fused, model.fuse(*(x[i] for x in sources), names=names[i]))
  exported = export_fuse(model.params, config, size=sizes[-1], batch=1, precision="float32")
  codes = np.array([name_code(names[-1])], np.uint32)
  (fused,) = exported.call(*(x[-1][None] for x in sources), np.uint32(0), codes)
  np.testing.assert_allclose(fused, together[-1], atol=2e-5)


def test_a_network_without_a_file_is_drawn_and_kept(users_method, tmp_path, capsys):
  """Whoever resumes, or trains the next stage, finds the copy."""
  other = lambda key: {"other": {"w": jax.random.normal(key, (3,))}}  # noqa: E731
  stage = lambda config: dataclasses.replace(  # noqa: E731
    toy.stage(config), frozen={"other": "other_file"}, substitute=other
  )
  defaults = lambda stage: {**toy.METHOD.defaults(stage), "other_file": ""}  # noqa: E731
  name = users_method(dataclasses.replace(toy.METHOD, stages={1: stage}, defaults=defaults))
  drawn = setup.set_up(common.recipe(name, 1), tmp_path).frozen["other"]["w"]
  assert "config.other_file is empty: other with random weights" in capsys.readouterr().err
  again = setup.set_up(common.recipe(name, 1, seed=1), tmp_path).frozen["other"]["w"]
  np.testing.assert_array_equal(drawn, again)
  (tmp_path / "wide").mkdir()
  wide = tmp_path / "wide" / "model.safetensors"
  save_weights(wide, {"other": {"w": np.zeros(4, np.float32)}}, {"method": name})
  with pytest.raises(UserError, match=r"config.other_file=.* has another other than this config"):
    setup.set_up(common.recipe(name, 1, other_file=str(wide)), tmp_path / "wide")
  (tmp_path / "new").mkdir()
  given = common.recipe(name, 1, seed=1, other_file=str(tmp_path / "frozen_other_file.safetensors"))
  np.testing.assert_array_equal(drawn, setup.set_up(given, tmp_path / "new").frozen["other"]["w"])


def test_a_stage_names_the_fields_of_its_batches():
  """Those of the method's sources, which a target of the same name replaces, and further ones."""
  targets = (Field("b", channels=3), Field("saliency"))
  stage = dataclasses.replace(toy.stage(None), targets=targets)
  assert batch_fields(toy.METHOD, stage) == (Field("a"), *targets)


@pytest.mark.parametrize("name", [name for name in NAMES if methods.get(name).stages])
def test_the_recipe_loads_at_every_size_and_stage(name):
  module = importlib.import_module(f"dmfnet_jax.configs.{name}")
  assert {"paper", "tiny"} <= set(module.SIZES)
  for stage in methods.get(name).stages:
    for size in module.SIZES:
      config = parse_config(["--config", f"configs/{name}.py:stage={stage},size={size}"])
      assert (config.method, config.stage) == (name, stage)
      assert config.num_train_steps > 0
      json.loads(config.to_json())


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_estimated_above_what_the_compiler_plans(name):
  params, config = model_of(name)
  method = methods.get(name)
  if method.memory is None:
    pytest.skip("nobody has measured it")
  engine = Engine(params, config, parts_per_step=1)
  size = size_for(method, (64, 96))
  planned = engine.temporary_bytes(size)
  estimate = method.memory(config, engine.padded(size), 1, 1, 4)
  assert planned <= 1.2 * estimate
  assert estimate <= 6 * planned
