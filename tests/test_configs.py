"""Every recipe loads, is locked, names a dataset, and builds its networks, loss and optimizer."""

import functools
import importlib
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from dmfnet_jax import methods
from dmfnet_jax.configs import ablations
from dmfnet_jax.data import datasets
from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.methods.method import STATS, Context, batch_fields, join, select
from dmfnet_jax.training import defaults, setup
from dmfnet_jax.training.config import parse_config
from dmfnet_jax.training.state import (
  Optimizers,
  create_train_state,
  make_learning_rate,
  optimizer_of,
)
from dmfnet_jax.weights.workdir import model_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TRAINED = [name for name in methods.names() if methods.get(name).stages]
NAMES = [
  f"{name}.py:stage={stage},size={size}"
  for name in TRAINED
  for size in importlib.import_module(f"dmfnet_jax.configs.{name}").SIZES
  for stage in methods.get(name).stages
]
ABLATIONS = [f"ablations.py:{name}" for name in ablations.STAGE1 | ablations.STAGE2]


def load(name: str) -> ConfigDict:
  return parse_config(["--config", str(CONFIGS / name)])


@functools.cache
def run_of(name: str) -> setup.Setup:
  """What a recipe stands for, on the earlier stages of its size; networks are shapes."""
  config = load(name)
  method = methods.get(config.method)
  frozen: dict = {}
  if config.stage > 1:
    earlier = name.replace(f"stage={config.stage}", f"stage={config.stage - 1}")
    before = run_of(earlier if earlier != name else "dmfnet.py:stage=1,size=small")
    config = setup.with_sections(config, model_config(before.config.to_dict()))
    frozen = join(before.frozen, shapes(before))
  stage = method.stages[config.stage](config)
  if stage.substitute is not None:
    frozen = join(frozen, jax.eval_shape(stage.substitute, gaussian.make_key(0)))
  return setup.Setup(config, method, stage, select(frozen, stage.frozen))


def shapes(run: setup.Setup):
  """What a recipe trains, with nothing computed."""
  return jax.eval_shape(run.stage.init, gaussian.make_key(0))


def count(params) -> int:
  networks = {name: network for name, network in params.items() if name != STATS}
  return sum(leaf.size for leaf in jax.tree.leaves(networks))


def test_there_are_configs():
  files = {path.stem for path in CONFIGS.glob("*.py")}
  assert files == {"__init__", "common", "ablations", *TRAINED}


@pytest.mark.parametrize("name", NAMES + ABLATIONS)
def test_config_can_be_trained(name):
  """Up to the loss of a batch, traced and not computed."""
  config = load(name)
  assert config.is_locked
  assert config.dataset in datasets.DATASETS
  setup.check_config(config)
  run = run_of(name)
  params = shapes(run)
  optimizers = Optimizers(run.config, setup.trained_networks(run.stage))
  state = jax.eval_shape(
    lambda params: create_train_state(params, optimizers, ema=config.ema_decay > 0), params
  )
  assert state.step.shape == ()
  for network in setup.trained_networks(run.stage):
    rate = make_learning_rate(optimizer_of(run.config, network), config.num_train_steps)
    assert rate(max(1, config.num_train_steps // 2)) > 0

  size = (config.crop_size,) * run.method.space
  batch = {
    field.name: jax.ShapeDtypeStruct(
      (2, field.channels) if field.is_vector else (2, *size, field.channels), jnp.float32
    )
    for field in batch_fields(run.method, run.stage)
  }
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  for update in run.stage.updates:
    loss = jax.eval_shape(
      lambda params, batch, keys, update=update: update.loss(
        params, batch, Context(keys, True, jnp.float32(0.5))
      ),
      join(run.frozen, params),
      batch,
      keys,
    )
    for value in (loss.value, *loss.terms.values()):
      assert (value.shape, value.dtype) == ((2,), jnp.float32)


@pytest.mark.parametrize("name", TRAINED)
def test_docstring_has_the_commands_that_train_it(name):
  """So that copying them out of the docstring works."""
  text = importlib.import_module(f"dmfnet_jax.configs.{name}").__doc__
  commands = re.findall(r"dmfnet train --config (\S+) --workdir \S+", text)
  assert len(commands) == len(methods.get(name).stages)
  for command in commands:
    assert parse_config(["--config", command]).method == name


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_one_thing(name):
  config = load(name)
  base = load(f"dmfnet.py:stage={config.stage},size=small")
  ours, theirs = (traverse_util.flatten_dict(x.to_dict(), sep=".") for x in (config, base))
  assert ours.keys() == theirs.keys()
  assert len([field for field in ours if ours[field] != theirs[field]]) == 1


CONFIGURED = [method for method in map(methods.get, methods.names()) if method.model]


@pytest.mark.parametrize(
  "module", [defaults, *(inspect.getmodule(method.defaults) for method in CONFIGURED)]
)
def test_every_field_is_commented(module):
  """Beside its default, or in the lines above it."""
  lines = inspect.getsource(module).splitlines()
  fields = [i for i, line in enumerate(lines) if re.match(r'\s{4,}"\w+": (?!.*\{$).+,', line)]
  assert len(fields) > 5
  bare = [i for i in fields if "  # " not in lines[i]]
  # A comment above covers the fields below it that belong together.
  assert all(any("# " in above for above in lines[max(0, i - 4) : i]) for i in bare)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("dmfnet.py:stage=1,size=paper", 20_670_081),
    ("dmfnet.py:stage=2,size=paper", 3_026_640),
    ("dmfnet.py:stage=1,size=small", 1_299_873),
    ("dmfnet.py:stage=2,size=small", 193_465),
    ("dmfnet.py:stage=1,size=tiny", 327_633),
    ("dmfnet.py:stage=2,size=tiny", 49_932),
    ("adafuse.py:stage=1,size=paper", 539_419_517 - 19_817_876),  # less what it never uses
    ("cddfuse.py:stage=1,size=paper", 599_144 + 207_936),
    ("cddfuse.py:stage=2,size=paper", 1_188_272),
    ("coconet.py:stage=1,size=paper", 6_845_189 - 55_425),  # less what it never uses
    ("coconet.py:stage=2,size=paper", 6_845_189 - 55_425),
    ("deform3d.py:stage=1,size=paper", 98_751_290 - 5_502_336),  # less what it never uses
    ("dfvo.py:stage=1,size=paper", 10_105_316 - 147_584),  # less what it never uses
    ("emma.py:stage=1,size=paper", 2 * 39_397_761),
    ("emma.py:stage=2,size=paper", 1_517_657),
    ("tfsdiff.py:stage=1,size=paper", 97_811_034),
    ("tfsdiff.py:stage=1,size=paper-16-128", 97_811_034),
    ("tfsdiff.py:stage=1,size=paper-16-256", 155_337_882),
    ("waveae.py:stage=1,size=paper", 378_961),
  ],
)
def test_parameter_counts(name, expected):
  assert count(shapes(run_of(name))) == expected


