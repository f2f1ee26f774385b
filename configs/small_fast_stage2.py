"""Stage II of the released model `small-fast`: `small` with one noise step instead of three.

    dmfnet train --config configs/small_fast_stage2.py --workdir runs/small_fast_stage2 \
        --config.stage1=runs/small_stage1

0.18 million parameters, a third of the UNet's passes. `dmfnet_jax/weights/small-fast.md` compares
it with `small`.
"""

import ml_collections

from dmfnet_jax.configs import small_stage2


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = small_stage2.get_config()
  config.features.timesteps = (5,)
  return config
