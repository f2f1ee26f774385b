"""Stage II in about a minute on two CPU cores, on a UNet of `tiny_stage1`.

    dmfnet train --config configs/tiny_stage2.py --workdir runs/tiny_stage2 \
        --config.stage1=runs/tiny_stage1
"""

import ml_collections

from dmfnet_jax.configs import stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = stage2.get_config()
  config.dataset = "mni_pairs"
  config.crop_size = 64
  config.batch_size = 2
  config.num_train_steps = 400
  config.log_every_steps = 40
  config.eval_every_steps = 400
  config.sample_every_steps = 400
  config.checkpoint_every_steps = 200
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 10
  config.optimizer.decay = "cosine"
  config.optimizer.clip_norm = 1.0
  return config
