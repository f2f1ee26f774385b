"""Fuse the same pairs with several models: one table of metrics, one page to look at."""

import argparse

from dmfnet_jax.cli.arguments import add_plugin, in_place_of, start_jax, whole
from dmfnet_jax.cli.fuse import add_option
from dmfnet_jax.fusing.options import FuseOptions

# Those of fusing that leave A and B as they are: the metrics look at the files.
_OPTIONS = (
  "seed", "batch_size", "tile", "strict", "precision", "resume", "suffix_a", "suffix_b", "pairs",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  sources = (
    parser.add_argument("a", metavar="A", help="MRI: a picture, a volume, or a folder of pairs"),
    parser.add_argument("b", metavar="B", help="CT, PET or SPECT: the same kind"),
  )
  parser.add_argument(
    "-o",
    "--out",
    metavar="DIR",
    required=True,
    help="a folder for compare.html, .csv, .md and .json, and a folder of fused pictures per model",
  )
  parser.add_argument(
    "--models",
    metavar="MODEL,MODEL,...",
    default="small-v2,small,max,mean,overlay",
    help="released models, .safetensors files, workdirs, hf://OWNER/NAME or methods without "
    "weights (max, mean, overlay), where wanted as LABEL=MODEL (%(default)s)",
  )
  parser.add_argument(
    "--fused",
    metavar="DIR,DIR,...",
    help="folders of what other programs made of the same pairs, named as the pairs, where wanted "
    "as LABEL=DIR: they are measured and shown with the rest",
  )
  for name in _OPTIONS:
    add_option(parser, name, in_place_of(*sources) if name == "pairs" else None)
  parser.add_argument(
    "--ssim-range",
    metavar="R",
    type=float,
    default=255,
    help="the range of values that SSIM takes, as `dmfnet evaluate` has it (255)",
  )
  parser.add_argument(
    "--pictures",
    metavar="N",
    type=whole(0),
    default=100,
    help="pairs that the page shows, worst disagreements first (%(default)s)",
  )
  add_plugin(parser)


def run(args: argparse.Namespace) -> int:
  """Compares; returns the exit code."""
  start_jax(args)
  from dmfnet_jax.compare import compare_models, parse_models

  return compare_models(
    args.a,
    args.b,
    args.out,
    parse_models(args.models),
    FuseOptions(**{name: getattr(args, name) for name in _OPTIONS}),
    given=parse_models(args.fused, "--fused") if args.fused else None,
    ssim_range=args.ssim_range,
    max_pictures=args.pictures,
  )
