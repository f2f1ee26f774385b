"""The `dmfnet` command: parses, calls one function per sub-command, turns errors into exit codes.

Each sub-command is a module here: what its help says, `add_arguments(parser)` and `run(args)`. Only
the standard library is imported before `run`, so that `dmfnet --help` and a mistyped option answer
at once.

Exit codes: 0 all done; 1 some pairs failed; 2 wrong usage, or nothing could be done; 130
interrupted; 141 the reader of the output went away.
"""

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence

import dmfnet_jax
from dmfnet_jax.cli.fuse import join_values
from dmfnet_jax.errors import UserError
from dmfnet_jax.messages import say

COMMANDS = (
  "demo",
  "models",
  "fuse",
  "synthesize",
  "classify",
  "export",
  "evaluate",
  "compare",
  "train",
  "preflight",
  "data",
  "convert",
  "report",
  "serve",
  "completion",
)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: the arguments after the program's name; by default those of the process.

  Returns:
    The exit code. A user's mistake gives one line on stderr; any other exception is a bug and
    keeps its traceback.
  """
  # Pillow's remarks on damaged files, whose errors we report, would stand between our own lines.
  warnings.filterwarnings("ignore", module=r"PIL\.")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # nor are TensorFlow's start-up notes ours
  try:
    code = _run(sys.argv[1:] if argv is None else argv)
    sys.stdout.flush()  # here, so that a closed pipe is noticed inside this `try`
    return code
  except SystemExit as stop:  # argparse: 0 after --help, 2 after wrong usage
    return stop.code if isinstance(stop.code, int) else 2
  except UserError as error:
    say(f"error: {error}")
    return 2
  except KeyboardInterrupt:
    say("interrupted")
    return 130
  except BrokenPipeError:
    if not _drop_closed_output():
      raise  # another pipe than our output's: a bug or a lost worker process
    return 141


def _run(argv: Sequence[str]) -> int:
  parser = build_parser()
  args, rest = parser.parse_known_args(join_values(argv))
  if rest and not args.takes_rest:
    parser.error(f"unrecognized arguments: {' '.join(rest)}")
  args.rest = rest
  return int(args.run(args) or 0)


def build_parser() -> argparse.ArgumentParser:
  """Returns the parser of the whole command; each sub-command sets `run`."""
  parser = argparse.ArgumentParser(
    prog="dmfnet",
    description="Fuses registered medical images: MRI (A) with CT, PET or SPECT (B).",
    allow_abbrev=False,
  )
  parser.add_argument("--version", action="version", version=f"dmfnet {dmfnet_jax.__version__}")
  commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
  for name in COMMANDS:
    module = importlib.import_module(f"{__name__}.{name}")
    about = module.__doc__
    command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
    command.set_defaults(run=module.run, takes_rest=False, plugin=())
    module.add_arguments(command)
  return parser


def _drop_closed_output() -> bool:
  """Tells whether the reader of stdout or stderr is gone, and if so silences that stream."""
  dropped = False
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.write("\n")  # only a write can tell
      stream.flush()
    except BrokenPipeError:
      # Python flushes once more when it ends: that flush must find somewhere to write to.
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
      dropped = True
  return dropped
