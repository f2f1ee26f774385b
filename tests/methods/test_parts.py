"""Users' own parts: found by name, and imported only where the caller has named their module."""

import copy
import subprocess
import sys
import textwrap
import uuid

import numpy as np
import pytest
import tiny

import dmfnet_jax
from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.methods import parts
from dmfnet_jax.weights.files import read_weights, save_weights

MODULE = '''
"""A user's module: it leaves a mark where it is imported."""

import pathlib

import flax.linen as nn
import jax.numpy as jnp

pathlib.Path("imported").touch()


class MyAttention(nn.Module):
  dtype: object = jnp.float32

  @nn.compact
  def __call__(self, a, b):
    share = self.param("share", nn.initializers.constant(0.5), (1, 1, 1, 1))
    return share * a + (1 - share) * b


def my_loss(fused, a, b):
  value = jnp.mean((fused - (a + b) / 2) ** 2, axis=(1, 2, 3))
  return value, {"mse": value}
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
  """The name of a user's module, other in every test, in the folder where the user works."""
  name = f"parts_of_{uuid.uuid4().hex}"
  (tmp_path / f"{name}.py").write_text(MODULE)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  return name


@pytest.fixture
def users_model(module, tmp_path):
  """A model file whose head has the user's attention."""
  params, config = copy.deepcopy(tiny.model())
  config["fusion_head"]["attention"] = f"{module}:MyAttention"
  head = params["fusion_head"]
  share = {"share": np.full((1, 1, 1, 1), 0.5, np.float32)}
  head = {k: share if k.startswith("attention") else v for k, v in head.items()}
  save_weights(tmp_path / "users.safetensors", {**params, "fusion_head": head}, config)
  return tmp_path / "users.safetensors"


def test_a_model_file_alone_imports_nothing(users_model, module):
  a, b = np.zeros((2, 16, 16), np.uint8)
  with pytest.raises(UserError, match=f"attention is {module}:MyAttention.*--plugin {module}"):
    dmfnet_jax.load_model(str(users_model)).fuse(a, b)
  assert not (users_model.parent / "imported").exists()


def test_what_cannot_be_called_is_no_part(module):
  parts.allow([module])
  with pytest.raises(
    UserError, match=r"loss\.fn=.*:pathlib is a module: name a class or a function"
  ):
    parts.find("loss.fn", f"{module}:pathlib", {"fusion": max})


def test_a_named_plugin_is_imported_and_fuses(users_model, module):
  """In a process of its own, as a user would."""
  program = f"""
    import numpy as np
    from dmfnet_jax import load_model
    model = load_model({str(users_model)!r}, plugins=[{module!r}])
    a, b = np.random.default_rng(0).integers(0, 255, (2, 16, 16), np.uint8)
    print(model.fuse(a, b).shape)
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program)],
    cwd=users_model.parent,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout.strip() == "(16, 16)", done.stderr
  assert (users_model.parent / "imported").exists()


@pytest.mark.parametrize(
  ("name", "reason"),
  [
    ("{module}:NoSuch", "has no attribute 'NoSuch'"),
    ("no_such_module:Part", "No module named 'no_such_module'"),
  ],
)
def test_a_part_that_cannot_be_imported_is_one_line(module, name, reason):
  name = name.format(module=module)
  parts.allow([name.partition(":")[0]])
  with pytest.raises(UserError, match=rf"config\.loss\.fn={name}: cannot import it: .*{reason}"):
    parts.find("loss.fn", name, {})


@pytest.mark.parametrize("name", ["os.system", "my part:x", "a:b:c", ":x", "x:"])
def test_what_is_no_part_is_refused(name):
  with pytest.raises(UserError, match="is one of 'known' or a part of yours"):
    parts.find("loss.fn", name, {"known": 1})


def test_a_users_attention_and_loss_train(module, tmp_path, data_dir, stage1_run):
  """Set on the command line, they are allowed there; the model's config keeps them."""
  changes = {
    "dataset": "paired_folder",
    "data_dir": data_dir,
    "start": stage1_run[0],
    "fusion_head.attention": f"{module}:MyAttention",
    "loss.fn": f"{module}:my_loss",
    "crop_size": 16,
    "num_train_steps": 1,
  }
  words = [f"--config.{field}={value}" for field, value in changes.items()]
  run = tmp_path / "run"
  command = ["train", "--config", "configs/dmfnet.py:stage=2", "--workdir", str(run)]
  assert main([*command, *words]) == 0
  params, config = read_weights(run / "model.safetensors")
  assert config["fusion_head"]["attention"] == f"{module}:MyAttention"
  assert config["loss"]["fn"] == f"{module}:my_loss"
  assert params["fusion_head"]["attention_0"].keys() == {"share"}
