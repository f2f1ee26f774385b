"""Which fields of a config a resumed run may have other than its checkpoint."""

import json
from collections.abc import Mapping
from typing import Any

from dmfnet_jax.configs import stage1, stage2
from dmfnet_jax.errors import UserError

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
    "stage1",  # the workdir has a copy, and that is what counts
    "remat",
    "on_nonfinite",
    "may_change",
  }
)
# The state's arrays and the order of the data follow from these: a state of other ones cannot be
# restored at all.
_STRUCTURE = (
  *("stage", "unet", "fusion_head", "features", "optimizer.name"),
  *("dataset", "seed", "batch_size"),
)
# Above zero, each has its part of the state.
_SWITCHES = ("optimizer.clip_norm", "ema_decay")


def check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
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
  unknown = sorted(allowed - _flatten(ours).keys())
  if unknown:
    raise UserError(f"config.may_change names {unknown[0]!r}, which is no field of the config")
  defaults = _defaults(ours["stage"])
  ours, theirs = _flatten(ours), _flatten(theirs)
  newer = {name: defaults.get(name) for name in ours if _in_structure(name) or name in _SWITCHES}
  theirs = newer | theirs
  differing = [
    name
    for name in ours
    if name in theirs
    and ours[name] != theirs[name]
    and name not in _FREE
    and (name not in allowed or _is_structure(name, ours, theirs))
  ]
  if differing:
    fields = "; ".join(
      f"config.{name} = {json.dumps(theirs[name])}, this run has {json.dumps(ours[name])}"
      for name in differing
    )
    advice = "use the same, or start a new workdir"
    if not any(_is_structure(name, ours, theirs) for name in differing):
      advice += f" (or allow it: --config.may_change={','.join(differing)})"
    raise UserError(f"cannot resume: the checkpoint has {fields}; {advice}")


def _is_structure(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
  if name in _SWITCHES:
    return (ours[name] > 0) != (theirs[name] > 0)
  return _in_structure(name)


def _in_structure(name: str) -> bool:
  return any(name == field or name.startswith(f"{field}.") for field in _STRUCTURE)


def _defaults(stage: int) -> dict[str, Any]:
  """The recipe of a stage, as JSON has it; Stage II's with the UNet of Stage I's."""
  recipes = [stage1.get_config()] + [stage2.get_config()] * (stage == 2)
  return {k: v for recipe in recipes for k, v in _flatten(json.loads(recipe.to_json())).items()}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat
