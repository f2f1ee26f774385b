"""A model whose own part, or whose plugin's, is not there: one line, once, before any pair."""

import copy

import numpy as np
import pytest
from PIL import Image

from dmfnet_jax.cli import main
from dmfnet_jax.methods import parts
from dmfnet_jax.weights import load_params
from dmfnet_jax.weights.files import save_weights


@pytest.fixture(scope="module")
def released():
  return load_params("small-fast")


@pytest.fixture
def fused_by(released, tmp_path, monkeypatch, capsys):
  """Fuses a folder of two pairs by a changed model; returns what the command says."""
  monkeypatch.setattr(parts, "_allowed", set())
  monkeypatch.chdir(tmp_path)
  for folder in "ab":
    for stem in "xy":
      (tmp_path / folder).mkdir(exist_ok=True)
      Image.fromarray(np.eye(16, dtype=np.uint8)).save(f"{folder}/{stem}.png")

  def run(change, *options):
    params, config = copy.deepcopy(released)
    change(params, config)
    save_weights("model.safetensors", params, config)
    code = main(["fuse", "a", "b", "-o", "out", "--model", "model.safetensors", *options])
    return code, capsys.readouterr().err

  return run


def attention(name):
  return lambda params, config: config["fusion_head"].update(attention=name)


@pytest.mark.parametrize(
  ("change", "options", "message"),
  [
    (attention("my_parts:My"), (), "allow it by --plugin my_parts"),
    (
      attention("no_parts:My"),
      ("--plugin", "no_parts"),
      "No module named 'no_parts'; run where no_parts lies, or name its folder in PYTHONPATH",
    ),
    (attention("json:My"), ("--plugin", "json"), "module 'json' has no attribute 'My'"),
    (attention("newer"), (), "config.fusion_head.attention is one of 'triple', 'mean' or"),
    (lambda p, c: c.update(method="newer"), (), "unknown method 'newer': give one of"),
    (lambda p, c: c.update(method="my:M"), (), "the model's method is my:M, which is not part"),
    (
      lambda p, c: c.update(method="json:dumps"),
      ("--plugin", "json"),
      "json:dumps is no method: it is a function",
    ),
    (
      lambda p, c: c["fusion_head"].update(newer=3),
      (),
      "the model's config is not one of this version's dmfnet: "
      "FusionHead.__init__() got an unexpected keyword argument 'newer'",
    ),
    (lambda p, c: c.pop("unet"), (), "the model's config is not one of this version's dmfnet"),
    (lambda p, c: p.pop("unet"), (), "model.safetensors has no unet"),
  ],
)
def test_it_is_said_once_and_before_any_pair(fused_by, change, options, message):
  code, error = fused_by(change, *options)
  assert code == 2
  assert error.startswith("dmfnet: error: ")
  assert error.count("\n") == 1
  assert message in error


def test_parameters_that_do_not_fit_are_no_traceback(fused_by):
  code, error = fused_by(lambda p, c: p["fusion_head"].pop("attention_0"))
  assert code == 1
  assert "the model's parameters do not fit its config: Could not find parameter named" in error
  assert "Traceback" not in error
  assert "https:" not in error
