"""DM-FNet: Stage 1 trains the UNet to denoise, Stage 2 the fusion head on its frozen features.

    dmfnet data prepare harvard_mmif --data-dir data --manual-dir ATLAS_FOLDER
    dmfnet train --config configs/dmfnet.py:stage=1,size=small --workdir runs/small_stage1
    dmfnet train --config configs/dmfnet.py:stage=2,size=small --workdir runs/small_stage2 \
        --config.start=runs/small_stage1

Sizes:
- paper: 20,670,081 parameters in Stage 1 (630,000 steps of one pair, about 0.9 TFLOP each), 3,026,640
  in Stage 2 (300 epochs). One difference from the paper: t is drawn for each image instead of once
  for the batch, which lowers the gradient's variance.
- small: the released model `small`, a quarter of the width, made for two CPU cores; 1.3 and 0.19
  million parameters. `dmfnet_jax/weights/small.md` says what a run took and gave.
- small-fast: Stage 2 of the released `small-fast`, with one noise step instead of three.
- small-v2: Stage 2 of the released `small-v2`: one noise step, and a loss that keeps bone solid.
- fast: the released `fast`: as small-v2 and half as wide, both stages.
- infrared: Stage 2 of the released `infrared`, for infrared and visible pairs.
- tiny: about a minute per stage on two cores and the simulated pairs (`dmfnet data prepare mni_pairs`):
  to try the program, not to fuse well.
"""

import ml_collections

from dmfnet_jax.configs import common

SIZES = ("paper", "small", "small-fast", "small-v2", "fast", "infrared", "tiny")


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
  """Returns the locked config.

  Args:
    arguments: "stage=1" or "stage=2", and "size=" with one of `SIZES`.
  """
  chosen = common.parse_arguments(arguments, stage=(1, 2), size=SIZES)
  config = paper(chosen.stage)
  if chosen.size.startswith("small") or chosen.size in ("fast", "infrared"):
    small(config)
  if chosen.size in ("small-fast", "small-v2", "fast", "infrared") and config.stage == 2:
    config.features.timesteps = (5,)
  if chosen.size in ("small-v2", "fast") and config.stage == 2:
    common.reader_loss(config)  # on `small-fast`
  if chosen.size == "fast" and config.stage == 1:
    config.unet.width = 16
    config.unet.norm_groups = 4  # four channels a group, as in the paper
  if chosen.size == "infrared" and config.stage == 2:
    infrared(config)
  if chosen.size == "tiny":
    tiny(config)
  return config


def paper(stage: int) -> ml_collections.ConfigDict:
  """The paper's recipe."""
  config = common.recipe("dmfnet", stage)
  if stage == 1:
    config.num_train_steps = 630_000
    config.optimizer.update(name="adamw", learning_rate=1e-5, weight_decay=0.01)
  else:
    config.num_train_steps = 300 * 662  # 300 epochs of the Harvard split
    config.eval_batch_size = 4
  return config


def small(config: ml_collections.ConfigDict) -> None:
  """The released models' recipe: what differs from the paper, and why."""
  config.crop_size = 128
  config.batch_size = 2
  config.log_every_steps = 25
  config.eval_every_steps = config.sample_every_steps = 500
  config.optimizer.update(warmup_steps=100, decay="cosine", clip_norm=1.0)
  config.ema_decay = 0.998
  if config.stage == 1:
    config.unet.width = 32  # a sixteenth of the arithmetic
    config.unet.norm_groups = 8  # four channels a group, as in the paper
    config.unet.dropout = (
      0.0  # so small a network underfits; its random bits cost a third of a step
    )
    config.timestep_range = (1, 200)  # fusion looks at slight noise only: sigma up to 0.17, not 1
    config.num_train_steps = 1_500
    config.checkpoint_every_steps = 250
    config.optimizer.learning_rate = 1e-3  # the paper's 1e-5 is for 630,000 steps
  else:
    config.fusion_head.output = "blend"  # the paper's tanh has to learn to copy the sources first
    config.loss.overlap = 0.1  # with the paper's 0 bright tracer hides the MRI: SCD falls
    config.num_train_steps = 3_500
    config.checkpoint_every_steps = 500
    config.optimizer.learning_rate = 2e-3  # the paper's 1e-4 is for 198,600 steps


def infrared(config: ml_collections.ConfigDict) -> None:
  """Stage 2 of `infrared`, on `small-fast`."""
  config.dataset = "infrared_visible"
  # Of the sky one source has the black and the other the white: the maximum alone keeps one source.
  config.loss.update(mean_share=0.5, overlap=0.0)
  config.loss.update(gradient_gain=0.65, gradient_floor=0.12)  # the contrast below does the rest
  config.loss.invention_weight = 1.0
  config.fusion.contrast = 1.8
  config.num_train_steps = 2_000


def tiny(config: ml_collections.ConfigDict) -> None:
  """A minute per stage."""
  config.dataset = "mni_pairs"
  config.crop_size = 64
  config.optimizer.update(warmup_steps=10, decay="cosine", clip_norm=1.0)
  if config.stage == 1:
    config.unet.width = 16
    config.unet.norm_groups = 8
    config.unet.dropout = 0.0  # its random bits would double the compile time of so short a run
    config.timestep_range = (1, 400)  # fusion looks at slight noise only
    config.batch_size = 4
    config.num_train_steps = 160
    config.log_every_steps = 20
    config.optimizer.learning_rate = 1e-3
  else:
    config.batch_size = 2
    config.num_train_steps = 400
    config.log_every_steps = 40
    config.optimizer.learning_rate = 2e-3
  config.eval_every_steps = config.sample_every_steps = config.num_train_steps
  config.checkpoint_every_steps = config.num_train_steps // 2
