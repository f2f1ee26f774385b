"""Ablation of `small_stage2`: the finest level alone makes the image.

    dmfnet train --config configs/ablations/no_multi_scale_stage2.py --workdir runs/no_multi_scale \
        --config.stage1=runs/small_stage1 --config.data_dir=DATA
"""

import ml_collections

from dmfnet_jax.configs import small_stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = small_stage2.get_config()
  config.fusion_head.multi_scale_reach = 0
  return config
