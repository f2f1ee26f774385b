"""DM-FNet's `small` with one part changed: `configs/ablations.py:NAME`.

    dmfnet train --config configs/ablations.py:no_noise --workdir runs/no_noise \
        --config.start=runs/small_stage1 --config.data_dir=DATA

`tests/benchmarks/ablations.py` trains all of them for the same few steps and prints one table.
"""

import ml_collections

from dmfnet_jax.configs import dmfnet

# Name -> fields of Stage 2 that are other than in `small`.
STAGE2 = {
  "encoder_features": {"features.source": "encoder"},  # each level's last block, not the decoder's
  "no_gradient_loss": {"loss.gradient_weight": 0.0},
  "no_intensity_loss": {"loss.intensity_weight": 0.0},
  "no_structure_loss": {"loss.ssim_weight": 0.0},
  "no_multi_scale": {"fusion_head.multi_scale_reach": 0},  # the finest level alone makes the image
  "no_noise": {"features.noise": False},  # features of clean images, in training and in fusing
  "no_overlap": {"loss.overlap": 0.0},  # the paper's intensity target, the sources' maximum
  "no_triple_attention": {"fusion_head.attention": "mean"},  # equal weights of both sources
  "one_timestep": {"features.timesteps": (5,)},
  "tanh_output": {"fusion_head.output": "tanh"},  # the paper's output, made of features alone
}
# A UNet of random weights to begin Stage 2 from: the first step of the warm-up has the rate zero.
STAGE1 = {"untrained": {"num_train_steps": 1}}


def get_config(name: str) -> ml_collections.ConfigDict:
  """Returns the locked config of an ablation.

  Raises:
    ValueError: there is none of that name; the message lists those that there are.
  """
  if name not in STAGE1 | STAGE2:
    raise ValueError(f"no ablation {name!r}; there are {', '.join(STAGE1 | STAGE2)}")
  config = dmfnet.get_config(f"stage={1 if name in STAGE1 else 2},size=small")
  config.update_from_flattened_dict((STAGE1 | STAGE2)[name])
  return config
