"""Every recipe loads, is locked, names a dataset, and builds its networks, loss and optimizer."""

import functools
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from dmfnet_jax.data import builders
from dmfnet_jax.training import stages
from dmfnet_jax.training.config import parse_config
from dmfnet_jax.training.state import create_train_state, make_learning_rate, make_optimizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = [path for path in sorted(CONFIGS.rglob("*.py")) if path.name != "__init__.py"]
NAMES = [path.relative_to(CONFIGS).as_posix() for path in FILES]


def load(name: str) -> ConfigDict:
  return parse_config(["--config", str(CONFIGS / name)])


def with_unet(config: ConfigDict, stage1: str) -> ConfigDict:
  """A Stage II config as the loop has it: with Stage I's UNet."""
  config = ConfigDict(config)
  with config.unlocked():
    config.unet = load(stage1).unet
  return config


def docstring(name: str) -> str:
  spec = importlib.util.spec_from_file_location("recipe", CONFIGS / name)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return str(module.__doc__)


def own_stage1(name: str) -> str:
  """The Stage I recipe that a Stage II recipe's docstring builds on."""
  found = re.search(r"--config\.stage1=runs/(\w+)", docstring(name))
  assert found, f"{name}: no --config.stage1 in the docstring's command"
  return f"{found[1]}.py"


def shapes(config: ConfigDict):
  """What a config trains, with nothing computed."""
  return jax.eval_shape(functools.partial(stages.init_params, config))


@functools.cache
def stage1_shapes(name: str):
  return shapes(load(name))


def count(params) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_there_are_configs():
  assert {f"{size}stage{stage}.py" for size in ("", "small_", "tiny_") for stage in (1, 2)} <= {
    *NAMES
  }


@pytest.mark.parametrize("name", NAMES)
def test_config_can_be_trained(name):
  """Up to the loss of a batch, traced and not computed."""
  config = load(name)
  assert config.is_locked
  assert config.dataset in builders.BUILDERS
  stages.check_config(config)
  frozen = None
  if config.stage == 2:
    stage1 = own_stage1(name)
    frozen = stage1_shapes(stage1)
    config = with_unet(config, stage1)
  params = shapes(config)
  learning_rate = make_learning_rate(config.optimizer, config.num_train_steps)
  optimizer = make_optimizer(config.optimizer, learning_rate)
  state = jax.eval_shape(
    lambda params: create_train_state(params, optimizer, ema=config.ema_decay > 0), params
  )
  assert state.step.shape == ()
  assert learning_rate(max(1, config.num_train_steps // 2)) > 0

  loss_fn = stages.make_loss(config)
  image = jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  loss, terms = jax.eval_shape(
    lambda *args: loss_fn(*args, train=True), params, frozen, {"a": image, "b": image}, keys
  )
  for value in (loss, *terms.values()):
    assert (value.shape, value.dtype) == ((2,), jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_the_command_that_trains_it(name):
  """With the file's own path, so that copying it out of the docstring works."""
  command = re.search(r"dmfnet train --config (\S+) --workdir \S+", docstring(name))
  assert command
  assert command[1] == f"configs/{name}"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("ablations/")])
def test_an_ablation_changes_one_thing(name):
  base = re.search(r"Ablation of `(\w+)`", docstring(name))
  assert base
  ours, theirs = (
    traverse_util.flatten_dict(load(x).to_dict(), sep=".") for x in (name, f"{base[1]}.py")
  )
  assert ours.keys() == theirs.keys()
  assert len([field for field in ours if ours[field] != theirs[field]]) == 1


@pytest.mark.parametrize("name", ["stage1.py", "stage2.py"])
def test_every_field_is_commented(name):
  """In the base recipes; variants say why they differ."""
  lines = (CONFIGS / name).read_text().splitlines()
  fields = [line for line in lines if re.match(r"  config\.[\w.]+ = (?!ml_collections)", line)]
  assert len(fields) > 25
  assert [line for line in fields if "  # " not in line] == []


@pytest.mark.parametrize(
  ("stage1", "unet", "stage2", "head"),
  [
    ("stage1.py", 20_670_081, "stage2.py", 3_026_640),
    ("small_stage1.py", 1_299_873, "small_stage2.py", 193_465),
    ("tiny_stage1.py", 327_633, "tiny_stage2.py", 49_932),
  ],
)
def test_parameter_counts(stage1, unet, stage2, head):
  assert count(stage1_shapes(stage1)) == unet
  assert count(shapes(with_unet(load(stage2), stage1))) == head


def test_overrides_from_the_command_line():
  config = parse_config(
    [
      "--config=configs/stage1.py",
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
  config = parse_config(["--config=configs/stage2.py", "--config.features.timesteps=(5,)"])
  assert config.features.timesteps == (5,)


def test_installed_configs_are_found_anywhere(monkeypatch, tmp_path):
  """Outside a checkout the same words find the installed copy; a file that is there wins."""
  monkeypatch.chdir(tmp_path)
  assert parse_config(["--config", "configs/small_stage1.py"]).unet.width == 32
  (tmp_path / "configs").mkdir()
  text = (CONFIGS / "small_stage1.py").read_text().replace("width = 32", "width = 16")
  (tmp_path / "configs/small_stage1.py").write_text(text)
  assert parse_config(["--config", "configs/small_stage1.py"]).unet.width == 16


def test_two_loads_share_nothing():
  first, second = (load("stage1.py") for _ in range(2))
  with first.unlocked():
    first.unet.width = 1
  assert second.unet.width == 128


def test_the_recipes_are_the_papers():
  """The numbers that a later edit must not change by accident."""
  stage1, stage2 = load("stage1.py"), load("stage2.py")
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
  assert stage2.features.schedule.name == "linear"
  assert stage2.loss.to_dict() == {
    "intensity_weight": 1.5,
    "gradient_weight": 1.0,
    "ssim_weight": 0.5,
  }
  np.testing.assert_array_equal(
    [c.optimizer.clip_norm for c in (stage1, stage2)] + [c.ema_decay for c in (stage1, stage2)], 0
  )
