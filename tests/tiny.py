"""The smallest configs and models that have every part in them, and a toy that has none."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import toy

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.methods import parts
from dmfnet_jax.methods.dmfnet import METHOD
from dmfnet_jax.training import setup
from dmfnet_jax.weights.workdir import model_config

parts.allow({"toy"})

_RUN = {
  "dataset": "paired_folder",
  "crop_size": 16,
  "batch_size": 4,
  "num_train_steps": 4,
  "log_every_steps": 1,
  "eval_every_steps": 2,
  "sample_every_steps": 4,
  "checkpoint_every_steps": 2,
  "eval_batch_size": 2,
  "optimizer.learning_rate": 1e-3,
  "ema_decay": 0.5,
}


def toy_config(data_dir: str | Path = "", **changes: Any) -> ml_collections.ConfigDict:
  """A run of four steps of the toy method; arguments as for `config`."""
  from dmfnet_jax.configs import common

  return _changed(
    common.recipe(toy.NAME, 1), {"optimizer.name": "adamw", **_RUN}, data_dir, changes
  )


def _changed(config, base, data_dir, changes):
  config.update_from_flattened_dict({**base, "data_dir": str(data_dir)})
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


def config(stage: int, data_dir: str | Path = "", **changes: Any) -> ml_collections.ConfigDict:
  """The paper's recipe on two levels of width 8 and crops of 16, for four steps.

  Args:
    stage: 1 or 2.
    data_dir: where `paired_folder` was prepared.
    **changes: fields, with "__" for the dot: optimizer__clip_norm=1.0.
  """
  from dmfnet_jax.configs import dmfnet

  base = dict(_RUN)
  if stage == 1:
    base |= {
      "unet.width": 8,
      "unet.multipliers": (1, 2),
      "unet.num_res_blocks": 1,
      "unet.norm_groups": 4,
    }
  return _changed(dmfnet.get_config(f"stage={stage}"), base, data_dir, changes)


def stage2_config(unet: dict[str, Any] | None = None, **changes: Any) -> ml_collections.ConfigDict:
  """A Stage II config as the loop has it once Stage I is found: with the UNet's section.

  Args:
    unet: changes of the tiny UNet's section.
    **changes: as for `config`.
  """
  result = config(2, **changes)
  with result.unlocked():
    result.unet = ml_collections.ConfigDict(config(1).unet.to_dict() | (unet or {}))
  return result


def draw_params(config: ml_collections.ConfigDict, seed: int = 0) -> Any:
  """Random parameters of what a config's stage trains: no initialiser is compiled."""
  stage = METHOD.stages[config.stage](config)
  (shapes,) = jax.eval_shape(stage.init, gaussian.make_key(0)).values()
  return draw_like(shapes, seed)


def draw_like(shapes: Any, seed: int = 0) -> Any:
  """Random parameters of the shapes of a tree.

  Biases and norms are not at their initial zeros and ones, where mistakes could hide.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    z = rng.standard_normal(leaf.shape)
    name = path[-1].key
    if name == "kernel":
      z /= np.sqrt(np.prod(leaf.shape[:-1]))
    else:
      z = 0.1 * z + (name == "scale")
    return z.astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _model(unet: str) -> tuple[dict[str, Any], dict[str, Any]]:
  changes = json.loads(unet)
  head = stage2_config(changes)
  stage1 = config(1, **{f"unet__{k}": tuple(v) if v is list else v for k, v in changes.items()})
  params = {"unet": draw_params(stage1, 1), "fusion_head": draw_params(head, 2)}
  return params, json.loads(json.dumps(model_config(head.to_dict())))


def model(**unet: Any) -> tuple[dict[str, Any], dict[str, Any]]:
  """Parameters and config of a model with random weights, as a model file holds them.

  Args:
    **unet: changes of the tiny UNet's section.
  """
  return _model(json.dumps(unet))


def run_setup(config: ml_collections.ConfigDict, frozen: Any = None) -> setup.Setup:
  """What a config stands for, where the networks that it keeps are at hand."""
  return setup.Setup(config, METHOD, METHOD.stages[config.stage](config), frozen or {})


def leaves(tree: Any) -> dict[str, np.ndarray]:
  """A tree's arrays by their path, on the host."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in flat}


def assert_same(tree: Any, other: Any) -> None:
  """Asserts that two trees are the same, bit for bit."""
  ours, theirs = leaves(tree), leaves(other)
  assert ours.keys() == theirs.keys()
  for path, leaf in ours.items():
    np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)
