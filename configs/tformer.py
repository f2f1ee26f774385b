"""TFormer (Computers in Biology and Medicine 157, 2023): judges skin lesions. For research only.

    dmfnet convert tformer backbone=swin_tiny_patch4_window7_224.pth -o swin.safetensors
    dmfnet data prepare derm7pt --data-dir data --manual-dir release_v0
    dmfnet train --config configs/tformer.py --config.start=swin.safetensors --workdir runs/lesions

The published program looks at all facts, also at those that tell the diagnosis:
`--config.facts.leaking=True`. One size is smaller:

    dmfnet data prepare made_lesions --data-dir data
    dmfnet train --config configs/tformer.py:size=tiny --workdir runs/made

"tiny" is for two CPU cores and the made-up lesions, a minute; "small" for a graphics card and
Derm7pt without a backbone to begin with.
"""

import ml_collections

from dmfnet_jax.configs import common

SIZES = ("paper", "small", "tiny")
_EPOCHS, _EXAMPLES = 100, 413  # of Derm7pt's list of training examples


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
  """Returns the locked config.

  Args:
    arguments: "size=" with one of `SIZES`; "stage=1" is the only stage.
  """
  return common.sized(arguments, (1,), paper, small=small, tiny=tiny)


def paper(stage: int) -> ml_collections.ConfigDict:
  """The published recipe, but for the facts: Adam with a cosine to zero over 100 epochs."""
  config = common.recipe("tformer", stage)
  config.dataset = "derm7pt"
  config.crop_size = 224
  config.flip = False  # the method flips by its own rule
  config.batch_size = 32
  steps_per_epoch = -(-_EXAMPLES // config.batch_size)
  config.num_train_steps = _EPOCHS * steps_per_epoch
  config.log_every_steps = steps_per_epoch
  config.eval_every_steps = config.checkpoint_every_steps = steps_per_epoch
  config.sample_every_steps = 0
  config.optimizer.update(learning_rate=1e-4, decay="cosine")
  return config


def small(config: ml_collections.ConfigDict) -> None:
  """A narrower network on pictures of 128 x 128."""
  config.network.update(width=48, window=4, depths=(2, 2, 2, 2), features=64)
  config.crop_size = 128


def tiny(config: ml_collections.ConfigDict) -> None:
  """For the made-up lesions, 64 x 64."""
  config.dataset = "made_lesions"
  config.network.update(
    width=12,
    window=2,
    depths=(1, 2, 1, 1),
    heads=(1, 2, 2, 2),
    fusion_heads=(2, 2, 2, 2),
    drop_path=0.0,
    features=32,
  )
  config.augment.chance = 0.0
  config.crop_size = 64
  config.batch_size = 16
  config.num_train_steps = 600
  config.log_every_steps = 20
  config.eval_every_steps = config.checkpoint_every_steps = 200
  config.optimizer.learning_rate = 3e-4  # at 1e-3 it learns nothing from the pictures
