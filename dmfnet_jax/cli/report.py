"""Write one HTML file to judge fused pictures, or a training run, in any browser."""

import argparse

from dmfnet_jax.cli.arguments import add_plugin, start_jax, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  parser.usage = "%(prog)s (A B FUSED | WORKDIR) -o REPORT.html [options]"
  parser.add_argument(
    "sources",
    metavar="SOURCE",
    nargs="+",
    help="A B FUSED: three folders of pictures and volumes that share their stems, or three files; "
    "or the workdir of a training run",
  )
  parser.add_argument("-o", "--out", metavar="REPORT.html", required=True, help="to write")
  parser.add_argument("--title", metavar="TEXT", help="the heading (by default the folder's name)")
  parser.add_argument(
    "--pictures",
    metavar="N",
    type=whole(0),
    default=500,
    help="pairs or slices shown in pictures, worst first; the others in the table (%(default)s)",
  )
  add_plugin(parser)


def run(args: argparse.Namespace) -> int:
  """Reports; returns the exit code."""
  start_jax(args)
  from dmfnet_jax.report import write_report

  return write_report(args.sources, args.out, title=args.title, max_pictures=args.pictures)
