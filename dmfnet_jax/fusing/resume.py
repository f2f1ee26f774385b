"""Large jobs: one process's part of the pairs, and going on where a job stopped.

Processes that fuse need not talk to each other: each takes every N-th pair of the same sorted list,
and results appear whole or not at all, so that a result that is there is finished.
"""

import json
import os
import re
from collections.abc import Container, Sequence
from typing import Any

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.kinds import DICOM
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.options import FIELDS, FILES, RESULT, FuseOptions, flag
from dmfnet_jax.fusing.record import colours_sha256, model_name
from dmfnet_jax.io import paths
from dmfnet_jax.messages import say

_RECORD = ".dmfnet_fuse.json"


def which_process(shard: str | None) -> tuple[int, int]:
  """Which process this is, and of how many.

  Args:
    shard: "I/N", I from 0 to N - 1. None: what a launcher's variables say (see
      `backend.find_process`), the hosts of a TPU slice, or JAX itself where it was told of several
      processes; else the only one.

  Returns:
    (I, N).

  Raises:
    UserError: the words or variables are not such numbers.
  """
  if shard is not None:
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or int(found[1]) >= int(found[2]):
      raise UserError(f"--shard is I/N with I from 0 to N - 1, such as 0/4 to 3/4, not {shard}")
    return int(found[1]), int(found[2])
  import jax

  from dmfnet_jax import backend

  process = backend.find_process(os.environ)
  # libtpu tells the hosts of a slice, also where nothing has joined them.
  if process is None and (backend.has_tpu() or jax.distributed.is_initialized()):
    return jax.process_index(), jax.process_count()
  return process or (0, 1)


def unfinished(pairs: Sequence[Pair], there: Container[str]) -> list[Pair]:
  """The pairs whose result is not there yet.

  Of a DICOM series, which is many files, the record tells: it is written last.

  Args:
    pairs: any number of them, none too.
    there: the names in the output folder.
  """
  return [
    pair
    for pair in pairs
    if (pair.out_record if pair.out_kind == DICOM else pair.out).name not in there
  ]


def compare_or_leave_record(
  folder: Any, options: FuseOptions, model_sha256: str, there: set[str] | None = None
) -> set[str]:
  """Compares a run with the folder's hidden record of how its results are made, or leaves one.

  Without `--resume` results are replaced, one after the other: where others than this run's are
  there, the folder has no record until they are all gone.

  Args:
    folder: where the results go; it exists.
    options: of this run.
    model_sha256: the model's fingerprint.
    there: the names of the files that are there, where that is known otherwise: a listing takes its
      time in a folder of millions.

  Returns:
    The names of the files that are there.

  Raises:
    UserError: results that are to be kept were made with another model or other options, or the
      record cannot be read, written or deleted.
  """
  wanted = _what_results_depend_on(options, model_sha256)
  path = folder / _RECORD
  # First: of several processes that begin at once, none has results before there is a record.
  if there is None:
    there = {path.name for path in paths.list_files(folder, may_be_empty=True)}
  if path.exists():
    apart = _differences(path, wanted)
    if apart == []:
      return there
    if options.resume:
      if apart is None:
        raise UserError(f"{path} is damaged: delete it, or fuse into another folder")
      raise UserError(
        f"{folder} holds results of another {' and '.join(apart)}: fuse into another folder, or "
        "without --resume to replace them"
      )
  if not there:
    # The name is for people and not compared: the same model may have several.
    named = wanted | {"model-name": model_name(options.model)}
    paths.write_bytes(path, (json.dumps(named) + "\n").encode())
  elif options.resume:
    say(f"warning: {folder}: how the results there were made is not known: they are kept")
  else:
    paths.delete(path)
  return there


def read_folder_record(folder: Any) -> dict[str, Any]:
  """What a folder's hidden record says of how its results are made; empty where it says nothing."""
  path = folder / _RECORD
  try:
    found = json.loads(paths.read_bytes(path)) if path.exists() else {}
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _differences(path: Any, wanted: dict[str, Any]) -> list[str] | None:
  """The names in which a record differs from the wanted one; None where it is damaged."""
  try:
    found = json.loads(paths.read_bytes(path))
    # An option that is newer than the record had no effect yet.
    unset = _what_results_depend_on(FuseOptions(), found["model"])
    return sorted(name for name in wanted if (unset | found)[name] != wanted[name])
  except (ValueError, KeyError, TypeError):
    return None


def _what_results_depend_on(options: FuseOptions, model_sha256: str) -> dict[str, Any]:
  """The options that change what is written, as JSON gives them back."""
  named = {
    flag(name): getattr(options, name)
    for name, field in FIELDS.items()
    if field.metadata["changes"] in (RESULT, FILES)
  }
  named |= {f"window-{letter}": window for letter, window in options.windows.items()}
  named["model"] = model_sha256
  named["lut"] = None if options.volume_lut is None else colours_sha256(options.table)
  return json.loads(json.dumps(named, default=str))
