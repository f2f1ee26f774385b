"""What each stage trains: its networks, parameters and loss, built from a config."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from dmfnet_jax import models, weights
from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import BETA_SCHEDULES, make_schedule
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.model import load_params
from dmfnet_jax.training import distributed, nonfinite, steps
from dmfnet_jax.training.checkpoint import STAGE1_FILE
from dmfnet_jax.training.state import (
  TrainState,
  create_train_state,
  make_learning_rate,
  make_optimizer,
)

Array = jax.Array


def check_config(config: ml_collections.ConfigDict, devices: int | None = None) -> None:
  """Refuses a config that cannot be trained on these devices.

  Args:
    config: the run's config.
    devices: how many devices; by default those that there are.

  Raises:
    UserError: one line that names the field.
  """
  devices = devices or jax.device_count()
  if config.batch_size < 1 or config.batch_size % devices:
    raise UserError(
      f"config.batch_size={config.batch_size} is global and must be a multiple of the "
      f"{devices} devices"
    )
  _check_choice("compute_dtype", config.compute_dtype, ("float32", "bfloat16"))
  _check_choice("on_nonfinite", config.on_nonfinite, nonfinite.POLICIES)
  for name in ("num_train_steps", "log_every_steps", "eval_batch_size", "keep_checkpoints"):
    if config[name] < 1:
      raise UserError(f"config.{name}={config[name]} must be at least 1")
  if config.stage == 1:
    check_crop(config)
    for multiplier in config.unet.multipliers:
      if config.unet.width * multiplier % config.unet.norm_groups:
        raise UserError(
          f"config.unet.norm_groups={config.unet.norm_groups} must divide the width "
          f"{config.unet.width * multiplier}"
        )
    _check_choice("schedule.name", config.schedule.name, BETA_SCHEDULES)
    if len(config.timestep_range) != 2:
      raise UserError(f"config.timestep_range={config.timestep_range} must be two steps")
    _check_steps("timestep_range", config.timestep_range, config.schedule.num_timesteps)
  else:
    if config.crop_size < 16:  # the rest when Stage I's UNet is known
      raise UserError(f"config.crop_size={config.crop_size} must be a multiple of 16")
    features = config.features
    _check_choice("features.schedule.name", features.schedule.name, BETA_SCHEDULES)
    _check_choice("features.source", features.source, ("decoder", "encoder"))
    _check_steps("features.timesteps", features.timesteps, features.schedule.num_timesteps)
    _check_choice("fusion_head.attention", config.fusion_head.attention, models.ATTENTIONS)
    _check_choice("fusion_head.output", config.fusion_head.output, models.OUTPUTS)
    _check_choice("fusion_head.multi_scale_reach", config.fusion_head.multi_scale_reach, (0, 1, 2))


def check_crop(config: ml_collections.ConfigDict) -> None:
  """Refuses a crop that the UNet cannot halve as often as it has to.

  Args:
    config: the run's config, with its `unet`.

  Raises:
    UserError: one line with the stride.
  """
  stride = max(16, 2 ** (len(config.unet.multipliers) - 1))  # evaluation cuts to 16
  if config.crop_size < stride or config.crop_size % stride:
    raise UserError(f"config.crop_size={config.crop_size} must be a multiple of {stride}")


def _check_choice(field: str, value: Any, known: Iterable[Any]) -> None:
  if value not in known:
    names = ", ".join(repr(name) for name in known)
    raise UserError(f"config.{field} is one of {names}, not {value!r}")


def _check_steps(field: str, steps: Sequence[int], last: int) -> None:
  # JAX would clamp an index that is out of range, and train on other noise than was asked for.
  if not steps or list(steps) != sorted(steps) or steps[0] < 1 or steps[-1] > last:
    raise UserError(f"config.{field}={tuple(steps)} must be ascending steps in 1..{last}")


def load_stage1(
  config: ml_collections.ConfigDict, workdir: epath.Path
) -> tuple[ml_collections.ConfigDict, Any]:
  """Finds Stage II's UNet, and keeps a copy of it in the workdir.

  Args:
    config: a Stage II config; its `stage1` names a workdir, a model file or a released model.
    workdir: Stage II's workdir; its own copy wins, so that a resumed run has the same UNet.

  Returns:
    The config with the UNet's section added, and the UNet's parameters.

  Raises:
    UserError: `stage1` names nothing that holds a UNet.
  """
  copy = workdir / STAGE1_FILE
  if distributed.agree(copy.exists()):
    params, stage1_config = weights.read_weights(copy)
  else:
    if not config.stage1:
      raise UserError("config.stage1 is empty: name a Stage I workdir or a model file")
    params, stage1_config = load_params(config.stage1)
    if "unet" not in params:
      raise UserError(f"config.stage1={config.stage1} has no UNet: name a model of Stage I")
    if jax.process_index() == 0:
      weights.save_weights(copy, {"unet": params["unet"]}, {"unet": stage1_config["unet"]})
  return with_unet(config, stage1_config["unet"]), params["unet"]


def with_unet(
  config: ml_collections.ConfigDict, unet: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Returns a Stage II config with the section of Stage I's UNet added, locked.

  Raises:
    UserError: the config's crop does not fit that UNet.
  """
  config = ml_collections.ConfigDict(config)  # a copy, not locked
  with config.unlocked():
    config.unet = ml_collections.ConfigDict(unet)
  check_crop(config)
  return config.lock()


