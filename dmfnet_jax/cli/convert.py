"""Convert a method's published PyTorch weights into one model file."""

import argparse

from dmfnet_jax.cli.arguments import add_plugin, start_jax
from dmfnet_jax.errors import UserError

_OLD_FLAGS = ("unet", "fusion_head")  # of the oldest method's parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  parser.usage = (
    "%(prog)s [METHOD] PART=FILE... -o MODEL.safetensors [--config.SECTION.FIELD=VALUE ...]"
  )
  parser.add_argument("-o", "--out", metavar="MODEL.safetensors", required=True, help="to write")
  parser.add_argument(
    "words",
    metavar="[METHOD] PART=FILE",
    nargs="*",
    help="the method (by default the oldest) and its published files by their parts, which the "
    "error lists where one is wrong; --config.SECTION.FIELD=VALUE sets what no file tells",
  )
  for part in _OLD_FLAGS:
    parser.add_argument(f"--{part.replace('_', '-')}", help=argparse.SUPPRESS)
  add_plugin(parser)
  parser.set_defaults(takes_rest=True)


def run(args: argparse.Namespace) -> None:
  """Converts."""
  words = args.words + args.rest  # what stands behind an option is left over by the parser
  method = words.pop(0) if words and not set("=-") & set(words[0]) else None
  files = {part: getattr(args, part) for part in _OLD_FLAGS if getattr(args, part)}
  overrides: dict[str, str] = {}
  for word in words:
    name, equals, value = word.removeprefix("--config.").partition("=")
    given = overrides if word.startswith("--config.") else files
    if not equals or name in given or name.startswith("-"):
      raise UserError(f"{word}: give each file once as PART=FILE, fields as --config.FIELD=VALUE")
    given[name] = value
  start_jax(args)
  from dmfnet_jax import methods
  from dmfnet_jax.weights.convert import convert

  convert(method or methods.OLDEST, files, args.out, overrides)
