"""What several sub-commands share: arguments, their values, and the start of JAX."""

import argparse
from collections.abc import Callable
from typing import Any


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
  """Returns a parser of whole numbers within the bounds."""

  def whole_number(text: str) -> int:
    value = int(text)
    if value < minimum or (maximum is not None and value > maximum):
      bounds = f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"
      raise argparse.ArgumentTypeError(f"{value} is out of range: {bounds}")
    return value

  return whole_number


def between(minimum: float, maximum: float) -> Callable[[str], float]:
  """Returns a parser of numbers within the bounds."""

  def number(text: str) -> float:
    value = float(text)
    if not minimum <= value <= maximum:  # also what is not a number
      raise argparse.ArgumentTypeError(f"{value} is out of range: {minimum:g} to {maximum:g}")
    return value

  return number


def in_place_of(*sources: argparse.Action) -> Any:
  """Returns an action that stores a value with which other arguments, `sources`, may be missing."""

  class InPlaceOf(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
      setattr(namespace, self.dest, values)
      for source in sources:
        source.required = False

  return InPlaceOf


def add_plugin(parser: argparse.ArgumentParser) -> None:
  """Declares `--plugin`."""
  parser.add_argument(
    "--plugin",
    metavar="MODULE",
    action="append",
    default=[],
    help="a module of yours whose parts a model or config may name (may be given several times)",
  )


def add_config(parser: argparse.ArgumentParser) -> None:
  """Declares `--config` and `--plugin`; lets `--config.FIELD=VALUE` through."""
  parser.add_argument(
    "--config",
    metavar="FILE.py[:ARGUMENTS]",
    required=True,
    help="the recipe, such as configs/dmfnet.py:stage=1,size=small; --config.FIELD=VALUE sets one "
    "of its fields",
  )
  add_plugin(parser)
  parser.set_defaults(takes_rest=True)


def read_config(args: argparse.Namespace) -> Any:
  """Starts JAX, and reads the config file with its overrides; see `parse_config`."""
  start_jax(args)
  from dmfnet_jax.training.config import parse_config

  return parse_config([f"--config={args.config}", *args.rest])


def start_jax(args: argparse.Namespace) -> None:
  """Prepares the process to compute, with the modules that the user names."""
  from absl import logging

  from dmfnet_jax import backend

  # Below that, TFDS and Orbax remark on their own settings.
  logging.set_verbosity(logging.ERROR)
  backend.keep_memory()
  backend.enable_compilation_cache()
  backend.ignore_absent_tpu()
  backend.use_all_cores()
  if args.plugin:
    from dmfnet_jax.methods import parts

    parts.allow(args.plugin)
