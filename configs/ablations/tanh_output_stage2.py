"""Ablation of `small_stage2`: the paper's output, made of the features alone, instead of a blend of the sources.

    dmfnet train --config configs/ablations/tanh_output_stage2.py --workdir runs/tanh_output \
        --config.stage1=runs/small_stage1 --config.data_dir=DATA
"""

import ml_collections

from dmfnet_jax.configs import small_stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = small_stage2.get_config()
  config.fusion_head.output = "tanh"
  return config
