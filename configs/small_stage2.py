"""Stage II at half width, on a UNet of `small_stage1`.

    dmfnet train --config configs/small_stage2.py --workdir runs/small_stage2 \
        --config.stage1=runs/small_stage1 --config.data_dir=DATA

0.76 million parameters. Batches of 8 at a higher, decaying rate instead of the paper's one pair.
"""

import ml_collections

from dmfnet_jax.configs import stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = stage2.get_config()
  config.batch_size = 8
  config.num_train_steps = 25_000
  config.optimizer.learning_rate = 5e-4  # the paper's 1e-4 is for batches of one
  config.optimizer.warmup_steps = 200
  config.optimizer.decay = "cosine"
  config.optimizer.clip_norm = 1.0
  return config
