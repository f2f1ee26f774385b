"""Compute the twelve fusion metrics of fused pictures, and three of what a reader sees."""

import argparse

from dmfnet_jax.cli.arguments import in_place_of, start_jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  sources = (
    parser.add_argument("--a", metavar="DIR", required=True, help="the MRI pictures or volumes"),
    parser.add_argument("--b", metavar="DIR", required=True, help="the CT, PET or SPECT ones"),
  )
  parser.add_argument("--fused", metavar="DIR", required=True, help="the fused ones")
  parser.add_argument("--json", metavar="FILE", help="also write the metrics of every pair here")
  for letter in "ab":
    parser.add_argument(
      f"--suffix-{letter}",
      metavar="ENDING",
      default="",
      help=f"the ending of {letter.upper()}'s names, as `dmfnet fuse` takes it",
    )
  parser.add_argument(
    "--pairs",
    metavar="FILE.csv",
    action=in_place_of(*sources),
    help="the list of pairs that `dmfnet fuse` took in place of A and B",
  )
  parser.add_argument(
    "--ssim-range",
    metavar="R",
    type=float,
    default=255,
    help="the range of values that SSIM takes (255); 2 gives the values of some published tables",
  )


def run(args: argparse.Namespace) -> int:
  """Evaluates; returns the exit code."""
  start_jax(args)
  from dmfnet_jax.fusing.evaluate import evaluate_folders
  from dmfnet_jax.fusing.pairing import Naming

  return evaluate_folders(
    args.a,
    args.b,
    args.fused,
    naming=Naming(args.suffix_a, args.suffix_b, args.pairs),
    json_file=args.json,
    ssim_range=args.ssim_range,
  )
