"""What the recipes share: arguments of a config file, and a recipe to begin with.

A config file takes arguments behind a colon, as big_vision's do:
`--config configs/dmfnet.py:stage=2,size=small`.
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from dmfnet_jax import methods
from dmfnet_jax.training.defaults import run_defaults


def parse_arguments(text: str | None, **known: tuple[Any, ...]) -> ml_collections.ConfigDict:
  """Parses "stage=2,size=small".

  Args:
    text: what stands behind the colon; None or empty for none.
    **known: each argument's values, the default first.

  Raises:
    ValueError: an unknown argument or value; the message lists those that there are.
  """
  arguments = {name: values[0] for name, values in known.items()}
  for word in filter(None, (text or "").split(",")):
    name, _, value = (part.strip() for part in word.partition("="))
    if name not in known:
      raise ValueError(f"no argument {name!r}; there are {', '.join(known)}")
    chosen = [v for v in known[name] if str(v) == value]
    if not chosen:
      raise ValueError(f"{name} is one of {', '.join(map(str, known[name]))}, not {value!r}")
    arguments[name] = chosen[0]
  return ml_collections.ConfigDict(arguments)


def sized(
  arguments: str | None,
  stages: tuple[int, ...],
  paper: Callable[[int], ml_collections.ConfigDict],
  **sizes: Callable[[ml_collections.ConfigDict], None],
) -> ml_collections.ConfigDict:
  """The config of "stage=2,size=small".

  Args:
    arguments: what stands behind the colon.
    stages: those that there are.
    paper: the recipe of a stage as published.
    **sizes: what each other size changes of it.
  """
  chosen = parse_arguments(arguments, stage=stages, size=("paper", *sizes))
  config = paper(chosen.stage)
  if chosen.size in sizes:
    sizes[chosen.size](config)
  return config


def recipe(method: str, stage: int, **changes: Any) -> ml_collections.ConfigDict:
  """The defaults of the trunk and of a method's stage, locked.

  Args:
    method: its name.
    stage: the stage's number.
    **changes: the recipe's own values; a dict changes fields of a section.
  """
  config = ml_collections.ConfigDict(
    {"method": method, "stage": stage} | run_defaults() | methods.get(method).defaults(stage)
  )
  config.lock()
  config.update(changes)
  return config


def reader_loss(config: ml_collections.ConfigDict) -> None:
  """Weights of `losses.fusion_loss` by which what a reader objects to costs something."""
  config.loss.lost_weight = 12.0  # no dark lines in bone, no black rings
  config.loss.invention_weight = 3.3
  # Wins back the edges that these cost: those of bone and air, and not texture.
  config.loss.update(gradient_gain=3.0, gain_half=7.0, gain_power=3.0, gradient_floor=0.005)
  config.loss.update(overlap=0.29, overlap_power=1.0)  # lifts bright tracer, and not a CT's brain
  config.loss.shade = 0.3  # makes room for it
