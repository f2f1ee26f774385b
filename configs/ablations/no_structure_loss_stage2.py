"""Ablation of `small_stage2`: the loss without its structure term.

    dmfnet train --config configs/ablations/no_structure_loss_stage2.py --workdir runs/no_structure_loss \
        --config.stage1=runs/small_stage1 --config.data_dir=DATA
"""

import ml_collections

from dmfnet_jax.configs import small_stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = small_stage2.get_config()
  config.loss.ssim_weight = 0.0
  return config
