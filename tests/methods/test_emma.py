"""EMMA: what its goldens and the contract do not show."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import GOLDEN_DIR
from scipy import ndimage

from dmfnet_jax.configs import emma as recipe
from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.emma import METHOD, fuse_tiled, objectives, published, stages
from dmfnet_jax.methods.method import Compute, Field


def published_states():
  """The published state dicts, all zero."""
  shapes = json.loads((GOLDEN_DIR / "emma_state_dict.json").read_text())
  return (
    {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes[part].items()}
    for part in ("EMMA", "Ai", "Av")
  )


def test_published_files_become_what_training_and_fusing_need():
  fuser, infrared, visible = published_states()
  visible["last.0.bias"] = np.ones(1, np.float32)
  infrared["down1.conv.1.running_var"] = np.full(64, 5, np.float32)
  params, config = published.from_torch(
    {"fuser": fuser, "sense_infrared": infrared, "sense_visible": visible}
  )
  assert set(params) == {"fuser", "sense_a", "sense_b", "stats"}
  assert config == {
    "fusion": {"visible": "b"},
    "fuser": {"widths": [8, 16, 32, 32], "heads": 8},
    "sensing": {"width": 64, "levels": 5},
  }
  # Trained with the infrared picture as A.
  assert params["sense_b"]["out"]["bias"] == 1
  assert (params["stats"]["sense_a"]["down_1"]["norm1"]["var"] == 5).all()
  assert set(published.from_torch({"fuser": fuser})[0]) == {"fuser"}


def test_what_does_not_fit_is_named():
  fuser, infrared, _ = published_states()
  wrong = {k: v for k, v in fuser.items() if k != "last.0.bias"} | {"more": np.zeros(2)}
  for parts, message in (
    ({}, "give fuser=EMMA.pth to fuse, sense_infrared="),
    ({"sense_infrared": infrared}, "give fuser=EMMA.pth to fuse, sense_infrared="),
    ({"fuser": infrared}, r"not an EMMA fuser: it has no f_1.embed.weight"),
    ({"sense_infrared": fuser, "sense_visible": fuser}, "not a sensing network of EMMA"),
    ({"fuser": wrong}, r"1 missing \(last.0.bias\); 1 unexpected \(more\)"),
  ):
    with pytest.raises(UserError, match=message):
      published.from_torch(parts)


def test_a_model_of_a_place_that_there_is_not_is_refused():
  config = METHOD.defaults(2)
  config["fusion"]["visible"] = "c"
  with pytest.raises(UserError, match=r"config.fusion.visible is one of 'a', 'b', not 'c'"):
    METHOD.fuse(config, Compute())


def picture(*shape, seed=0):
  return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


def distance(x, y):
  """Of one picture, by SciPy's Sobel filter."""
  difference = x.astype(np.float64) - y
  edges = [ndimage.sobel(difference, axis, mode="nearest") / 8 for axis in (0, 1)]
  return np.abs(difference).mean() + np.abs(edges).mean()


def test_the_loss_is_the_papers():
  """With networks that are simple functions: what each term compares with what."""
  a, b, fused = (picture(2, 6, 8, 1, seed=i) for i in range(3))
  fuse = lambda a, b: 0.25 * a + 0.75 * b  # noqa: E731
  sense = lambda x: (x**2, 1 - x)  # noqa: E731
  move = lambda x: jnp.stack([x, x[:, ::-1], x[:, :, ::-1]])  # noqa: E731
  loss = stages.equivariant(fuse, sense, move, fused, a, b, weight=0.1)
  for i in range(2):
    x = fused[i, ..., 0]
    value = distance(x**2, a[i, ..., 0]) + distance(1 - x, b[i, ..., 0])
    moved = [x, x[::-1], x[:, ::-1]]
    value += 0.1 * np.mean([distance(y, 0.25 * y**2 + 0.75 * (1 - y)) for y in moved])
    np.testing.assert_allclose(loss.value[i], value, rtol=1e-5)


def test_shifts_are_other_ones_and_never_none():
  keys = jax.random.split(jax.random.key(0), 50)
  rows, columns = objectives.draw_shifts(keys, (4, 9), 5)
  for drawn, side in ((rows, 4), (columns, 9)):
    assert drawn.shape == (50, 5)
    assert set(np.unique(drawn)) == {*range(1 - side, side)} - {0}
    assert all(len(set(row)) == 5 for row in np.asarray(drawn).tolist())
  x = picture(1, 4, 9, 1)
  shift = np.array([[1]], np.int32), np.array([[-2]], np.int32)
  moved = objectives.transform(x, *shift, (), False)
  np.testing.assert_array_equal(moved[1, 0, ..., 0], np.roll(x[0, ..., 0], (1, -2), (0, 1)))


def test_tiles_cover_the_picture_and_small_ones_are_refused():
  x = picture(1, 70, 45, 1)
  seen = []

  def fuse(a, b):
    seen.append(a.shape[1:3])
    return a

  np.testing.assert_array_equal(fuse_tiled(fuse, x, x), x)
  assert seen == [(64, 32)] * 4
  with pytest.raises(UserError, match=r"fusion.tiled needs pictures of at least 32 x 32"):
    fuse_tiled(fuse, x[:, :31], x[:, :31])


def test_sensing_may_look_at_pictures_of_the_dataset():
  config = recipe.get_config("stage=1,size=tiny")
  assert stages.sensing(config).targets == ()
  config.inputs = ("mean", "didfuse")
  assert stages.sensing(config).targets == (Field("didfuse"),)


@pytest.mark.parametrize(
  ("stage", "field", "value", "message"),
  [
    (1, "inputs", (), "config.inputs is empty: name at least one fused picture"),
    (1, "crop_size", 24, "config.crop_size=24 must be a multiple of 16"),
    (2, "fuser.heads", 3, "config.fuser.heads=3 must divide the widths"),
    (2, "fusion.visible", "c", "config.fusion.visible is one of 'a', 'b', not 'c'"),
    (2, "transforms.shifts", 64, "config.transforms.shifts=64 must be less than the crop's side"),
  ],
)
def test_what_cannot_be_trained_is_refused(stage, field, value, message):
  config = recipe.get_config(f"stage={stage},size=tiny")
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=message.replace("(", r"\(")):
    METHOD.check(config)