def test_overrides_from_the_command_line():
  config = parse_config(
    [
      "--config=configs/dmfnet.py:stage=1",
      "--config.batch_size=16",
      "--config.unet.multipliers=(1,2)",
      "--config.unet.attention_levels=(0,)",
      "--config.optimizer.learning_rate=2e-4",
      "--config.compute_dtype=bfloat16",
      "--config.remat=True",
      "--config.seed",
      "7",
    ]
  )
  assert config.batch_size == 16
  assert config.unet.multipliers == (1, 2)
  assert config.unet.attention_levels == (0,)
  assert config.optimizer.learning_rate == 2e-4
  assert config.compute_dtype == "bfloat16"
  assert config.remat is True
  assert config.seed == 7
  assert config.num_train_steps == 630_000
  assert config.is_locked


def test_features_of_one_timestep():
  config = parse_config(["--config=configs/dmfnet.py:stage=2", "--config.features.timesteps=(5,)"])
  assert config.features.timesteps == (5,)


def test_the_old_name_of_start_is_understood():
  config = parse_config(["--config=configs/dmfnet.py:stage=2", "--config.stage1=runs/x"])
  assert config.start == "runs/x"


def test_installed_configs_are_found_anywhere(monkeypatch, tmp_path):
  """Outside a checkout the same words find the installed copy; a file that is there wins."""
  monkeypatch.chdir(tmp_path)
  words = ["--config", "configs/dmfnet.py:size=small"]
  assert parse_config(words).unet.width == 32
  (tmp_path / "configs").mkdir()
  text = (CONFIGS / "dmfnet.py").read_text().replace("width = 32", "width = 16")
  (tmp_path / "configs/dmfnet.py").write_text(text)
  assert parse_config(words).unet.width == 16


def test_two_loads_share_nothing():
  first, second = (load("dmfnet.py:stage=1") for _ in range(2))
  with first.unlocked():
    first.unet.width = 1
  assert second.unet.width == 128


def test_the_recipes_are_the_papers():
  """The numbers that a later edit must not change by accident."""
  stage1, stage2 = load("dmfnet.py:stage=1"), load("dmfnet.py:stage=2")
  assert stage1.schedule.to_dict() == {
    "name": "cosine",
    "num_timesteps": 2000,
    "start": 1e-6,
    "end": 1e-2,
  }
  assert (stage1.timestep_range, stage1.crop_size, stage1.batch_size) == ((1, 2000), 160, 1)
  assert (stage1.num_train_steps, stage2.num_train_steps) == (630_000, 300 * 662)
  assert (stage1.optimizer.name, stage1.optimizer.learning_rate) == ("adamw", 1e-5)
  assert stage1.optimizer.weight_decay == 0.01
  assert (stage2.optimizer.name, stage2.optimizer.learning_rate) == ("adam", 1e-4)
  assert stage2.features.timesteps == (5, 10, 20)
  assert stage2.features.noise
  assert stage2.fusion_head.output == "tanh"
  assert stage2.features.schedule.name == "linear"
  assert stage2.loss.to_dict() == {
    "fn": "fusion",
    "intensity_weight": 1.5,
    "overlap": 0.0,
    "overlap_power": 0.0,
    "shade": 0.0,
    "mean_share": 0.0,
    "gradient_weight": 1.0,
    "gradient_gain": 1.0,
    "gain_half": 0.0,
    "gain_power": 1.0,
    "gradient_floor": 0.0,
    "ssim_weight": 0.5,
    "lost_weight": 0.0,
    "lost_margin": 0.12,
    "invention_weight": 0.0,
  }
  np.testing.assert_array_equal(
    [c.optimizer.clip_norm for c in (stage1, stage2)] + [c.ema_decay for c in (stage1, stage2)], 0
  )
