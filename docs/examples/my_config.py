"""The recipe of `my_method.py`: a few minutes on two CPU cores."""

from dmfnet_jax.configs import common


def get_config():
  """The trunk's defaults and the method's, with what this recipe changes."""
  config = common.recipe("my_method:METHOD", stage=1)
  config.dataset = "mni_pairs"
  config.crop_size = 64
  config.batch_size = 4
  config.num_train_steps = 400
  config.eval_every_steps = config.sample_every_steps = config.checkpoint_every_steps = 200
  config.optimizer.update(learning_rate=1e-3, warmup_steps=20, decay="cosine")
  return config
