"""DFVO: brightens a dark visible picture and fuses it with an infrared one, in one stage.

    dmfnet data prepare paired_folder --data-dir data --manual-dir LLVIP_FOLDER
    dmfnet train --config configs/dfvo.py:size=small --workdir runs/dfvo

In the folder `train/a` and `validation/a` hold the infrared pictures, `train/b` and `validation/b` the
visible ones.

Sizes:
- paper: 9,957,732 parameters, 100 epochs of LLVIP's 12,025 pairs, one a step.
- small: half the width and 10 epochs; under an hour on two CPU cores.
- tiny: about a minute on two cores and the simulated pairs (`dmfnet data prepare mni_pairs`): to try
  the program, not to fuse well.
"""

import ml_collections

from dmfnet_jax.configs import common

SIZES = ("paper", "small", "tiny")
_STEPS_PER_EPOCH = 12_025


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
  """Returns the locked config.

  Args:
    arguments: "stage=1", the only one, and "size=" with one of `SIZES`.
  """
  return common.sized(arguments, (1,), paper, small=small, tiny=tiny)


def paper(stage: int) -> ml_collections.ConfigDict:
  """The published recipe, but for its crops of 256 rows and 320 columns, and without flips."""
  config = common.recipe("dfvo", stage)
  config.dataset = "paired_folder"
  config.crop_size = 256
  config.batch_size = 1
  config.num_train_steps = 100 * _STEPS_PER_EPOCH
  config.optimizer.update(learning_rate=1e-4, b2=0.8)
  config.eval_every_steps = config.sample_every_steps = 5 * _STEPS_PER_EPOCH
  config.checkpoint_every_steps = 5 * _STEPS_PER_EPOCH
  return config


def small(config: ml_collections.ConfigDict) -> None:
  """For two CPU cores."""
  config.network.width = 8
  config.crop_size = 96
  config.batch_size = 2
  config.num_train_steps = 1_500
  config.log_every_steps = 25
  config.eval_every_steps = config.sample_every_steps = 500
  config.checkpoint_every_steps = 250
  config.loss.update(epochs=10, fusion_growth=1.0)  # the last weight is nearly the published one
  config.optimizer.update(decay="cosine", warmup_steps=50, learning_rate=5e-4)


def tiny(config: ml_collections.ConfigDict) -> None:
  """A minute."""
  config.dataset = "mni_pairs"
  config.network.width = 4
  config.crop_size = 64
  config.batch_size = 2
  config.num_train_steps = 200
  config.log_every_steps = 20
  config.eval_every_steps = config.sample_every_steps = config.num_train_steps
  config.checkpoint_every_steps = config.num_train_steps // 2
  config.loss.update(epochs=10, fusion_growth=1.0)
  config.optimizer.update(decay="cosine", warmup_steps=10, learning_rate=1e-3)
