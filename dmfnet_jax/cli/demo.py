"""Fuse a few simulated pairs, with no data to bring, and show them."""

import argparse

from dmfnet_jax.cli.arguments import start_jax


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  parser.add_argument(
    "--out", metavar="DIR", default="demo", help="folder to write to (%(default)s)"
  )


def run(args: argparse.Namespace) -> None:
  """Fuses the pairs."""
  start_jax(args)
  from dmfnet_jax.demo import demo

  demo(args.out)
