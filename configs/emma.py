"""EMMA: Stage 1 learns what the sensors see of a fused picture, Stage 2 fuses.

    dmfnet data prepare harvard_mmif --data-dir data --manual-dir ATLAS_FOLDER
    dmfnet train --config configs/emma.py:stage=1,size=small --workdir runs/emma1
    dmfnet train --config configs/emma.py:stage=2,size=small --workdir runs/emma2 \
        --config.start=runs/emma1

Sizes:
- paper: a fuser of 1,517,657 parameters and two sensing networks of 39,397,761 each; 40 and 120
  epochs. An epoch is counted as that of the published set (1,083 pairs of 480 x 640 in patches of 128,
  about 6,000 of them; in Stage 1 of two methods' pictures each).
- small: narrower sensing networks and two transformations of the ten, for the Harvard pairs on two CPU
  cores; about an hour per stage.
- tiny: about a minute per stage on two cores and the simulated pairs (`dmfnet data prepare mni_pairs`):
  to try the program, not to fuse well.

The published Stage 1 looks at pictures that other methods have fused, which were not released. Here
mean and maximum of the pair stand for them; `--config.inputs="('NAME',)"` takes those of a folder NAME
of a `paired_folder`. All sizes but `paper` fuse medical pairs: the MRI takes the visible picture's
place.
"""

import ml_collections

from dmfnet_jax.configs import common

SIZES = ("paper", "small", "tiny")
_PATCHES = 6_000


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
  """Returns the locked config.

  Args:
    arguments: "stage=1" or "stage=2", and "size=" with one of `SIZES`.
  """
  return common.sized(arguments, (1, 2), paper, small=small, tiny=tiny)


def paper(stage: int) -> ml_collections.ConfigDict:
  """The published recipe: infrared-visible, rates that are halved in steps."""
  config = common.recipe("emma", stage)
  config.crop_size = 128
  config.batch_size = 64 if stage == 1 else 4
  steps_per_epoch = _PATCHES // config.batch_size
  config.num_train_steps = (40 if stage == 1 else 120) * steps_per_epoch
  config.optimizer.update(
    learning_rate=1e-4,
    decay="step",  # halved
    decay_every_steps=(10 if stage == 1 else 20) * steps_per_epoch,
  )
  if stage == 2:
    config.fusion.visible = "b"
  return config


def small(config: ml_collections.ConfigDict) -> None:
  """For two CPU cores and the Harvard pairs."""
  config.crop_size = 96
  config.batch_size = 2
  config.num_train_steps = 1_500 if config.stage == 1 else 1_000
  config.log_every_steps = 25
  config.eval_every_steps = config.sample_every_steps = 500
  config.checkpoint_every_steps = 250
  config.optimizer.update(decay="cosine", warmup_steps=50, learning_rate=3e-4, clip_norm=1.0)
  config.ema_decay = 0.998
  if config.stage == 1:
    config.sensing.width = 16
    config.optimizer.learning_rate = 3e-3
  else:
    config.fusion.visible = "a"
    config.transforms.update(shifts=1, rotations=(130,), flips=False)


def tiny(config: ml_collections.ConfigDict) -> None:
  """A minute per stage."""
  config.dataset = "mni_pairs"
  config.crop_size = 64
  config.batch_size = 2
  config.num_train_steps = 300 if config.stage == 1 else 100
  config.log_every_steps = 20
  # Once: of whole pictures an evaluation takes as long as many steps.
  config.eval_every_steps = config.sample_every_steps = config.num_train_steps
  config.checkpoint_every_steps = config.num_train_steps
  # At a higher rate the fuser's sigmoid is soon 0 or 1 everywhere, from where no gradient leads back.
  config.optimizer.update(decay="cosine", warmup_steps=10, learning_rate=5e-4, clip_norm=1.0)
  if config.stage == 1:
    config.sensing.update(width=8, levels=4)
    config.optimizer.learning_rate = 1e-2  # at less the guesses stay flat in so few steps
  else:
    config.crop_size = 48
    config.fuser.update(widths=(8, 16), heads=4)
    config.fusion.visible = "a"
    config.transforms.update(shifts=1, rotations=(), flips=False)
