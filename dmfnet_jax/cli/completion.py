"""Print the completion of this command for a shell."""

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the shell."""
  parser.add_argument(
    "shell", choices=("bash", "zsh"), help="the completion is printed, for a file that it reads"
  )


def run(args: argparse.Namespace) -> None:
  """Prints the completion."""
  import shtab

  from dmfnet_jax.cli import build_parser

  parser = build_parser()
  _complete_files(parser, shtab.FILE)
  print(shtab.complete(parser, args.shell))


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
  """Completes every text that is not one of a few words as a path: most are."""
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for command in action.choices.values():
        _complete_files(command, files)
    elif action.nargs != 0 and action.choices is None and action.type is None:
      action.complete = files  # type: ignore[attr-defined]  # where shtab looks for it
