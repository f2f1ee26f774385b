"""A wavelet-pooled autoencoder, in the manner of arXiv 2310.11910: one stage.

    dmfnet data prepare harvard_mmif --data-dir data --manual-dir ATLAS_FOLDER
    dmfnet train --config configs/waveae.py:stage=1,size=small --workdir runs/waveae

The paper has no program, and its recipe is not known to us: all sizes are ours, `paper` too.

To rebuild the sources first, train with `--config.loss.objective=rebuild`, then once more with
`--config.start` set to that run.

Sizes:
- paper: 378,961 parameters; Adam at one rate, as many steps as DM-FNet's `small` Stage 2.
- small: half the width, for the Harvard pairs on two CPU cores; under an hour.
- tiny: about a minute on two cores and the simulated pairs (`dmfnet data prepare mni_pairs`): to try the
  program, not to fuse well.
"""

import ml_collections

from dmfnet_jax.configs import common

SIZES = ("paper", "small", "tiny")


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
  """Returns the locked config.

  Args:
    arguments: "stage=1", and "size=" with one of `SIZES`.
  """
  return common.sized(arguments, (1,), paper, small=small, tiny=tiny)


def paper(stage: int) -> ml_collections.ConfigDict:
  """Ours, as nothing of the paper's is known."""
  config = common.recipe("waveae", stage)
  config.crop_size = 128
  config.batch_size = 16
  config.num_train_steps = 3_500
  config.optimizer.learning_rate = 1e-4
  return config


def small(config: ml_collections.ConfigDict) -> None:
  """For two CPU cores and the Harvard pairs, with nearly the loss of DM-FNet's `small-v2`."""
  config.network.growth = 8
  common.reader_loss(config)
  # This network follows edges and texture more than DM-FNet's head does.
  config.loss.update(gradient_gain=2.2, gradient_floor=0.04)
  config.batch_size = 2
  config.num_train_steps = 3_500
  config.log_every_steps = 25
  config.eval_every_steps = config.sample_every_steps = 500
  config.checkpoint_every_steps = 500
  config.optimizer.update(learning_rate=2e-3, decay="cosine", warmup_steps=100, clip_norm=1.0)
  config.ema_decay = 0.998


def tiny(config: ml_collections.ConfigDict) -> None:
  """A minute."""
  config.dataset = "mni_pairs"
  config.network.growth = 4
  config.crop_size = 64
  config.batch_size = 2
  config.num_train_steps = 300
  config.log_every_steps = 20
  config.eval_every_steps = config.sample_every_steps = config.num_train_steps
  config.checkpoint_every_steps = config.num_train_steps // 2
  config.optimizer.update(learning_rate=2e-3, decay="cosine", warmup_steps=10, clip_norm=1.0)
