"""Prepare a dataset for training."""

import argparse

from dmfnet_jax.data.datasets import DATASETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the steps, of which there is one, and its arguments."""
  steps = parser.add_subparsers(title="steps", metavar="STEP", required=True)
  about = "Read a dataset's files once and write it in the form that training reads."
  known = "\n".join(f"  {name:16} {dataset.about}" for name, dataset in DATASETS.items())
  prepare = steps.add_parser(
    "prepare",
    help=about,
    description=about,
    epilog=f"datasets:\n{known}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  prepare.add_argument("name", metavar="NAME", choices=[*DATASETS], help="one of those below")
  prepare.add_argument("--data-dir", metavar="DIR", required=True, help="where to write it")
  brought = ", ".join(name for name, dataset in DATASETS.items() if dataset.brings)
  prepare.add_argument(
    "--manual-dir", metavar="DIR", help=f"where your pictures lie; {brought} needs none"
  )


def run(args: argparse.Namespace) -> None:
  """Prepares a dataset."""
  from dmfnet_jax.data.builders import prepare

  prepare(args.name, args.data_dir, args.manual_dir)
