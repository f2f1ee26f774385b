"""CoCoNet: Stage 1 learns from the sources, Stage 2 goes on with a contrastive loss.

    dmfnet data prepare harvard_mmif --data-dir data --manual-dir ATLAS_FOLDER
    dmfnet train --config configs/coconet.py:stage=1,size=small --workdir runs/coconet1
    dmfnet train --config configs/coconet.py:stage=2,size=small --workdir runs/coconet2 \
        --config.start=runs/coconet1

Both stages look at pictures through VGG-19. To train with its ImageNet weights as published, in the
size `paper` (the only one that is as wide), convert torchvision's file and name it in both stages:

    dmfnet convert coconet vgg=vgg19-dcbb9e9d.pth -o vgg19.safetensors

Without `--config.vgg_file=vgg19.safetensors` VGG's weights are random and orthogonal, which the log
says.

Sizes:
- paper: 6,789,764 parameters to train, 30 and 2 epochs of 333 steps. The published training set is
  not public: its size, 10,000 patches of 128, is a guess.
- small: half the width, for the Harvard pairs on two CPU cores; under an hour per stage.
- tiny: about a minute per stage on two cores and the simulated pairs (`dmfnet data prepare mni_pairs`):
  to try the program, not to fuse well.
"""

import ml_collections

from dmfnet_jax.configs import common

SIZES = ("paper", "small", "tiny")
_STEPS_PER_EPOCH = 333


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
  """Returns the locked config.

  Args:
    arguments: "stage=1" or "stage=2", and "size=" with one of `SIZES`.
  """
  return common.sized(arguments, (1, 2), paper, small=small, tiny=tiny)


def paper(stage: int) -> ml_collections.ConfigDict:
  """The published recipe: Adam at a constant rate, 30 pairs a step of which Stage 2 fuses 10."""
  config = common.recipe("coconet", stage)
  config.crop_size = 128
  config.batch_size = 30 if stage == 1 else 10
  config.num_train_steps = (30 if stage == 1 else 2) * _STEPS_PER_EPOCH
  config.optimizer.learning_rate = 1e-4
  config.eval_every_steps = config.sample_every_steps = _STEPS_PER_EPOCH
  config.checkpoint_every_steps = _STEPS_PER_EPOCH
  return config


def small(config: ml_collections.ConfigDict) -> None:
  """For two CPU cores and the Harvard pairs."""
  config.network.width = 16
  config.fusion.statistics = "running"  # of less loss in validation, where each picture is alone
  config.crop_size = 96
  config.batch_size = 4
  config.num_train_steps = 2_000 if config.stage == 1 else 300
  config.log_every_steps = 25
  config.eval_every_steps = config.sample_every_steps = config.num_train_steps // 4
  config.checkpoint_every_steps = config.num_train_steps // 4
  config.optimizer.update(decay="cosine", warmup_steps=20)
  config.optimizer.learning_rate = 1e-3 if config.stage == 1 else 1e-4


def tiny(config: ml_collections.ConfigDict) -> None:
  """A minute per stage."""
  config.dataset = "mni_pairs"
  config.network.width = 8
  config.fusion.statistics = "running"
  config.crop_size = 64
  config.batch_size = 3
  config.num_train_steps = 200 if config.stage == 1 else 100
  config.log_every_steps = 20
  config.eval_every_steps = config.sample_every_steps = config.num_train_steps
  config.checkpoint_every_steps = config.num_train_steps // 2
  config.optimizer.update(decay="cosine", warmup_steps=10)
  config.optimizer.learning_rate = 1e-3 if config.stage == 1 else 5e-4
