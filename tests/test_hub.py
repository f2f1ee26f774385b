"""`hf://OWNER/NAME[/FILE]` as a model, with a stand-in for the Hub."""

import sys
import types

import ml_collections
import pytest
import tiny
from etils import epath
from PIL import Image

from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.training import setup
from dmfnet_jax.weights import find, load_params


@pytest.fixture
def hub(monkeypatch):
  """A Hub that has the released model under two names; yields what was asked of it."""
  asked = []

  def hf_hub_download(repository, file):
    asked.append((repository, file))
    if repository != "someone/brains":
      raise OSError("404 Client Error.\n\nRepository Not Found for url: https://hub/nobody.")
    return str(find.released_path("small-fast"))

  module = types.ModuleType("huggingface_hub")
  module.hf_hub_download = hf_hub_download
  monkeypatch.setitem(sys.modules, "huggingface_hub", module)
  return asked


@pytest.mark.parametrize(
  ("address", "file"),
  [
    ("hf://someone/brains", "model.safetensors"),
    ("hf://someone/brains/", "model.safetensors"),
    ("hf://someone/brains/old/v1.safetensors", "old/v1.safetensors"),
  ],
)
def test_a_model_of_the_hub_is_loaded(hub, address, file):
  params, config = load_params(address)
  expected, expected_config = load_params("small-fast")
  tiny.assert_same(params, expected)
  assert config == expected_config
  assert hub == [("someone/brains", file)]


def test_a_training_may_start_from_it(hub, tmp_path):
  config = ml_collections.ConfigDict({"start": "hf://someone/brains"})
  params, _ = setup._load(config, epath.Path(tmp_path), "start")
  tiny.assert_same(params, load_params("small-fast")[0])


@pytest.mark.parametrize("address", ["hf://", "hf://someone", "hf://someone/", "hf:///brains"])
def test_what_is_no_address_is_refused(hub, address):
  with pytest.raises(UserError, match="is hf://OWNER/NAME or hf://OWNER/NAME/FILE"):
    load_params(address)
  assert hub == []


def test_a_failed_download_is_one_line(hub, tmp_path, capsys):
  sources = tmp_path / "a.png", tmp_path / "b.png"
  for source in sources:
    Image.new("L", (16, 16)).save(source)
  words = ["fuse", *map(str, sources), "-o", str(tmp_path / "f.png")]
  assert main([*words, "--model", "hf://nobody/nothing"]) == 2
  assert capsys.readouterr().err == (
    "dmfnet: error: hf://nobody/nothing: cannot download model.safetensors: 404 Client Error. "
    "Repository Not Found for url: https://hub/nobody.\n"
  )


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(UserError, match=r"pip install 'dmfnet_jax\[hub\]'"):
    load_params("hf://someone/brains")


def test_the_real_client_takes_what_it_is_given(monkeypatch, tmp_path):
  """Where it is installed: no network is asked."""
  pytest.importorskip("huggingface_hub")
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
  with pytest.raises(UserError, match=r"cannot download model\.safetensors"):
    load_params("hf://someone/brains")
