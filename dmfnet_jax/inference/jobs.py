"""Large jobs: one process's share of the pairs, and going on where a job stopped.

Processes that fuse need not talk to each other: each takes every N-th pair of the same sorted list,
and results appear whole or not at all, so that a result that is there is finished.
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

from dmfnet_jax.data import images
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.options import FuseOptions
from dmfnet_jax.inference.pairs import Pair
from dmfnet_jax.inference.sources import DICOM
from dmfnet_jax.messages import say

_RECORD = ".dmfnet_fuse.json"


def process_share(shard: str | None) -> tuple[int, int]:
  """Which process this is, and of how many.

  Args:
    shard: "I/N", I from 0 to N - 1. None: what JAX_PROCESS_ID and JAX_NUM_PROCESSES say, which
      launchers set, or JAX itself where it was told of several processes; else the only one.

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
  words = [os.environ.get(name) for name in ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES")]
  if words != [None, None]:
    index, count = (int(word) if word and word.isdecimal() else -1 for word in words)
    if not 0 <= index < count:
      raise UserError(
        "JAX_PROCESS_ID and JAX_NUM_PROCESSES must be a number and a larger one, "
        f"not {words[0]} and {words[1]}"
      )
    return index, count
  import jax

  if jax.distributed.is_initialized():
    return jax.process_index(), jax.process_count()
  return 0, 1


def unfinished(pairs: Sequence[Pair], folder: Any) -> list[Pair]:
  """The pairs whose result is not there yet, told by one listing of the output folder.

  A DICOM series, which is many files, counts as unfinished.

  Args:
    pairs: any number of them, none too.
    folder: where their results go; it exists.
  """
  there = {path.name for path in images.list_files(folder)}
  return [pair for pair in pairs if pair.out_kind == DICOM or pair.out.name not in there]


def check_same_job(folder: Any, options: FuseOptions, model_sha256: str | None) -> None:
  """Makes sure that a folder's results were made as this run makes them.

  The first run to be resumed leaves a hidden record in the folder, the later ones compare with it.

  Raises:
    UserError: the results there were made with another model or other options, or the record cannot
      be read or written.
  """
  wanted = _what_results_depend_on(options, model_sha256)
  path = folder / _RECORD
  if path.exists():
    try:
      found = json.loads(images.read_bytes(path))
      apart = sorted(name for name in wanted if found[name] != wanted[name])
    except (ValueError, KeyError, TypeError):
      raise UserError(f"{path} is damaged: delete it, or fuse into another folder") from None
    if apart:
      raise UserError(
        f"{folder} holds results of another {' and '.join(apart)}: fuse into another folder, or "
        "without --resume to replace them"
      )
    return
  if any(True for _ in images.list_files(folder)):
    say(f"warning: {folder}: how the results there were made is not known: they are kept")
  images.write_bytes(path, (json.dumps(wanted) + "\n").encode())


def forget_job(folder: Any) -> None:
  """Deletes the record of a folder whose results are about to be replaced.

  Raises:
    UserError: it cannot be deleted.
  """
  path = folder / _RECORD
  try:
    path.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(f"{path}: cannot delete: {error.strerror or error}") from error


def _what_results_depend_on(options: FuseOptions, model_sha256: str | None) -> dict[str, Any]:
  """The options that change what is written, as JSON gives them back."""
  named = {
    "model": model_sha256,
    "seed": options.seed,
    "samples": options.samples,
    "window-a": options.window_a,
    "window-b": options.window_b,
    "lut": options.lut,
    "axis": options.axis,
    "resample": options.resample,
    "rgb": options.rgb,
    "png": options.png,
    "montage": None if options.montage is None else str(options.montage),
    "precision": options.precision,
  }
  return json.loads(json.dumps(named))
