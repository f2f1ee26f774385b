"""Which pictures a dataset was prepared from, so that those that come later are noticed."""

import json
import os
from pathlib import Path
from typing import Any

from dmfnet_jax.io import paths, pictures
from dmfnet_jax.messages import first_of

# DICOM files without a suffix are not told of: there are too many other files of that kind.
_SUFFIXES = (*pictures.READ_SUFFIXES, ".nii", ".gz", ".mgz", ".mgh", ".hdr", ".img", ".dcm", ".csv")

_RECORD = "source_files.json"  # beside the dataset


def leave_record(dataset: Any, manual_dir: str | Path) -> None:
  """Writes the sizes of all pictures under `manual_dir` beside a prepared dataset."""
  paths.write_bytes(dataset / _RECORD, json.dumps(_sizes(manual_dir)).encode())


def describe_changes(dataset: Any, manual_dir: str | Path) -> str:
  """Says which pictures were added, are gone, or have another size than they had.

  Returns:
    "" where there are none, or the dataset has no record.
  """
  record = dataset / _RECORD
  if not record.exists():
    return ""
  then, now = json.loads(paths.read_bytes(record)), _sizes(manual_dir)
  changes = {
    "added": now.keys() - then.keys(),
    "gone": then.keys() - now.keys(),
    "changed": {name for name in now.keys() & then.keys() if now[name] != then[name]},
  }
  told = (
    f"{len(names)} {what} ({first_of(sorted(names))})" for what, names in changes.items() if names
  )
  return ", ".join(told)


def _sizes(manual_dir: str | Path) -> dict[str, int]:
  """The bytes of every picture and volume under a folder, by its path from there."""
  found = {}
  for folder, _, names in os.walk(manual_dir, followlinks=True):
    for name in names:
      path = Path(folder) / name
      if path.suffix.lower() in _SUFFIXES:
        found[path.relative_to(manual_dir).as_posix()] = path.stat().st_size
  return found
