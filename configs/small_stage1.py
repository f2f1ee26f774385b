"""Stage I of the released model `small`: a quarter of the paper's width.

    dmfnet data prepare harvard_mmif --data-dir data --manual-dir ATLAS_FOLDER
    dmfnet train --config configs/small_stage1.py --workdir runs/small_stage1

1.3 million parameters. Made for two CPU cores; `dmfnet_jax/weights/small.md` says what a run took
and gave. What differs from the paper, and why, stands beside each field.
"""

import ml_collections

from dmfnet_jax.configs import stage1


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = stage1.get_config()
  config.unet.width = 32  # a sixteenth of the arithmetic: under a second a pair on two cores
  config.unet.norm_groups = 8  # four channels a group, as in the paper
  config.unet.dropout = 0.0  # so small a network underfits; its random bits cost a third of a step
  config.timestep_range = (1, 200)  # fusion looks at slight noise only: sigma up to 0.17, not 1
  config.crop_size = 128
  config.batch_size = 2
  config.num_train_steps = 1_500
  config.log_every_steps = 25
  config.eval_every_steps = 500
  config.sample_every_steps = 500
  config.checkpoint_every_steps = 250
  config.optimizer.learning_rate = 1e-3  # the paper's 1e-5 is for 630,000 steps
  config.optimizer.warmup_steps = 100
  config.optimizer.decay = "cosine"
  config.optimizer.clip_norm = 1.0
  config.ema_decay = 0.998
  return config
