"""Which fields of a config a resumed run may have other than its checkpoint."""

import json
from collections.abc import Mapping
from typing import Any

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
# The state's arrays follow from these: a state of other ones cannot be restored at all.
_STRUCTURE = ("stage", "unet", "fusion_head", "features", "optimizer.name")


def check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
  """Compares a run's config with that of the checkpoint from which it is to go on.

  Args:
    ours: the run's config, as JSON has it. Its `may_change` names fields that may differ.
    theirs: the checkpoint's. Fields that it lacks are newer than it, and are not compared.

  Raises:
    UserError: fields differ that must not; all are named, with both values.
  """
  # On the command line `a,b` comes as one string.
  names = (name.strip() for entry in ours.get("may_change", ()) for name in entry.split(","))
  allowed = {name for name in names if name}
  unknown = sorted(allowed - _flatten(ours).keys())
  if unknown:
    raise UserError(f"config.may_change names {unknown[0]!r}, which is no field of the config")
  ours, theirs = _flatten(ours), _flatten(theirs)
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
  if name in ("optimizer.clip_norm", "ema_decay"):
    return (ours[name] > 0) != (theirs[name] > 0)  # a part of the state is there or not
  return any(name == field or name.startswith(f"{field}.") for field in _STRUCTURE)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat
