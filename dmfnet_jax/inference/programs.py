"""A method's compiled programs. Models of one config share what is compiled for them."""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dmfnet_jax import methods
from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.method import Array, Compute, Images, Params


def divide_among(function: Callable, devices: Sequence[jax.Device]) -> Any:
  """Compiles a method's function for several devices, each of which takes its share of a batch.

  Not a plain jit over divided batches: a method may join examples and passes in one axis, through
  which XLA follows no division. It would let every device compute everything.
  """
  examples = P("examples")
  divided = jax.shard_map(
    function,
    mesh=mesh(devices),
    in_specs=(P(), examples, examples),
    out_specs=examples,
    check_vma=False,  # nothing is exchanged; sums begin with zeros that belong to no device
  )
  return jax.jit(divided)


def mesh(devices: Sequence[jax.Device]) -> Mesh:
  """Devices in a row, which share the examples of a batch, or one example."""
  return Mesh(np.array(devices), ("examples",))


@functools.lru_cache
def program(config_json: str, compute: Compute, devices: tuple[jax.Device, ...]) -> Any:
  """Compiles a method's `fuse` for some devices."""
  config = json.loads(config_json)
  function = methods.get(config["method"]).fuse(config, compute)

  def fuse(params: Params, images: Images, keys: Array) -> Images:  # its name is the program's
    try:
      return function(params, images, keys)
    except (ScopeParamNotFoundError, ScopeParamShapeError) as error:
      reason = str(error).partition(" (https:")[0]  # Flax's page about it
      raise UserError(f"the model's parameters do not fit its config: {reason}") from error

  is_whole = len(devices) == 1 or compute.mesh is not None
  return jax.jit(fuse) if is_whole else divide_among(fuse, devices)


@functools.lru_cache
def extra(config_json: str, compute: Compute, name: str) -> Any:
  """Compiles one of a method's `extras`."""
  config = json.loads(config_json)
  return jax.jit(methods.get(config["method"]).extras[name](config, compute))


@functools.lru_cache
def after_crop(config_json: str) -> Any:
  """Compiles a method's `after_crop`; None where there is none."""
  config = json.loads(config_json)
  function = methods.get(config["method"]).after_crop(config)
  return function and jax.jit(function)
