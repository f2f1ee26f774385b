"""From a config to what a run trains: checks, the networks it begins with, state and step."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from dmfnet_jax import methods
from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.errors import UserError, check_choice
from dmfnet_jax.methods.method import Method, Params, Stage, select
from dmfnet_jax.training import distributed, steps
from dmfnet_jax.training.progress import say
from dmfnet_jax.training.state import Optimizers, TrainState, continue_from, create_train_state
from dmfnet_jax.weights import files, find, load_params, workdir


class Setup(NamedTuple):
  """What a config stands for."""

  config: ml_collections.ConfigDict  # the run's, with the sections that came with its start; locked
  method: Method
  stage: Stage
  frozen: Params  # networks that stay as they are


def check_config(config: ml_collections.ConfigDict, devices: int | None = None) -> None:
  """Refuses a config that cannot be trained on so many devices, by default `choose_devices`.

  Raises:
    UserError: one line that names the field.
  """
  devices = devices or len(choose_devices(config.batch_size))
  if config.batch_size < 1 or config.batch_size % devices:
    raise UserError(
      f"config.batch_size={config.batch_size} is global and must be a multiple of the "
      f"{devices} devices"
    )
  check_choice("compute_dtype", config.compute_dtype, ("float32", "bfloat16"))
  check_choice("on_nonfinite", config.on_nonfinite, ("stop", "skip"))
  for name in ("num_train_steps", "log_every_steps", "eval_batch_size", "keep_checkpoints"):
    if config[name] < 1:
      raise UserError(f"config.{name}={config[name]} must be at least 1")
  method = methods.get(config.method)
  if not method.stages:
    raise UserError(f"{config.method} is not trained: it fuses with a model from elsewhere")
  check_choice("stage", config.stage, method.stages)
  if lacking := _lacking(config, method.defaults(config.stage)):
    raise UserError(
      f"config.method={config.method} has fields that the recipe lacks: {', '.join(lacking)}: take "
      "a recipe of that method"
    )
  method.check(config)


def _lacking(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
  """The fields of a method's sections that a config does not have."""
  found = []
  for section, fields in defaults.items():
    if section not in config:
      found.append(section)
    elif isinstance(fields, Mapping):
      found += [f"{section}.{name}" for name in fields if name not in config[section]]
  return found


def choose_devices(batch_size: int) -> list[jax.Device]:
  """The devices that share a batch, in every process the same.

  All accelerators, which a batch must suit. Of the cores that a CPU shows as devices, in each
  process as many as divide it: nobody has chosen their number.
  """
  devices = jax.devices()
  if devices[0].platform != "cpu":
    return devices
  of_process = [
    [device for device in devices if device.process_index == index]
    for index in range(jax.process_count())
  ]
  fewest = min(map(len, of_process))
  dividing = (n for n in range(fewest, 0, -1) if batch_size % (n * len(of_process)) == 0)
  count = next(dividing, fewest)
  return [device for those in of_process for device in those[:count]]


def tell_idle(batch_size: int, devices: Sequence[jax.Device]) -> str:
  """Says that a batch leaves cores of a CPU without work, or ""."""
  everyone = len(jax.devices())
  if len(devices) == everyone:
    return ""
  return (
    f"config.batch_size={batch_size} is divided among {len(devices)} of {everyone} cores: a "
    f"multiple of {everyone} gives all of them work"
  )


