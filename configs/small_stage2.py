"""Stage II of the released model `small`, on the UNet of `small_stage1`.

    dmfnet train --config configs/small_stage2.py --workdir runs/small_stage2 \
        --config.stage1=runs/small_stage1

0.19 million parameters. `dmfnet_jax/weights/small.md` says what a run took and gave.
"""

import ml_collections

from dmfnet_jax.configs import stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = stage2.get_config()
  config.fusion_head.output = "blend"  # the paper's tanh has to learn to copy the sources first
  config.loss.overlap = 0.1  # with the paper's 0 bright tracer hides the MRI: SCD falls
  config.crop_size = 128
  config.batch_size = 2
  config.num_train_steps = 3_500
  config.log_every_steps = 25
  config.eval_every_steps = 500
  config.sample_every_steps = 500
  config.checkpoint_every_steps = 500
  config.optimizer.learning_rate = 2e-3  # the paper's 1e-4 is for 198,600 steps
  config.optimizer.warmup_steps = 100
  config.optimizer.decay = "cosine"
  config.optimizer.clip_norm = 1.0
  config.ema_decay = 0.998
  return config
