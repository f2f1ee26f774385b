"""Stage II at the paper's size: the fusion head learns on the frozen UNet of Stage I.

    dmfnet train --config configs/stage2.py --workdir runs/stage2 \
        --config.stage1=runs/stage1 --config.data_dir=DATA

The paper's recipe: one pair a step, 300 epochs, crops of 160 with flips, Adam at 1e-4. 3,026,640
parameters. An epoch of the Harvard split is 662 pairs.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config."""
  config = ml_collections.ConfigDict()
  config.stage = 2  # the fusion head
  config.stage1 = ""  # the UNet: a Stage I workdir, a model file or a released name

  # Data.
  config.dataset = "harvard_mmif"  # a builder's name: mni_pairs, harvard_mmif, paired_folder
  config.data_dir = "data"  # where `dmfnet data prepare` wrote it; gs:// too
  config.crop_size = 160  # training crops, pixels; a multiple of 16
  config.num_workers = 0  # reading processes; 0: threads of the main process

  # The run.
  config.seed = 0  # of the parameters, the data's order and cuts, noise and dropout
  config.batch_size = 1  # pairs a step, over all devices
  config.num_train_steps = 300 * 662  # 300 epochs of the Harvard split
  config.compute_dtype = "float32"  # or "bfloat16"; parameters, norms and losses stay float32
  config.on_nonfinite = "stop"  # or "skip" the step; either way nonfinite.jsonl has its examples
  config.may_change = ()  # names of fields that a resumed run may have other than its checkpoint
  config.profile_steps = 0  # steps to profile, from the third on; 0: none
  config.log_every_steps = 100  # a line of means in metrics.jsonl
  config.eval_every_steps = 5_000  # validation loss; also at every checkpoint
  config.sample_every_steps = 5_000  # pictures in workdir/samples; 0: at the last step only
  config.checkpoint_every_steps = 5_000  # the best by validation loss is kept; 0: the last only
  config.keep_checkpoints = 3  # the newest ones; the best is kept besides
  config.eval_batch_size = 4  # pairs over all devices; rounded up to a multiple of them

  # The model.
  config.fusion_head = ml_collections.ConfigDict()
  config.fusion_head.attention = "triple"  # or "mean"
  config.fusion_head.output = "tanh"  # or "blend": weighs the sources' own pixels, adds a rest
  config.fusion_head.multi_scale_reach = 2  # coarser levels that feed a level: 2, 1 or 0

  # The features.
  config.features = ml_collections.ConfigDict()
  config.features.timesteps = (5, 10, 20)  # ascending
  config.features.source = "decoder"  # or "encoder"
  config.features.noise = True  # False: features of clean images; nothing is drawn
  config.features.schedule = ml_collections.ConfigDict()  # not Stage I's: linear in the paper
  config.features.schedule.name = "linear"  # any that Stage I may have
  config.features.schedule.num_timesteps = 2000  # T
  config.features.schedule.start = 1e-6  # first beta
  config.features.schedule.end = 1e-2  # last beta

  # The loss.
  config.loss = ml_collections.ConfigDict()
  config.loss.intensity_weight = 1.5  # mean |F - max(A, B)|
  config.loss.overlap = 0.0  # share of the darker source that the intensity's target has besides
  config.loss.gradient_weight = 1.0  # mean |grad F - max(grad A, grad B)|
  config.loss.ssim_weight = 0.5  # 1 - structure similarity

  # The optimizer.
  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = "adam"  # or "adamw"
  config.optimizer.learning_rate = 1e-4  # the highest, after the warm-up
  config.optimizer.weight_decay = 0.0  # adamw only
  config.optimizer.warmup_steps = 0  # linear, from zero
  config.optimizer.decay = "constant"  # or "cosine", to zero at the last step
  config.optimizer.clip_norm = 0.0  # global norm; 0: no clipping
  config.ema_decay = 0.0  # moving average of the parameters; 0: none

  return config.lock()
