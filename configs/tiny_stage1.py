"""Stage I in about a minute on two CPU cores: to try the program, not to fuse well.

    dmfnet data prepare mni_pairs --data-dir data
    dmfnet train --config configs/tiny_stage1.py --workdir runs/tiny_stage1

327,633 parameters.
"""

import ml_collections

from dmfnet_jax.configs import stage1


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = stage1.get_config()
  config.dataset = "mni_pairs"
  config.unet.width = 16
  config.unet.norm_groups = 8
  config.unet.dropout = 0.0  # its random bits would double the compile time of so short a run
  config.crop_size = 64
  config.batch_size = 4
  config.num_train_steps = 160
  config.timestep_range = (1, 400)  # fusion looks at slight noise only
  config.log_every_steps = 20
  config.eval_every_steps = 160
  config.sample_every_steps = 160
  config.checkpoint_every_steps = 80
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 10
  config.optimizer.decay = "cosine"
  config.optimizer.clip_norm = 1.0
  return config
