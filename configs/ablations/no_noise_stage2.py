"""Ablation of `small_stage2`: features of clean images, in training and in fusing.

    dmfnet train --config configs/ablations/no_noise_stage2.py --workdir runs/no_noise \
        --config.stage1=runs/small_stage1 --config.data_dir=DATA
"""

import ml_collections

from dmfnet_jax.configs import small_stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = small_stage2.get_config()
  config.features.noise = False
  return config
