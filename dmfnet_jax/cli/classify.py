"""Tell the classes of skin lesions from two photographs and a table: for research only."""

import argparse

from dmfnet_jax.cli.arguments import add_plugin, start_jax, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  parser.add_argument("a", metavar="CLINICAL", help="the clinical photograph, or a folder of them")
  parser.add_argument(
    "b", metavar="DERMOSCOPIC", help="the dermoscopic one; in folders they share their stem"
  )
  parser.add_argument(
    "--metadata",
    metavar="TABLE.csv",
    required=True,
    help="what is known besides: a row with a heading; of folders rows with a column `name`",
  )
  parser.add_argument(
    "--model", metavar="FILE|WORKDIR", required=True, help="there is no released one"
  )
  parser.add_argument("-o", "--out", metavar="FILE.json", help="write the probabilities here, too")
  parser.add_argument(
    "--batch-size", type=whole(1), metavar="N", help="how many at a time, over all devices"
  )
  add_plugin(parser)


def run(args: argparse.Namespace) -> int:
  """Classifies; returns the exit code."""
  start_jax(args)
  from dmfnet_jax.fusing.classification import classify_files

  return classify_files(
    args.a,
    args.b,
    args.metadata,
    model=args.model,
    out=args.out,
    batch_size=args.batch_size,
    plugins=args.plugin,
  )
