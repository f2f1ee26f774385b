"""A part of a method by its name: one of the method's own, or a user's from a module.

A config may name a part "my_module:MyAttention". Such a name alone imports nothing: a model file
from elsewhere must not run code by naming a module. The module is imported only where the caller
has allowed it too: `--plugin my_module`, `load_model(..., plugins=["my_module"])`, or by setting
the field on the command line of a training.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from dmfnet_jax.errors import UserError, one_line

_allowed: set[str] = set()


def allow(modules: Iterable[str]) -> None:
  """Lets configs name parts of these modules, in this process."""
  _allowed.update(modules)


def modules_named(config: Mapping[str, Any]) -> set[str]:
  """The modules of the foreign parts that a config names anywhere."""
  found = set()
  for value in config.values():
    if isinstance(value, Mapping):
      found |= modules_named(value)
    elif is_foreign(value):
      found.add(value.partition(":")[0])
  return found


def is_foreign(name: Any) -> bool:
  """Whether a name is of the form module:attribute."""
  if not isinstance(name, str):
    return False
  module, colon, attribute = name.partition(":")
  return bool(colon) and attribute.isidentifier() and all(map(str.isidentifier, module.split(".")))


def find(field: str, name: str, known: Mapping[str, Any]) -> Any:
  """Finds a part.

  Args:
    field: the config field that names it, for errors.
    name: a key of `known`, or "module:attribute".
    known: the method's own parts.

  Raises:
    UserError: there is no such part, or its module was not allowed or cannot be imported.
  """
  if name in known:
    return known[name]
  if not is_foreign(name):
    raise UserError(
      f"config.{field} is one of {', '.join(map(repr, known))} or a part of yours as "
      f"'my_module:MyPart', not {name!r}"
    )
  module, _, attribute = name.partition(":")
  if module not in _allowed:
    raise UserError(
      f"the model's {field} is {name}, which is not part of this program: if you trust it, allow "
      f"it by --plugin {module} (in Python: plugins=[{module!r}])"
    )
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())  # the command's own path begins where it is installed
  try:
    found = getattr(importlib.import_module(module), attribute)
  except Exception as error:  # whatever the user's module raises
    reason = one_line(error)
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
      reason += f"; run where {module.partition('.')[0]} lies, or name its folder in PYTHONPATH"
    raise UserError(f"config.{field}={name}: cannot import it: {reason}") from error
  if known and not callable(found):  # without others it is a whole method, a record
    raise UserError(
      f"config.{field}={name} is a {type(found).__name__}: name a class or a function"
    )
  return found
