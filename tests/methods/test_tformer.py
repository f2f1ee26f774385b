"""TFormer: what its goldens and the contract do not show."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import GOLDEN_DIR, draw_all

from dmfnet_jax.configs import tformer as recipe
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import seven_point
from dmfnet_jax.methods.method import STATS
from dmfnet_jax.methods.tformer import METHOD, published, stages
from dmfnet_jax.nn import swin


def published_state():
  """The published state dict with what the program stores besides, all zero."""
  shapes = json.loads((GOLDEN_DIR / "tformer_state_dict.json").read_text())
  return {
    key: np.broadcast_to(np.float32(0), shape)
    for part in ("model", "buffers")
    for key, shape in shapes[part].items()
  }


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_published_file_becomes_a_model_and_back():
  state = published_state()
  kernel = np.zeros(state["fc_bwn.weight"].shape, np.float32)
  kernel[1, 7] = 3
  state |= {"fc_bwn.weight": kernel, "meta_subnet.rnn.model.4.running_var": np.full(128, 5.0)}
  params, config = published.from_torch({"model": state})
  assert config["facts"] == {"leaking": True}
  expected = METHOD.defaults(1)["network"]
  assert {
    k: tuple(v) if isinstance(v, list) else v for k, v in config["network"].items()
  } == expected
  # Its page's count, without the backbone's own head of 128 classes, which nothing looks at.
  trained = {name: params[name] for name in METHOD.networks}
  assert count(trained) == 78_238_362 - 98_432
  assert count(params["backbone"]) == 27_617_786 - 98_432
  assert params["classifier"]["blue_whitish_veil"]["kernel"][7, 1] == 3
  assert (params[STATS]["classifier"]["meta"]["norm1"]["var"] == 5).all()
  back = published.to_torch(params)
  left = {key for key in published.used(state) if not key.endswith("num_batches_tracked")}
  assert back.keys() == left
  assert all(back[key].shape == state[key].shape for key in left)


def test_imagenets_backbone_is_a_start():
  state = {
    key.removeprefix("cli_vit."): value
    for key, value in published_state().items()
    if key.startswith("cli_vit.")
  }
  state["head.weight"], state["head.bias"] = np.zeros((1000, 768)), np.zeros(1000)
  params, config = published.from_torch({"backbone": state})
  assert set(params) == {"backbone"}
  assert count(params) == 27_617_786 - 98_432
  assert config["network"]["heads"] == [3, 6, 12, 24]
  assert METHOD.stages[1](recipe.get_config()).continued == ("backbone",)


def test_what_does_not_fit_is_named():
  state = published_state()
  wrong = {k: v for k, v in state.items() if k != "fc_rs.bias"} | {"more": np.zeros(2)}
  for parts, message in (
    ({}, "give model=new_model.pth"),
    ({"model": {"a": np.zeros(1)}}, "not a file of TFormer or Swin: it has no cli_vit.patch_embed"),
    ({"model": wrong}, r"1 missing \(fc_rs.bias\); 1 unexpected \(more\)"),
  ):
    with pytest.raises(UserError, match=message):
      published.from_torch(parts)


def test_what_is_computed_anew_is_what_the_program_stores():
  """Of shifted windows, and of the biases' places: from their definition, place by place."""
  window, shift, side = 2, 1, 6
  mask = swin.shift_mask(side, side, window, shift)
  rolled = np.roll(np.arange(side * side).reshape(side, side), (-shift, -shift), (0, 1))
  windows = np.asarray(swin.to_windows(jnp.asarray(rolled)[None, ..., None], window))[0, ..., 0]
  rows, columns = np.divmod(windows, side)
  near = lambda x: np.abs(x[:, :, None] - x[:, None]) < window  # noqa: E731
  # Before the roll, tokens of one window are neighbours, or come from opposite borders.
  np.testing.assert_array_equal(mask == 0, near(rows) & near(columns))
  index = swin.relative_positions(window)
  for i in range(4):
    for j in range(4):
      down, right = np.subtract(divmod(i, 2), divmod(j, 2)) + 1
      assert index[i, j] == 3 * down + right
  tokens = jnp.arange(2.0 * 6 * 4 * 3).reshape(2, 6, 4, 3)
  back = swin.from_windows(swin.to_windows(tokens, 2), 2, 6, 4)
  np.testing.assert_array_equal(back, tokens)


def test_the_decay_is_torchs():
  torch = pytest.importorskip("torch")
  values = draw_all({"x.weight": (3, 4)})["x.weight"]
  x = torch.nn.Parameter(torch.tensor(values))
  optimizer = torch.optim.SGD([x], lr=1.0, weight_decay=0.25)
  x.grad = torch.zeros_like(x)
  optimizer.step()
  tree = {"backbone": {"a": jnp.asarray(values)}, "classifier": {}}
  gradient = jax.grad(lambda tree: stages.l2(tree, 0.25))(tree)["backbone"]["a"]
  np.testing.assert_allclose(values - gradient, x.detach().numpy(), rtol=1e-6)


def augmented(seed=0, examples=16, **changes):
  values = recipe.get_config().augment.to_dict() | changes
  rng = np.random.default_rng(seed)
  picture = jnp.asarray(rng.random((1, 12, 12, 3)), jnp.float32).repeat(examples, 0)
  keys = jax.random.split(jax.random.key(seed), examples)
  return picture, *map(np.asarray, stages.augment(keys, picture, picture, **values))


def test_pictures_are_varied_by_chance():
  picture, clinical, dermoscopic = augmented(chance=0.0)
  np.testing.assert_allclose(clinical, picture, atol=1e-5)
  np.testing.assert_allclose(dermoscopic, picture, atol=1e-5)
  # Flips and quarters of a turn move pixels, both pictures' alike, and change none.
  picture, clinical, dermoscopic = augmented(chance=1.0, shift=0, scale=0, angle=0, contrast=0)
  np.testing.assert_allclose(clinical, dermoscopic, atol=1e-4)
  symmetries = [np.rot90(x, k) for x in (picture[0], picture[0][:, ::-1]) for k in range(4)]
  which = [
    [i for i, x in enumerate(symmetries) if np.abs(x - made).max() < 1e-4] for made in dermoscopic
  ]
  assert all(len(found) == 1 for found in which)
  assert len({found[0] for found in which}) > 3
  _, clinical, dermoscopic = augmented(chance=1.0)
  assert clinical.min() >= 0
  assert clinical.max() <= 1
  # Nearest pixels: no value that was not there.
  assert np.isin(dermoscopic, np.asarray(picture)).all()


def test_facts_that_leak_are_not_looked_at():
  config = {"facts": {"leaking": False}}
  kept = np.asarray(stages.kept(config))
  np.testing.assert_array_equal(kept, [1] * 14 + [0] * 6)
  assert METHOD.left_out(config) == seven_point.LEAKING
  assert np.asarray(stages.kept({"facts": {"leaking": True}})).all()


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("crop_size", 128, "config.crop_size=128 must be 64: 32 times config.network.window"),
    ("network.heads", (1, 2, 5, 2), "heads and fusion_heads must divide the channels: 48"),
    ("network.depths", (1, 2), r"config.network.depths=\(1, 2\) must be four positive numbers"),
    ("network.drop_path", 1.0, r"config.network.drop_path=1.0 must be in \[0, 1\)"),
    ("augment.scale", 1.0, r"config.augment.scale=1.0 must be in \[0, 1\)"),
  ],
)
def test_what_cannot_be_trained_is_refused(field, value, message):
  config = recipe.get_config("size=tiny")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=message):
    METHOD.check(config)
