"""The fields of a training config that every method has, each commented once."""

from typing import Any


def run_defaults() -> dict[str, Any]:
  """The trunk's fields with their defaults; old checkpoints take from here what they lack."""
  return {
    # Where a later stage begins: an earlier stage's workdir, a model file or a released name.
    "start": "",
    # Data: a builder's name (mni_pairs, harvard_mmif, infrared_visible, paired_folder), and where
    # `dmfnet data prepare` wrote it; gs:// too. Several as "NAME:WEIGHT,NAME:WEIGHT".
    "dataset": "harvard_mmif",
    "data_dir": "data",
    "crop_size": 160,  # training crops, pixels; a multiple of 16
    "flip": True,  # training crops, along each axis with probability 1/2
    "num_workers": 0,  # reading processes; 0: threads of the main process
    # The run.
    "seed": 0,  # of the parameters, the data's order and cuts, noise and dropout
    "batch_size": 1,  # pairs per step, over all devices
    "num_train_steps": 0,  # the whole length, resumed or not
    "compute_dtype": "float32",  # or "bfloat16"; parameters, norms and losses stay float32
    "remat": False,  # recompute activations in the backward pass: less memory, more time
    "on_nonfinite": "stop",  # or "skip" the step; either way nonfinite.jsonl has its examples
    "may_change": (),  # names of fields that a resumed run may have other than its checkpoint
    "profile_steps": 0,  # steps to profile, from the third on; 0: none
    "log_every_steps": 100,  # a line of means in metrics.jsonl
    "eval_every_steps": 5_000,  # validation loss; also at every checkpoint
    "sample_every_steps": 5_000,  # pictures in workdir/samples; 0: at the last step only
    "checkpoint_every_steps": 5_000,  # the best by validation loss is kept; 0: the last only
    "keep_checkpoints": 3,  # the newest ones; the best is kept besides
    "eval_batch_size": 8,  # pairs over all devices; rounded up to a multiple of them
    "ema_decay": 0.0,  # moving average of the parameters; 0: none
    # Each network has an optimizer of its own.
    "optimizer": optimizer_defaults()
    | {
      "networks": {},  # network -> fields that are other for it: {NAME: {"learning_rate": 1e-5}}
    },
  }


def optimizer_defaults() -> dict[str, Any]:
  """The optimizer of one network."""
  return {
    "name": "adam",  # or "adamw"
    "learning_rate": 1e-4,  # the highest, after the warm-up
    "b1": 0.9,  # decay of the first moment
    "b2": 0.999,  # decay of the second moment
    "weight_decay": 0.0,  # adamw only
    "warmup_steps": 0,  # linear, from zero
    "decay": "constant",  # or "cosine" or "polynomial", to zero at the last step; or "step"
    "decay_every_steps": 0,  # "step": after so many steps, again and again, ...
    "decay_rate": 0.5,  # ... the rate is multiplied by this
    # "polynomial": of what is left of the steps after the first `decay_after_steps` the share, to
    # this power; with `decay_every_steps` the rate changes that often, as by the epoch.
    "decay_power": 1.0,
    "decay_after_steps": 0,
    "clip_norm": 0.0,  # norm of the network's gradient; 0: no clipping
  }
