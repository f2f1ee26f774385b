"""Ablation of `small_stage2`: equal weights of both sources instead of triple attention.

    dmfnet train --config configs/ablations/no_triple_attention_stage2.py --workdir runs/no_triple_attention \
        --config.stage1=runs/small_stage1 --config.data_dir=DATA
"""

import ml_collections

from dmfnet_jax.configs import small_stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = small_stage2.get_config()
  config.fusion_head.attention = "mean"
  return config