def make_networks(
  config: ml_collections.ConfigDict,
) -> tuple[models.UNet, models.FusionHead | None]:
  """Builds the networks of a config's stage."""
  # Stage II's frozen UNet has no backward pass for which anything could be recomputed.
  remat = config.stage == 1 and config.remat
  unet = models.build_unet(config.unet.to_dict(), config.compute_dtype, remat)
  if config.stage == 1:
    return unet, None
  head = models.build_fusion_head(
    config.fusion_head.to_dict(),
    config.unet.to_dict(),
    len(config.features.timesteps),
    config.compute_dtype,
  )
  return unet, head


def make_loss(config: ml_collections.ConfigDict) -> steps.LossFn:
  """Builds the loss of a config's stage."""
  unet, head = make_networks(config)
  if head is None:
    return steps.make_stage1_loss(
      unet, make_schedule(**config.schedule), tuple(config.timestep_range)
    )
  return steps.make_stage2_loss(
    unet,
    head,
    make_schedule(**config.features.schedule),
    tuple(config.features.timesteps),
    config.features.source,
    config.features.noise,
    config.loss.to_dict(),
  )


def init_params(config: ml_collections.ConfigDict) -> Any:
  """Initialises the parameters that a config's stage trains, from its seed."""
  unet, head = make_networks(config)
  key = gaussian.make_key(config.seed)
  size = 2 ** (len(config.unet.multipliers) - 1)
  image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
  level = jax.ShapeDtypeStruct((1,), jnp.float32)
  # `lazy_init` runs the initialisers alone: no forward pass is compiled.
  if head is None:
    return unet.lazy_init(key, image, level)["params"]

  def features(key: Array, image: Array, level: Array) -> tuple[Array, ...]:
    variables = unet.init(key, image, level)
    source = config.features.source
    return unet.apply(variables, image, level, source, method="fusion_features")

  timesteps = len(config.features.timesteps)
  stacked = [
    jax.ShapeDtypeStruct((timesteps, *f.shape), f.dtype)
    for f in jax.eval_shape(features, key, image, level)
  ]
  return head.lazy_init(key, stacked, stacked, (image, image))["params"]


def init_state(config: ml_collections.ConfigDict, frozen_params: Any = None) -> TrainState:
  """Makes the state before the first step.

  Args:
    config: the run's config, with its `unet`.
    frozen_params: Stage II's UNet.
  """
  learning_rate = make_learning_rate(config.optimizer, config.num_train_steps)
  return create_train_state(
    init_params(config),
    make_optimizer(config.optimizer, learning_rate),
    ema=config.ema_decay > 0,
    frozen_params=frozen_params,
  )


def pmap_train_step(
  config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Any:
  """Maps a config's train step over devices; the state is donated.

  Args:
    config: the run's config, with its `unet`.
    devices: the devices, which need not exist: preflight compiles for described ones. By default
      all that there are.
  """
  learning_rate = make_learning_rate(config.optimizer, config.num_train_steps)
  step = steps.make_train_step(
    make_loss(config),
    make_optimizer(config.optimizer, learning_rate),
    learning_rate,
    seed=config.seed,
    ema_decay=config.ema_decay,
    skip_nonfinite=config.on_nonfinite == "skip",
  )
  return jax.pmap(step, axis_name=steps.AXIS, donate_argnums=0, devices=devices)
