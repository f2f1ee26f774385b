"""Ablation of `small_stage2`: the paper's intensity target, the maximum of the sources.

    dmfnet train --config configs/ablations/no_overlap_stage2.py --workdir runs/no_overlap \
        --config.stage1=runs/small_stage1 --config.data_dir=DATA
"""

import ml_collections

from dmfnet_jax.configs import small_stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = small_stage2.get_config()
  config.loss.overlap = 0.0
  return config
