"""Stage I at half width: `stage1` in a quarter of the arithmetic, for one accelerator.

    dmfnet train --config configs/small_stage1.py --workdir runs/small_stage1 \
        --config.data_dir=DATA

5.2 million parameters. Differs from the paper where a shorter run needs it: batches of 8 at a
higher, warmed-up and decaying rate, with clipping and a moving average.
"""

import ml_collections

from dmfnet_jax.configs import stage1


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = stage1.get_config()
  config.unet.width = 64
  config.batch_size = 8
  config.num_train_steps = 50_000
  config.optimizer.learning_rate = 2e-4  # the paper's 1e-5 is for one pair and 630,000 steps
  config.optimizer.warmup_steps = 500
  config.optimizer.decay = "cosine"
  config.optimizer.clip_norm = 1.0
  config.ema_decay = 0.999
  return config
