"""Ablation of `small_stage2`: features at one noise step (5) instead of three: a third of the cost.

    dmfnet train --config configs/ablations/one_timestep_stage2.py --workdir runs/one_timestep \
        --config.stage1=runs/small_stage1 --config.data_dir=DATA
"""

import ml_collections

from dmfnet_jax.configs import small_stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = small_stage2.get_config()
  config.features.timesteps = (5,)
  return config
