"""CoCoNet: what its goldens and the contract do not show."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import GOLDEN_DIR
from skimage.filters import threshold_otsu

from dmfnet_jax.configs import coconet as recipe
from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.coconet import METHOD, objectives, published, stages
from dmfnet_jax.methods.method import Field


def zeros():
  """The published state dicts, and torchvision's, all zero."""
  shapes = json.loads((GOLDEN_DIR / "coconet_state_dict.json").read_text())
  vgg = {f"features.{k.split('.', 2)[2]}": s for k, s in shapes["contrastive_vgg"].items()}
  vgg |= {"features.0.weight": (64, 3, 3, 3), "classifier.0.bias": (4,)}
  return (
    {key: np.zeros(shape, np.float32) for key, shape in keys.items()}
    for keys in (shapes["network"], vgg)
  )


def test_published_files_become_what_training_and_fusing_need():
  network, vgg = zeros()
  vgg["features.0.weight"][0, :, 1, 1] = 1, 2, 3
  network["bn1_1.running_var"][:] = 5
  params, config = METHOD.from_torch({"network": network, "vgg": vgg})
  assert set(params) == {"fuser", "vgg", "vgg_top", "stats"}
  assert config["fusion"] == {"input_range": "bytes"}
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
  # Its page's counts, less what the program never uses.
  assert count(params["fuser"]) == 6_845_189 - 55_425
  assert count(params["vgg"]) == 2_324_416
  assert (params["stats"]["fuser"]["block1_1"]["norm"]["var"] == 5).all()
  # A grey picture is one of three equal channels.
  params, _ = METHOD.from_torch({"vgg": vgg})
  grey = params["vgg"]["conv1_1"]["kernel"][1, 1, 0]
  np.testing.assert_allclose(grey[:2], [0.299 + 2 * 0.587 + 3 * 0.114, 0], rtol=1e-6)


def test_what_does_not_fit_is_named():
  network, vgg = zeros()
  wrong = {k: v for k, v in network.items() if k != "conv10.bias"} | {"more": np.zeros(2)}
  for parts, message in (
    ({}, r"give network=latest.pth, or for training vgg="),
    ({"network": vgg}, "not CoCoNet's network: it has no conv1_1.weight"),
    ({"vgg": network}, "not torchvision's VGG-19: it has no features.0.weight"),
    ({"network": wrong}, r"1 missing \(conv10.bias\); 1 unexpected \(more\)"),
  ):
    with pytest.raises(UserError, match=message):
      published.from_torch(parts)


def test_what_is_salient_lies_above_otsus_threshold():
  rng = np.random.default_rng(0)
  levels = np.concatenate([rng.normal(60, 15, 700), rng.normal(180, 20, 324)])
  levels = np.clip(np.rint(levels), 0, 255).astype(np.uint8).reshape(1, 32, 32, 1)
  image = levels / np.float32(127.5) - 1
  mask = objectives.salient(jnp.asarray(image))
  np.testing.assert_array_equal(mask, levels > threshold_otsu(levels))
  assert not np.any(objectives.salient(jnp.full((1, 8, 8, 1), 0.5)))  # a flat picture


@pytest.mark.parametrize("devices", [1, 2])
def test_every_example_borrows_from_others_of_all_devices(devices):
  images = jnp.arange(6.0)
  lend = jax.vmap(lambda x: stages.borrow(x, 2, "data"), axis_name="data")
  lent = [np.ravel(x) for x in lend(images.reshape(devices, -1))]
  np.testing.assert_array_equal(lent, [[2, 3, 4, 5, 0, 1], [4, 5, 0, 1, 2, 3]])


def test_an_empty_mask_contrasts_nothing():
  """Neither does a full one; the published program divides by zero."""
  features = [jnp.zeros((2, 1, 1, 1))] * 5
  value, gradient = jax.value_and_grad(
    lambda x: objectives.contrast([x] * 5, features, [features], jnp.mean)
  )(features[0])
  assert value == 0
  assert (gradient == 0).all()


def test_the_mask_comes_from_the_dataset_where_it_is_asked_for():
  config = recipe.get_config("stage=2,size=tiny")
  assert stages.finetuning(config).targets == ()
  config.loss.mask = "saliency"
  assert stages.finetuning(config).targets == (Field("saliency"),)
