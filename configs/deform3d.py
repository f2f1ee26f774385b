"""DC2Fusion: one stage, whole volumes.

    dmfnet data prepare mni_volumes --data-dir data
    dmfnet train --config configs/deform3d.py:stage=1,size=tiny --workdir runs/deform3d

Sizes:
- paper: 93,248,954 parameters, volumes of 128^3, 500 epochs. An epoch is counted as that of the 39
  training subjects in the published lists (the paper says 660). ADNI's volumes are not
  redistributed: the dataset here is the simulated one.
- small: half as wide, crops of 64^3.
- tiny: about a minute on two cores: to try the program, not to fuse well.

The published weights of both maps are sums over the whole volume, so a model is for volumes of the
size that it was trained on. `small` and `tiny` take means over what is not black, and are trained
on crops.
"""

import ml_collections

from dmfnet_jax.configs import common

SIZES = ("paper", "small", "tiny")
_SUBJECTS = 39


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
  """Returns the locked config.

  Args:
    arguments: "stage=1", and "size=" with one of `SIZES`.
  """
  return common.sized(arguments, (1,), paper, small=small, tiny=tiny)


def paper(stage: int) -> ml_collections.ConfigDict:
  """The published recipe."""
  config = common.recipe("deform3d", stage)
  config.dataset = "mni_volumes"
  config.crop_size = 128
  config.batch_size = 1
  config.num_train_steps = 500 * _SUBJECTS
  config.eval_batch_size = 1
  config.optimizer.update(
    learning_rate=1e-4,
    decay="polynomial",
    decay_power=0.9,
    decay_every_steps=_SUBJECTS,
  )
  return config


def small(config: ml_collections.ConfigDict) -> None:
  """Half as wide, for crops."""
  config.crop_size = 64
  config.num_train_steps = 2_000
  config.log_every_steps = 25
  config.eval_every_steps = config.sample_every_steps = 500
  config.checkpoint_every_steps = 250
  config.network.width = 48
  config.fusion.weights = "mean"
  config.augment.update(rotate=0.0, noise=0.0)
  config.optimizer.update(learning_rate=3e-4, warmup_steps=50, clip_norm=1.0, decay_every_steps=0)
  config.ema_decay = 0.998


def tiny(config: ml_collections.ConfigDict) -> None:
  """A minute."""
  small(config)
  config.crop_size = 32
  config.batch_size = 2
  config.num_train_steps = 200
  config.log_every_steps = 20
  # Once: of whole volumes an evaluation takes as long as many steps.
  config.eval_every_steps = config.sample_every_steps = config.num_train_steps
  config.checkpoint_every_steps = config.num_train_steps
  config.network.update(width=24, depths=(1, 1), heads=(3, 6), drop_path=0.0)
  config.augment.gamma = 0.0
  config.optimizer.update(learning_rate=1e-3, warmup_steps=10)
  config.ema_decay = 0.0
