"""Hi-Net: makes a missing MR contrast of two others; one stage, a generator and a discriminator.

    dmfnet data prepare mri_contrasts --data-dir data --manual-dir BRATS_FOLDER
    dmfnet train --config configs/hinet.py:size=small --workdir runs/hinet
    dmfnet synthesize T1_FOLDER T2_FOLDER -o made --model runs/hinet --target FLAIR_FOLDER

It makes FLAIR of T1 and T2. `--config.contrasts.a=t1 --config.contrasts.b=flair
--config.contrasts.target=t2` makes another one of others, by the names that the dataset has.

Sizes:
- paper: a generator of 3,872,259 parameters, with the decoders that only training needs, against a
  discriminator of 391,041; 400 epochs of BraTS' slices in four patches of 128 each, batches of 128
  slices as the program's README has them.
- small: half the width, for slices of a few subjects on two CPU cores; a quarter of an hour.
- tiny: about a minute on two cores and simulated contrasts (`dmfnet data prepare mni_contrasts`): to
  try the program, not to make good pictures.
"""

import ml_collections

from dmfnet_jax.configs import common

SIZES = ("paper", "small", "tiny")
_EPOCHS, _CONSTANT_EPOCHS = 400, 100
_PATCHES = 4 * 1_240  # of the slices that the program's repository has to train on


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
  """Returns the locked config.

  Args:
    arguments: "size=" with one of `SIZES`; "stage=1" is the only stage.
  """
  return common.sized(arguments, (1,), paper, small=small, tiny=tiny)


def paper(stage: int) -> ml_collections.ConfigDict:
  """The published recipe: Adam for each network, the rate constant and then falling on a line."""
  config = common.recipe("hinet", stage)
  config.dataset = "mri_contrasts"
  config.crop_size = 128
  config.batch_size = 4 * 128
  steps_per_epoch = -(-_PATCHES // config.batch_size)
  config.num_train_steps = _EPOCHS * steps_per_epoch
  config.eval_every_steps = config.sample_every_steps = 5 * steps_per_epoch
  config.checkpoint_every_steps = 5 * steps_per_epoch
  config.optimizer.update(
    learning_rate=1e-3,
    b1=0.5,
    decay="polynomial",  # of power 1
    decay_after_steps=_CONSTANT_EPOCHS * steps_per_epoch,
    decay_every_steps=steps_per_epoch,
  )
  return config


def small(config: ml_collections.ConfigDict) -> None:
  """For two CPU cores and a few subjects."""
  config.network.width = 16
  config.batch_size = 4
  config.num_train_steps = 3_000
  config.log_every_steps = 25
  config.eval_every_steps = config.sample_every_steps = 500
  config.checkpoint_every_steps = 250
  config.optimizer.update(decay_after_steps=config.num_train_steps // 4, decay_every_steps=0)


def tiny(config: ml_collections.ConfigDict) -> None:
  """About a minute."""
  config.dataset = "mni_contrasts"
  config.network.width = 8
  config.crop_size = 64
  config.batch_size = 4
  config.num_train_steps = 200
  config.log_every_steps = 20
  config.eval_every_steps = config.sample_every_steps = config.num_train_steps
  config.checkpoint_every_steps = config.num_train_steps
  config.optimizer.update(decay_after_steps=config.num_train_steps // 4, decay_every_steps=0)
