"""TFS-Diff: three sources of low resolution to one fused picture of a higher one.

    dmfnet data prepare mni_triples --data-dir data
    dmfnet train --config configs/tfsdiff.py:size=small --workdir runs/tfsdiff
    dmfnet fuse t1.png ct.png pet.png -o fused.png --model runs/tfsdiff

Sizes:
- paper: 128 to 256 pixels, 97,811,034 parameters, a million steps.
- paper-16-128: 16 to 128 pixels, as many.
- paper-16-256: 16 to 256 pixels, 155,337,882 parameters. The published run goes on from 130,000 steps
  of another one at a lower rate; here it begins anew at that rate, unless the workdir has that run.
- small: doubles the sides, 1,595,298 parameters; for two CPU cores and the simulated triples, half
  an hour. It samples in 100 steps.
- tiny: a minute or two on two cores: to try the program, not to fuse well.

The published sets are folders of pictures that were made small and enlarged before; for those take
`--config.dataset=triples_folder --config.enlargement.sharp_sources=False`.
"""

import ml_collections

from dmfnet_jax.configs import common

SIZES = ("paper", "paper-16-128", "paper-16-256", "small", "tiny")


def get_config(arguments: str | None = None) -> ml_collections.ConfigDict:
  """Returns the locked config.

  Args:
    arguments: "stage=1", and "size=" with one of `SIZES`.
  """
  sizes = {"paper-16-128": from_16_to_128, "paper-16-256": from_16_to_256}
  return common.sized(arguments, (1,), paper, **sizes, small=small, tiny=tiny)


def paper(stage: int) -> ml_collections.ConfigDict:
  """The published recipe, 128 to 256 pixels."""
  config = common.recipe("tfsdiff", stage)
  config.dataset = "triples_folder"
  config.crop_size = 256
  config.batch_size = 16
  config.num_train_steps = 1_000_000
  config.eval_every_steps = config.checkpoint_every_steps = 10_000
  config.sample_every_steps = 10_000
  config.optimizer.learning_rate = 1e-4
  return config


def from_16_to_128(config: ml_collections.ConfigDict) -> None:
  """16 to 128 pixels."""
  config.crop_size = 128
  config.batch_size = 30
  config.unet.attention_levels = (3,)  # where 16 pixels are left of 128
  config.enlargement.factor = 8


def from_16_to_256(config: ml_collections.ConfigDict) -> None:
  """16 to 256 pixels: a wider network without dropout, and without attention but in the middle."""
  config.batch_size = 24
  config.optimizer.learning_rate = 3e-6
  config.unet.update(
    multipliers=(1, 2, 4, 8, 16), num_res_blocks=1, dropout=0.0, attention_levels=()
  )
  config.enlargement.factor = 16


def small(config: ml_collections.ConfigDict) -> None:
  """For two CPU cores and the simulated triples."""
  config.dataset = "mni_triples"
  config.crop_size = 64
  config.batch_size = 4
  config.num_train_steps = 10_000
  config.log_every_steps = 50
  config.eval_every_steps = config.sample_every_steps = config.checkpoint_every_steps = 1_000
  config.optimizer.update(decay="cosine", warmup_steps=100, learning_rate=1e-3, clip_norm=1.0)
  config.ema_decay = 0.995
  config.unet.update(
    width=24,
    multipliers=(1, 2, 2, 4),
    num_res_blocks=1,
    norm_groups=8,
    dropout=0.0,
    attention_levels=(),
  )
  # Fresh noise at every step corrects what a short training leaves wrong: DDIM keeps it.
  config.sampling.update(steps=100, eta=1.0)


def tiny(config: ml_collections.ConfigDict) -> None:
  """A minute or two."""
  small(config)
  config.crop_size = 32
  config.num_train_steps = 1_000
  config.log_every_steps = 50
  config.eval_every_steps = config.sample_every_steps = config.checkpoint_every_steps = 1_000
  config.optimizer.update(learning_rate=2e-3, warmup_steps=20)
  config.ema_decay = 0.98
  config.unet.update(width=16, multipliers=(1, 1, 1, 2))
  config.sampling.steps = 20
