"""Ablation of `small_stage1`: a UNet of random weights, for `small_stage2` to learn on.

    dmfnet train --config configs/ablations/untrained_stage1.py --workdir runs/untrained_stage1 \
        --config.data_dir=DATA

One step, whose learning rate is zero: the first of the warm-up.
"""

import ml_collections

from dmfnet_jax.configs import small_stage1


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = small_stage1.get_config()
  config.num_train_steps = 1
  return config
