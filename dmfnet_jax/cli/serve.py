"""Serve a page in the browser to fuse a pair: upload or pick, look, download."""

import argparse

from dmfnet_jax.cli.arguments import add_plugin, start_jax, whole
from dmfnet_jax.cli.fuse import add_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  add_option(parser, "model")
  parser.add_argument(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    help="the address to listen on; 0.0.0.0 lets in whoever reaches this machine (%(default)s)",
  )
  parser.add_argument(
    "--port",
    type=whole(0, 65535),
    default=7860,
    help="0: the first free one from 7860 on (%(default)s)",
  )
  add_plugin(parser)


def run(args: argparse.Namespace) -> None:
  """Serves until Ctrl-C."""
  start_jax(args)
  from dmfnet_jax.serve import serve

  serve(args.model, host=args.host, port=args.port)
