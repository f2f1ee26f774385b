"""Stage I at the paper's size: the UNet learns to denoise.

    dmfnet train --config configs/stage1.py --workdir runs/stage1 --config.data_dir=DATA

The paper's recipe: one pair a step (two images), 630,000 steps, crops of 160, AdamW at 1e-5,
cosine schedule. 20,670,081 parameters; a step is about 0.9 TFLOP. One difference: t is drawn for
each image instead of once for the batch, which lowers the gradient's variance.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = ml_collections.ConfigDict()
  config.stage = 1  # the UNet

  # Data.
  config.dataset = "harvard_mmif"  # a builder's name: mni_pairs, harvard_mmif, paired_folder
  config.data_dir = "data"  # where `dmfnet data prepare` wrote it; gs:// too
  config.crop_size = 160  # training crops, pixels; a multiple of 16
  config.num_workers = 0  # reading processes; 0: threads of the main process

  # The run.
  config.seed = 0  # of the parameters, the data's order and cuts, noise and dropout
  config.batch_size = 1  # pairs a step, over all devices
  config.num_train_steps = 630_000  # the whole length, resumed or not
  config.compute_dtype = "float32"  # or "bfloat16"; parameters, norms and losses stay float32
  config.remat = False  # recompute activations in the backward pass: less memory, more time
  config.on_nonfinite = "stop"  # or "skip" the step; either way nonfinite.jsonl has its examples
  config.may_change = ()  # names of fields that a resumed run may have other than its checkpoint
  config.profile_steps = 0  # steps to profile, from the third on; 0: none
  config.log_every_steps = 100  # a line of means in metrics.jsonl
  config.eval_every_steps = 5_000  # validation loss; also at every checkpoint
  config.sample_every_steps = 5_000  # pictures in workdir/samples; 0: at the last step only
  config.checkpoint_every_steps = 5_000  # the best by validation loss is kept; 0: the last only
  config.keep_checkpoints = 3  # the newest ones; the best is kept besides
  config.eval_batch_size = 8  # pairs over all devices; rounded up to a multiple of them

  # The model.
  config.unet = ml_collections.ConfigDict()
  config.unet.width = 128  # channels of the finest level
  config.unet.multipliers = (1, 1, 1, 1, 2)  # each level's width over `width`, fine to coarse
  config.unet.num_res_blocks = 2  # a level on the way down; one more on the way up
  config.unet.norm_groups = 32  # of every normalisation; must divide every level's width
  config.unet.dropout = 0.2  # share of activations dropped in every block
  config.unet.attention_levels = ()  # levels that attend besides the middle; 0 is the finest

  # Diffusion.
  config.schedule = ml_collections.ConfigDict()
  config.schedule.name = "cosine"  # or linear, quad, const, jsd, warmup10, warmup50
  config.schedule.num_timesteps = 2000  # T
  config.schedule.start = 1e-6  # first and last beta, where the schedule has them
  config.schedule.end = 1e-2  # see start
  config.timestep_range = (1, 2000)  # t is uniform in it, ends included

  # The optimizer.
  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = "adamw"  # or "adam"
  config.optimizer.learning_rate = 1e-5  # the highest, after the warm-up
  config.optimizer.weight_decay = 0.01  # adamw only
  config.optimizer.warmup_steps = 0  # linear, from zero
  config.optimizer.decay = "constant"  # or "cosine", to zero at the last step
  config.optimizer.clip_norm = 0.0  # global norm; 0: no clipping
  config.ema_decay = 0.0  # moving average of the parameters; 0: none

  return config.lock()
