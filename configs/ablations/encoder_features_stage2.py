"""Ablation of `small_stage2`: the encoder's last block of each level instead of the decoder's first.

    dmfnet train --config configs/ablations/encoder_features_stage2.py --workdir runs/encoder_features \
        --config.stage1=runs/small_stage1 --config.data_dir=DATA
"""

import ml_collections

from dmfnet_jax.configs import small_stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = small_stage2.get_config()
  config.features.source = "encoder"
  return config
