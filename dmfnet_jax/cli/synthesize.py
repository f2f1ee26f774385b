"""Make a missing picture of two others, such as FLAIR of T1 and T2."""

import argparse
from typing import Any

from dmfnet_jax.cli.arguments import add_plugin, in_place_of, start_jax
from dmfnet_jax.cli.fuse import add_option
from dmfnet_jax.fusing.options import FIELDS, FuseOptions

# What fusing alone has a use for.
_OF_FUSING = ("samples", "overlay", "emphasis", "window_c", "lut", "rgb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments: the paths, the truth, and the fields of `FuseOptions` that matter."""
  sources = (
    parser.add_argument(
      "a",
      metavar="A",
      help="the first input: a picture, a NIfTI or DICOM file, a series, or a folder of them",
    ),
    parser.add_argument(
      "b", metavar="B", help="the second: the same kind; in folders pairs share their stem"
    ),
  )
  parser.add_argument(
    "-o",
    "--out",
    metavar="OUT",
    required=True,
    help="a file, or a folder for one STEM.png or STEM.nii.gz per pair, or for a DICOM series",
  )
  truth = parser.add_argument_group("against true ones")
  truth.add_argument(
    "--target", metavar="PATH", help="a file or folder of true ones: prints PSNR, SSIM and NMSE"
  )
  truth.add_argument(
    "--suffix-target", metavar="ENDING", default="", help="the ending of their names"
  )
  truth.add_argument("--json", metavar="FILE", help="also write these values here")
  groups: dict[str, Any] = {"": parser}
  for name, field in FIELDS.items():
    if name in _OF_FUSING:
      continue
    group = field.metadata["group"]
    if group not in groups:
      groups[group] = parser.add_argument_group(group)
    if name == "model":
      parser.add_argument(
        "--model",
        required=True,
        metavar="FILE|WORKDIR",
        help="a .safetensors file, a workdir or hf://OWNER/NAME; there is no released one",
      )
    else:
      add_option(groups[group], name, in_place_of(*sources) if name == "pairs" else None)
  add_plugin(parser)


def run(args: argparse.Namespace) -> int:
  """Makes the pictures; returns the exit code."""
  start_jax(args)
  from dmfnet_jax.errors import UserError
  from dmfnet_jax.fusing.synthesis import Truth, synthesize_files

  if args.target is None and (args.json or args.suffix_target):
    raise UserError("--json and --suffix-target need true ones to compare with: --target")
  truth = None if args.target is None else Truth(args.target, args.suffix_target, args.json)
  options = FuseOptions(**{name: getattr(args, name) for name in FIELDS if name not in _OF_FUSING})
  return synthesize_files(args.a, args.b, args.out, options, truth)
