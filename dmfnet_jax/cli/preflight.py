"""Compile the train step for a TPU slice that is not here: does it fit, what does it cost?"""

import argparse

from dmfnet_jax.cli.arguments import add_config, read_config, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  parser.usage = "%(prog)s --config FILE.py --topology KIND:SHAPE [--config.FIELD=VALUE ...]"
  parser.description = f"{__doc__} Exit code 0 where it fits, 1 where it does not."
  parser.add_argument(
    "--topology", metavar="KIND:SHAPE", required=True, help="such as v5e:16x16, v6e:2x2, v4:2x2x2"
  )
  parser.add_argument(
    "--num-slices", metavar="N", type=whole(1), default=1, help="slices of that shape"
  )
  parser.add_argument(
    "--find-batch", action="store_true", help="find the largest batch per chip that fits"
  )
  add_config(parser)


def run(args: argparse.Namespace) -> int:
  """Compiles; returns the exit code."""
  config = read_config(args)
  from dmfnet_jax.preflight import preflight

  return preflight(config, args.topology, num_slices=args.num_slices, find_batch=args.find_batch)
