"""The record beside a result, `STEM.json`: everything that it depends on but its two sources."""

import functools
import hashlib
import importlib.metadata
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import dmfnet_jax
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.options import FIELDS, PAIRS, RESULT, VOLUMES, FuseOptions, flag
from dmfnet_jax.io import paths
from dmfnet_jax.io.windows import UsedWindow, number

_PACKAGES = ("jax", "jaxlib", "numpy", "pillow", "nibabel", "pydicom")

Windows = Mapping[str, UsedWindow | None]  # of "a" and "b"; None: coloured, or shown as stored


def describe_windows(windows: Windows, *, with_above: bool = False) -> str:
  """The windows in words, on demand with how many voxels are brighter than white."""
  told = []
  for letter, window in windows.items():
    if window is not None:
      voxels = "voxel" if window.above == 1 else "voxels"
      above = f", {window.above:,} {voxels} above" if with_above and window.above else ""
      told.append(f"{letter.upper()} {window}{above}")
  return ", ".join(told)


def model_name(model: str) -> str:
  """What a model is called: of a file or workdir its name alone, without the folders above it."""
  return model if "://" in model else paths.as_path(model).resolve().name


def make_record(
  options: FuseOptions,
  name: str,
  model_sha256: str,
  windows: Windows,
  lut: str | None,
  plane: str | None = None,
  shape: Sequence[int] = (),
  warnings: Sequence[str] = (),
) -> dict[str, Any]:
  """Returns what `STEM.json` holds; its `options` are what to type to get the same bytes again.

  Args:
    options: of the run.
    name: of the pair, from which its noise is drawn.
    model_sha256: the model's fingerprint.
    windows: that were used.
    lut: the colour map's name or file, or None.
    plane: of a volume's slices; None for pictures.
    shape: of a volume.
    warnings: what was passed over because the user said so.
  """
  used: dict[str, Any] = {"lut": lut, "axis": plane}
  record: dict[str, Any] = {"name": name, "options": "", "model": options.model}
  record |= {"model_sha256": model_sha256, "seed": options.seed, "samples": options.samples}
  for letter, window in windows.items():
    ends = None if window is None else list(window.window)
    used[f"window_{letter}"] = ends and ",".join(map(number, ends))
    record[f"window_{letter}"] = ends
    record[f"window_{letter}_from"] = None if window is None else window.origin
    record[f"unit_{letter}"] = None if window is None else window.unit or None
    record[f"above_{letter}"] = None if window is None else window.above
  record["lut"] = lut
  record["lut_sha256"] = None if lut is None else colours_sha256(options.table)
  if plane is not None:
    record |= {"axis": plane, "shape": list(shape), "resample": options.resample}
  if warnings:
    record["warnings"] = list(warnings)
  record["versions"] = _versions()
  words = []
  for field in FIELDS.values():
    value = used[field.name] if field.name in used else getattr(options, field.name)
    is_said = field.name in ("model", "seed") or value != field.default
    is_repeated = field.metadata["changes"] in (RESULT, PAIRS)
    if is_said and is_repeated and (plane is not None or field.metadata["group"] != VOLUMES):
      words.append(f"--{flag(field.name)}" + ("" if value is True else f"={value}"))
  return record | {"options": shlex.join(words)}


@functools.cache
def _versions() -> dict[str, str]:
  ours = {"dmfnet_jax": dmfnet_jax.__version__}
  return ours | {package: importlib.metadata.version(package) for package in _PACKAGES}


def colours_sha256(table: np.ndarray) -> str:
  """SHA-256 over a colour map's bytes."""
  return hashlib.sha256(table.tobytes()).hexdigest()


def write_record(path: Any, record: Mapping[str, Any]) -> None:
  """Writes a record as JSON.

  Raises:
    UserError: it cannot be written.
  """
  text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
  paths.write_bytes(path, text.encode())


def read_record(pair: Pair) -> Mapping[str, Any]:
  """What `make_record` gave for a result; empty where nothing stands beside it.

  Raises:
    UserError: it is damaged.
  """
  if not pair.out_record.exists():
    return {}
  try:
    found = json.loads(paths.read_bytes(pair.out_record))
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise UserError(f"{pair.out_record}: is damaged: fuse again, or delete it")
  return found
