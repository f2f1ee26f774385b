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

  prepare.add_argument(
    "--option",
    metavar="NAME=VALUE",
    action="append",
    default=[],
    help="of this dataset, such as axis=coronal of paired_volumes; more than one if wanted",
  )
  prepare.add_argument(
    "--workers", metavar="N", type=int, default=1, help="processes, of paired_volumes (%(default)s)"
  )
  prepare.add_argument(
    "--beam-options",
    metavar="FLAGS",
    default="",
    help="Apache Beam's flags in one word, to run on a cluster instead",
  )


def run(args: argparse.Namespace) -> None:
  """Prepares a dataset."""
  from dmfnet_jax.data.builders import prepare
  from dmfnet_jax.errors import UserError

  options = dict(option.partition("=")[::2] for option in args.option)
  if bad := [option for option in args.option if "=" not in option]:
    raise UserError(f"--option {bad[0]}: write NAME=VALUE")
  parallel = {"workers": args.workers, "beam_options": args.beam_options}
  prepare(args.name, args.data_dir, args.manual_dir, **parallel, **options)
