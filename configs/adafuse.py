"""AdaFuse: one stage, encoders, fusion and decoder together.

    dmfnet data prepare harvard_mmif --data-dir data --manual-dir ATLAS_FOLDER
    dmfnet train --config configs/adafuse.py:stage=1,size=small --workdir runs/adafuse

AdaFuse's training is not published. The loss and the recipe are those of its authors' successor,
ASFE-Fusion, on the same data.

Sizes:
- paper: 519,601,641 parameters, batches of four, 2,000 epochs. An epoch is counted as that of the 578
  training pairs, 144 steps. With Adam's moments 6.2 GB, and the activations on top.
- small: a quarter of the widths, tokens of 64 and one block each, for the Harvard pairs on two CPU cores;
  under an hour.
- tiny: about a minute on two cores and the simulated pairs (`dmfnet data prepare mni_pairs`): to try the
  program, not to fuse well.

`small` and `tiny` train on SSIM, too, which in the published program only adds a number to the loss.
"""

import ml_collections

from dmfnet_jax.configs import common

SIZES = ("paper", "small", "tiny")
_STEPS_PER_EPOCH = 144


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
  """Returns the locked config.

  Args:
    arguments: "stage=1", and "size=" with one of `SIZES`.
  """
  return common.sized(arguments, (1,), paper, small=small, tiny=tiny)


def paper(stage: int) -> ml_collections.ConfigDict:
  """The published networks and the successor's recipe, but for an optimizer that keeps its moments.

  The successor's program makes the optimizer anew at every step, which is `optimizer.b1=0
  optimizer.b2=0`: each step goes by the gradient's sign.
  """
  config = common.recipe("adafuse", stage)
  config.crop_size = 256
  config.batch_size = 4
  config.num_train_steps = 2_000 * _STEPS_PER_EPOCH
  config.optimizer.update(name="adamw", learning_rate=2e-4, weight_decay=0.01)
  return config


def small(config: ml_collections.ConfigDict) -> None:
  """For two CPU cores and the Harvard pairs."""
  config.network.update(stem=16, widths=(28, 40, 52, 64), head=8, dim=64, heads=4, depth=1)
  config.loss.ssim_gradient = True
  config.crop_size = 128
  config.num_train_steps = 2_500
  config.log_every_steps = 25
  config.eval_every_steps = config.sample_every_steps = 500
  config.checkpoint_every_steps = 250
  config.optimizer.update(learning_rate=1e-3, decay="cosine", warmup_steps=50, clip_norm=1.0)
  config.ema_decay = 0.998


def tiny(config: ml_collections.ConfigDict) -> None:
  """A minute."""
  config.dataset = "mni_pairs"
  # Two levels of four: compiling is most of it.
  config.network.update(stem=8, widths=(12, 24), head=8, dim=32, heads=2, patch=8, depth=1)
  config.loss.ssim_gradient = True
  config.crop_size = 64
  config.num_train_steps = 200
  config.log_every_steps = 20
  config.eval_every_steps = config.sample_every_steps = config.num_train_steps
  config.checkpoint_every_steps = config.num_train_steps // 2
  config.optimizer.update(learning_rate=2e-3, decay="cosine", warmup_steps=10, clip_norm=1.0)
