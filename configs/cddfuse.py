"""CDDFuse: Stage 1 rebuilds the sources from their features, Stage 2 fuses.

    dmfnet data prepare harvard_mmif --data-dir data --manual-dir ATLAS_FOLDER
    dmfnet train --config configs/cddfuse.py:stage=1,size=small --workdir runs/cddfuse1
    dmfnet train --config configs/cddfuse.py:stage=2,size=small --workdir runs/cddfuse2 \
        --config.start=runs/cddfuse1

Sizes:
- paper: 1,188,272 parameters, 40 and 80 epochs in batches of eight. An epoch is counted as that of the
  published set (1,083 pairs of 480 x 640 in patches of 128, about 6,000 of them), 750 steps.
- small: half the width and half the blocks, for the Harvard pairs on two CPU cores; under an hour per
  stage.
- tiny: about a minute per stage on two cores and the simulated pairs (`dmfnet data prepare mni_pairs`):
  to try the program, not to fuse well.

All sizes but `paper` fuse medical pairs: the MRI takes the visible picture's place and nothing is added
before the decoder's sigmoid, as in the published medical weights.
"""

import ml_collections

from dmfnet_jax.configs import common

SIZES = ("paper", "small", "tiny")
_STEPS_PER_EPOCH = 750


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
  """Returns the locked config.

  Args:
    arguments: "stage=1" or "stage=2", and "size=" with one of `SIZES`.
  """
  return common.sized(arguments, (1, 2), paper, small=small, tiny=tiny)


def paper(stage: int) -> ml_collections.ConfigDict:
  """The published recipe: infrared-visible, one run of 120 epochs whose clocks go on in Stage 2."""
  config = common.recipe("cddfuse", stage)
  config.crop_size = 128
  config.batch_size = 8
  config.num_train_steps = (40 if stage == 1 else 80) * _STEPS_PER_EPOCH
  config.optimizer.update(
    learning_rate=1e-4,
    decay="step",  # halved every 20 epochs
    decay_every_steps=20 * _STEPS_PER_EPOCH,
    clip_norm=0.01,  # of each network by itself
  )
  config.fusion.visible = "b"
  if stage == 2:
    # Two halvings lie behind the continued networks.
    with config.unlocked():
      config.optimizer.networks = {
        name: {"learning_rate": 2.5e-5} for name in ("encoder", "decoder")
      }
  return config


def small(config: ml_collections.ConfigDict) -> None:
  """For two CPU cores and the Harvard pairs."""
  medical(config)
  config.network.update(width=32, heads=4, blocks=2, nodes=2)
  config.crop_size = 96
  config.batch_size = 2
  config.num_train_steps = 1_200 if config.stage == 1 else 2_400
  config.log_every_steps = 25
  config.eval_every_steps = config.sample_every_steps = 400
  config.checkpoint_every_steps = 200
  config.optimizer.update(decay="cosine", warmup_steps=50, clip_norm=0.1, learning_rate=1e-3)
  config.ema_decay = 0.998


def tiny(config: ml_collections.ConfigDict) -> None:
  """A minute per stage."""
  medical(config)
  config.dataset = "mni_pairs"
  config.network.update(width=16, heads=2, blocks=1, nodes=1)
  config.crop_size = 64
  config.batch_size = 2
  config.num_train_steps = 200
  config.log_every_steps = 20
  config.eval_every_steps = config.sample_every_steps = config.num_train_steps
  config.checkpoint_every_steps = config.num_train_steps // 2
  config.optimizer.update(decay="cosine", warmup_steps=10, clip_norm=0.1, learning_rate=1e-3)


def medical(config: ml_collections.ConfigDict) -> None:
  """MRI with CT, PET or SPECT, as the published medical weights are used; fresh clocks."""
  config.fusion.update(skip="none", visible="a")
  with config.unlocked():
    config.optimizer.networks = {}
