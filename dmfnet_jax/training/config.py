"""Reads a config file and its overrides from the command line."""

import re
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

import dmfnet_jax.configs  # installed from the top level: see setup.py
from dmfnet_jax.errors import UserError
from dmfnet_jax.methods import parts

_INSTALLED = Path(dmfnet_jax.configs.__file__).parent


def parse_config(arguments: Sequence[str]) -> ml_collections.ConfigDict:
  """Parses `--config FILE[:ARGUMENTS] [--config.field=value ...]`.

  A path that does not exist is looked for among the configs that are installed with the package,
  so `configs/dmfnet.py:size=small` works outside a checkout too. Modules whose parts the config
  names are allowed (see `methods.parts`): whoever runs the command has named them.

  Args:
    arguments: the command line's words.

  Returns:
    The locked config.

  Raises:
    UserError: no such file, a field that the config does not have, a value of another type.
  """
  arguments = _in_one_word(arguments)
  values = flags.FlagValues()
  words = ["dmfnet train", *arguments]
  config_flags.DEFINE_config_file(
    "config", None, "The config file.", flag_values=values, sys_argv=words
  )
  try:
    rest = values(words)[1:]
    if rest:
      raise UserError(f"unexpected argument {rest[0]!r}: overrides are --config.FIELD=VALUE")
    config = values.config
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    raise UserError(f"in the config: {_one_line(error)}") from error
  if config is None:
    raise UserError("give a config file, such as --config configs/dmfnet.py:size=tiny")
  parts.allow(parts.modules_named(config.to_dict()))
  return config


def _in_one_word(arguments: Sequence[str]) -> list[str]:
  """Turns `--config FILE` into one word, with the file's path resolved, and old names into new."""
  words: list[str] = []
  rest = iter(arguments)
  for word in rest:
    if word == "--config":
      word = f"--config={next(rest, '')}"
    if word.startswith("--config="):
      file, colon, variant = word.removeprefix("--config=").partition(".py:")
      name = f"{file}.py" if colon else file
      word = f"--config={_find(name)}" + (f":{variant}" if colon else "")
    words.append(re.sub(r"^--config\.stage1(?==|$)", "--config.start", word))
  return words


def _find(name: str) -> Path:
  path = Path(name)
  tail = path.parts[path.parts.index("configs") + 1 :] if "configs" in path.parts else path.parts
  for candidate in (path, _INSTALLED.joinpath(*tail)):
    if candidate.is_file():
      return candidate
  known = sorted(p.name for p in _INSTALLED.glob("*.py") if p.stem not in ("__init__", "common"))
  raise UserError(f"no config file {name!r}; installed configs: {', '.join(known)}")


def _one_line(error: Exception) -> str:
  text = str(error)
  # What a config file raises comes with its traceback inside.
  raised = re.search(r"Traceback .*\n\w+(?:Error|Exception): (.+)$", text, re.DOTALL)
  if raised:
    text = raised[1]
  near = re.search(r'Did you mean "(.+?)" instead of "(.+?)"', text)
  if near:
    return f"there is no field {near[2]!r}; did you mean {near[1]!r}?"
  if isinstance(error, KeyError | AttributeError):
    return f"there is no field {text.strip(chr(34) + chr(39))!r}"
  return " ".join(text.split())
