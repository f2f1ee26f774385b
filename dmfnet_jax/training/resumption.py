"""Which fields of a config a resumed run may have other than its checkpoint."""

import json
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from dmfnet_jax import methods
from dmfnet_jax.errors import UserError
from dmfnet_jax.training.defaults import run_defaults

# The length, what is written when and where, and what changes no number beyond rounding.
_FREE = frozenset(
  {
    "num_train_steps",
    "log_every_steps",
    "eval_every_steps",
    "sample_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "eval_batch_size",
    "profile_steps",
    "num_workers",
    "data_dir",
    "start",  # the workdir has a copy, and that is what counts
    "remat",
    "on_nonfinite",
    "may_change",
  }
)
# The state's arrays and the order of the data follow from these, and from the model's sections: a
# state of other ones cannot be restored at all.
_STRUCTURE = ("method", "stage", "optimizer.name", "dataset", "seed", "batch_size")
# Above zero, each has its part of the state.
_SWITCHES = ("optimizer.clip_norm", "ema_decay")


def refuse_other_config(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
  """Compares a run's config with that of the checkpoint from which it is to go on.

  Args:
    ours: the run's config, as JSON has it. Its `may_change` names fields that may differ.
    theirs: the checkpoint's. Fields that it lacks are newer than it: they are not compared, but
      for those on which the state's structure depends, which had the recipes' defaults.

  Raises:
    UserError: fields differ that must not; all are named, with both values.
  """
  # On the command line `a,b` comes as one string.
  names = (name.strip() for entry in ours.get("may_change", ()) for name in entry.split(","))
  allowed = {name for name in names if name}
  # Losses may change with permission: no array follows from them.
  sections = [section for section in methods.get(ours["method"]).model if section != "loss"]
  structure = (*_STRUCTURE, *sections)
  defaults = _defaults(ours)
  ours, theirs = flatten_dict(ours, sep="."), flatten_dict(theirs, sep=".")
  unknown = sorted(allowed - ours.keys())
  if unknown:
    raise UserError(f"config.may_change names {unknown[0]!r}, which is no field of the config")

  def in_structure(name: str) -> bool:
    return any(f"{name}.".startswith(f"{field}.") for field in structure)

  def is_structure(name: str) -> bool:
    if name in _SWITCHES:
      return (ours[name] > 0) != (theirs[name] > 0)
    return in_structure(name)

  newer = {name: defaults.get(name) for name in ours if in_structure(name) or name in _SWITCHES}
  theirs = newer | theirs
  differing = [
    name
    for name in ours
    if name in theirs
    and ours[name] != theirs[name]
    and name not in _FREE
    and (name not in allowed or is_structure(name))
  ]
  if differing:
    fields = "; ".join(
      f"config.{name} = {json.dumps(theirs[name])}, this run has {json.dumps(ours[name])}"
      for name in differing
    )
    advice = "use the same, or start a new workdir"
    if not any(is_structure(name) for name in differing):
      advice += f" (or allow it: --config.may_change={','.join(differing)})"
    raise UserError(f"cannot resume: the checkpoint has {fields}; {advice}")


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
  """What fields had before they were fields, flat, as JSON has it."""
  method = methods.get(config["method"])
  nested = {"method": methods.OLDEST, **run_defaults()}
  for stage in method.stages:
    if stage <= config["stage"]:
      nested |= method.defaults(stage)
  return flatten_dict(json.loads(json.dumps(nested)), sep=".")