def set_up(config: ml_collections.ConfigDict, run_folder: Any) -> Setup:
  """Finds the networks that a run keeps, and leaves copies of them in its workdir.

  Copies that are there win, so that a resumed run has the same networks.

  Raises:
    UserError: what `start`, or another field, names does not hold the networks.
  """
  method = methods.get(config.method)
  load = functools.cache(functools.partial(_load, config, run_folder))
  if config.start or distributed.all_agree(workdir.frozen_file(run_folder, "start").exists()):
    config = with_sections(config, load("start")[1])
  elif config.stage != min(method.stages):
    raise UserError("config.start is empty: name the earlier stage's workdir or a model file")
  method.check(config)
  stage = method.stages[config.stage](config)
  frozen: Params = {}
  for field in sorted(set(stage.frozen.values())):
    networks = [name for name, where in stage.frozen.items() if where == field]
    copy = workdir.frozen_file(run_folder, field)
    there = distributed.all_agree(copy.exists())
    if stage.substitute is not None and not config[field] and not there:
      say(f"config.{field} is empty: {' and '.join(networks)} with random weights")
      params, sections = stage.substitute(gaussian.make_key(config.seed)), {"method": config.method}
    else:
      params, sections = load(field)
    missing = [name for name in networks if name not in params]
    if missing:
      raise UserError(
        f"config.{field}={config[field]} has no {missing[0]}: name a model that has it"
      )
    chosen = select(params, networks)
    if stage.substitute is not None:
      drawn = jax.eval_shape(stage.substitute, gaussian.make_key(0))
      for name in drawn.keys() & chosen.keys():
        if jax.tree.map(jnp.shape, drawn[name]) != jax.tree.map(jnp.shape, chosen[name]):
          raise UserError(
            f"config.{field}={config[field]} has another {name} than this config: sizes differ"
          )
    if not there and jax.process_index() == 0:
      files.save_weights(copy, chosen, sections)
    frozen |= chosen
  return Setup(config, method, stage, frozen)


def _load(
  config: ml_collections.ConfigDict, run_folder: Any, field: str
) -> tuple[Params, dict[str, Any]]:
  """Reads the copy of what a config field names, or where there is none itself."""
  copy = workdir.frozen_file(run_folder, field)
  if distributed.all_agree(copy.exists()):
    return workdir.read_together(lambda: files.read_weights(copy), distributed.all_agree)
  if not config[field]:
    raise UserError(f"config.{field} is empty: name a model file")
  path = find.place(config[field])
  if not path.is_dir():
    return workdir.read_together(lambda: load_params(config[field]), distributed.all_agree)
  best = distributed.values_of_process_0(workdir.best_first(path))
  return workdir.load_trained(path, best, distributed.all_agree)


def with_sections(
  config: ml_collections.ConfigDict, model_config: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Returns a config with the sections of an earlier stage's model that it lacks, locked."""
  config = ml_collections.ConfigDict(config)  # a copy, not locked
  with config.unlocked():
    for section in methods.get(config.method).model:
      if section not in config and section in model_config:
        config[section] = ml_collections.ConfigDict(model_config[section])
  return config.lock()


def init_state(setup: Setup) -> TrainState:
  """Makes the state before the first step, from the config's seed."""
  params = setup.stage.init(gaussian.make_key(setup.config.seed))
  optimizers = Optimizers(setup.config, trained_networks(setup.stage))
  return create_train_state(params, optimizers, ema=setup.config.ema_decay > 0, frozen=setup.frozen)


def begin(setup: Setup, state: TrainState) -> TrainState:
  """Puts the networks that a stage continues into its new state.

  From a workdir they come as its newest checkpoint has them, with their optimizers' states.

  Raises:
    UserError: `start` does not hold them.
  """
  if not setup.stage.continued or not setup.config.start:
    return state
  path = find.place(setup.config.start)
  if path.is_dir():
    newest = sorted(distributed.values_of_process_0(workdir.best_first(path)), reverse=True)
    earlier, _ = workdir.read_first(path, newest, distributed.all_agree)
    params = {**earlier["params"], "stats": earlier.get("stats") or {}}
    return continue_from(state, params, earlier["opt_state"], setup.stage.continued)
  load = functools.partial(load_params, setup.config.start)
  params, _ = workdir.read_together(load, distributed.all_agree)
  return continue_from(state, params, {}, setup.stage.continued)


def trained_networks(stage: Stage) -> list[str]:
  """The networks that a stage's updates move, in their order."""
  return list(dict.fromkeys(name for update in stage.updates for name in update.networks))


def pmap_train_step(setup: Setup, devices: Sequence[jax.Device] | None = None) -> Any:
  """Maps a stage's train step over devices, by default all that there are; the state is donated.

  They need not exist: preflight compiles for described ones.
  """
  config = setup.config
  step = steps.make_train_step(
    setup.stage,
    Optimizers(config, trained_networks(setup.stage)),
    seed=config.seed,
    num_train_steps=config.num_train_steps,
    ema_decay=config.ema_decay,
    skip_nonfinite=config.on_nonfinite == "skip",
  )
  return jax.pmap(step, axis_name=steps.AXIS, donate_argnums=0, devices=devices)
