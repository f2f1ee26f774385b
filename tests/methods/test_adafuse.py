"""AdaFuse's table of published names, its conversion, and what its goldens do not show."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden_weights import GOLDEN_DIR

from dmfnet_jax.configs import adafuse as recipe
from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.methods.adafuse import METHOD, check, networks, published
from dmfnet_jax.methods.method import STATS

SMALL = {
  "shared_encoder": True,
  "stem": 4,
  "widths": [4, 6],
  "head": 4,
  "dim": 8,
  "heads": 8,
  "patch": 2,
  "depth": 1,
}


@functools.cache
def variables_of(make_network):
  """Paths and shapes of a network's parameters and running statistics."""
  network = make_network()
  side = network["patch"] * 2 ** (len(network["widths"]) - 1)
  picture = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
  module = networks.build(network, "float32")
  made = jax.eval_shape(lambda: module.lazy_init(jax.random.key(0), picture, picture))
  return {
    path: leaf.shape
    for tree in made.values()
    for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()
  }


def paper():
  return recipe.get_config("size=paper").network.to_dict()


def small():
  return SMALL


def small_state():
  """A file of a small network, as the published program would write it."""
  rng = np.random.default_rng(0)
  state = {}
  for path, shape in variables_of(small).items():
    value = rng.standard_normal(shape).astype(np.float32)
    state[torch_names.torch_name(path, published.LAYERS)] = torch_names.to_torch_layout(value)
  return state


def test_every_published_name_is_known():
  """Of the file with separate encoders; with a shared one it has the first one's names."""
  stored = json.loads((GOLDEN_DIR / "adafuse_state_dict.json").read_text())["separate_encoders"]
  wanted = {
    key: tuple(shape)
    for key, shape in published.used(stored).items()
    if not key.endswith(("filt", "num_batches_tracked"))
  }
  ours = variables_of(paper)
  names = {
    torch_names.torch_name(path, published.LAYERS): torch_names.to_torch_layout(
      np.broadcast_to(0, shape)
    ).shape
    for path, shape in ours.items()
  }
  assert names == wanted


def test_a_file_is_converted_whatever_else_the_program_keeps_in_it():
  state = small_state()
  taps = np.array([1, 3, 3, 1], np.float32) / 8
  more = {
    "encoder.block1.down_anti.filt": np.broadcast_to(np.outer(taps, taps), (4, 1, 4, 4)),
    "encoder.block1.bn1.num_batches_tracked": np.zeros(()),
    "fusionnet1.decoder.decoder1.conv1.weight": np.zeros((2, 2, 3, 3)),
    "fusionnet1.FusionBlock1.QKV_Block1.mlp.fc1.weight": np.zeros((4, 8)),
  }
  params, config = METHOD.from_torch({"model": {f"module.{k}": v for k, v in state.items()} | more})
  assert config == {"network": SMALL}
  fuser, stats = params["fuser"], params[STATS]["fuser"]
  np.testing.assert_array_equal(
    stats["encoder"]["block2"]["bn1"]["var"], state["encoder.block2.bn1.running_var"]
  )
  np.testing.assert_array_equal(
    fuser["fusion2"]["final"]["embed1"]["kernel"].transpose(3, 2, 0, 1),
    state["fusionnet2.FusionBlock_final.patchembed1.proj.weight"],
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: s.pop("outlayer.weight"), "it has no outlayer.weight"),
    (lambda s: s.pop("fusionnet2.FusionBlock1.proj1.bias"), "1 missing .*FusionBlock1.proj1.bias"),
    (lambda s: s.update({"more.weight": np.zeros(3)}), "1 unexpected .*more.weight"),
    (
      lambda s: s.update({"encoder.block2.down_anti.filt": np.ones((4, 1, 4, 4))}),
      "block2.down_anti.filt is another filter",
    ),
  ],
)
def test_a_file_that_does_not_fit_is_refused(change, message):
  state = small_state()
  change(state)
  with pytest.raises(UserError, match=message):
    METHOD.from_torch({"model": state})


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"crop_size": 72}, "crop_size=72 must be a multiple of 16"),
    ({"network": {"heads": 3}}, "dim=32 must be a multiple of heads=3"),
    ({"loss": {"scaling": "both"}}, "loss.scaling is one of"),
  ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
  config = recipe.get_config("size=tiny")
  config.update(changes)
  with pytest.raises(UserError, match=message):
    check(config)


def test_spectra_come_and_go():
  """The channels roll with the rest and back; nothing pulls where the spectrum is zero."""
  x = np.zeros((1, 4, 6, 4), np.float32)
  x[0, 0, 0, 1] = 3.0
  spectrum = networks.log_spectrum(x)
  expected = np.zeros(4)
  expected[3] = np.log(4)
  np.testing.assert_allclose(spectrum[0, 2, 2], expected, rtol=1e-6)
  flat = networks.from_spectrum(np.ones((1, 4, 6, 4), np.float32))
  np.testing.assert_allclose(flat[0, :, :, 0], np.eye(1, 24).reshape(4, 6), atol=1e-7)
  gradient = jax.grad(lambda x: jnp.sum(networks.from_spectrum(networks.log_spectrum(x))))(x)
  assert np.isfinite(gradient).all()
