"""By what the pictures of a report were made, as far as fusing has left a record beside them."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.options import FIELDS, flag
from dmfnet_jax.fusing.record import model_name, read_record
from dmfnet_jax.fusing.resume import read_folder_record
from dmfnet_jax.report.page import text

_UNKNOWN = "not recorded beside the results"
_APART = ("model", "seed", "samples")  # have a line of their own


def facts(pairs: Mapping[str, Pair]) -> Iterator[str]:
  """Yields the model, the seed and the options of all results as HTML; several where they differ.

  A result's own record tells, `STEM.json`, or else that of its folder.
  """
  of_folders = {
    folder: read_folder_record(folder)
    for folder in dict.fromkeys(pair.out.parent for pair in pairs.values())
  }
  found: dict[str, dict[str, None]] = {name: {} for name in ("Model", "Seed", "Options")}
  for pair in pairs.values():
    try:
      record = read_record(pair)
    except UserError:  # damaged: its values were named where they were needed
      record = {}
    told = _of_result(record) if record else _of_folder(of_folders[pair.out.parent])
    for name, value in told.items():
      found[name][value] = None
  yield '<dl class="facts">'
  for name, values in found.items():
    shown = list(values) if len(values) <= 3 else [f"{len(values)} different ones"]
    yield f"<div><dt>{name}</dt><dd>{text('; '.join(shown))}</dd></div>"
  yield "</dl>\n"


def _of_result(record: Mapping[str, Any]) -> dict[str, str]:
  words = shlex.split(record.get("options", ""))
  apart = tuple(f"--{name}" for name in _APART)
  options = [word for word in words if not word.startswith(apart)]
  return {
    "Model": _model(record.get("model", ""), record.get("model_sha256", "")),
    "Seed": _seed(record),
    "Options": shlex.join(options) or "none",
  }


def _of_folder(record: Mapping[str, Any]) -> dict[str, str]:
  if not record:
    return dict.fromkeys(("Model", "Seed", "Options"), _UNKNOWN)
  options = []
  for name, field in FIELDS.items():
    value = record.get(flag(name), field.default)
    if name not in _APART and value != field.default:
      options.append(f"--{flag(name)}" + ("" if value is True else f"={value}"))
  return {
    "Model": _model(record.get("model-name", ""), record.get("model", "")),
    "Seed": _seed(record),
    "Options": shlex.join(options) or "none",
  }


def _model(name: str, sha256: str) -> str:
  digest = f"SHA-256 {sha256[:12]}" if sha256 else ""
  return " · ".join(filter(None, (name and model_name(name), digest))) or _UNKNOWN


def _seed(record: Mapping[str, Any]) -> str:
  seed, samples = record.get("seed"), record.get("samples")
  return f"{seed}" + (f", mean of {samples} noise draws" if samples else "")
