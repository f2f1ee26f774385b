"""Fuse files or series that belong together, or all those of folders."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

from dmfnet_jax.cli.arguments import add_plugin, between, in_place_of, start_jax, whole
from dmfnet_jax.fusing.options import FIELDS, FuseOptions, flag

_NEGATIVE = re.compile(r"-\.?\d")
_ENDING = re.compile(r"-[^-].")  # not -o, which is an option


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments: the paths, and the fields of `FuseOptions`."""
  sources = (
    parser.add_argument(
      "a", metavar="A", help="MRI: a picture, a NIfTI or DICOM file, a series, or a folder of pairs"
    ),
    parser.add_argument(
      "b", metavar="B", help="CT, PET or SPECT: the same kind; in folders pairs share their stem"
    ),
  )
  parser.add_argument(
    "further",
    metavar="C",
    nargs="*",
    default=(),
    help="further sources of a model that takes more than two, in its order: the same kind; in "
    "folders they are named as the pairs are",
  )
  parser.add_argument(
    "-o",
    "--out",
    metavar="OUT",
    required=True,
    help="a file, or a folder for one STEM.png or STEM.nii.gz per pair, or for a DICOM series",
  )
  groups: dict[str, Any] = {"": parser}
  for name, field in FIELDS.items():
    group = field.metadata["group"]
    if group not in groups:
      groups[group] = parser.add_argument_group(group)
    action = in_place_of(*sources) if name == "pairs" else None
    add_option(groups[group], name, action)
  add_plugin(parser)


def add_option(parser: Any, name: str, action: Any = None) -> None:
  """Declares a field of `FuseOptions`, where given with an action of its own."""
  field = FIELDS[name]
  parsed = dict(field.metadata["parsed"]) | ({} if action is None else {"action": action})
  if "bounds" in parsed:
    bounds = parsed.pop("bounds")
    parsed["type"] = between(*bounds) if isinstance(bounds[0], float) else whole(*bounds)
  if field.default is False and "nargs" not in parsed:
    parsed["action"] = "store_true"
  parser.add_argument(f"--{flag(name)}", default=field.default, **parsed)


def join_values(words: Sequence[str]) -> list[str]:
  """Writes options and values as one word where argparse would mistake one for another.

  In `--window-a -160,240` and `--suffix-a -T1` it would take the value for an option, in `--rgb
  A B` the source A for the value.
  """
  joined: list[str] = []
  for word in words:
    last = joined[-1] if joined else ""
    is_window = last in ("--window-a", "--window-b", "--window-c") and _NEGATIVE.match(word)
    if is_window or (last in ("--suffix-a", "--suffix-b") and _ENDING.match(word)):
      joined[-1] += f"={word}"
    elif last == "--rgb" and not word.startswith("-"):
      joined[-1:] = ["--rgb=4d"] if word == "4d" else ["--rgb=rgb24", word]
    else:
      joined.append(word)
  return joined


def run(args: argparse.Namespace) -> int:
  """Fuses; returns the exit code."""
  start_jax(args)
  from dmfnet_jax.fusing.files import fuse_files

  options = FuseOptions(**{name: getattr(args, name) for name in FIELDS})
  return fuse_files(args.a, args.b, args.out, options, further=tuple(args.further))
