"""The methods by name. A method's module is loaded when it is asked for."""

import importlib
import pkgutil
from collections.abc import Sequence

from dmfnet_jax.errors import UserError
from dmfnet_jax.methods import parts
from dmfnet_jax.methods.method import Method

OLDEST = "dmfnet"
"""The method of model files and checkpoints that name none: there was one."""

# What is no method, although it stands in this folder.
_OTHERS = frozenset({"method", "parts", "pixelwise"})


def names() -> Sequence[str]:
  """The methods that there are, sorted: each file or folder here that is named after one."""
  return sorted(
    module.name for module in pkgutil.iter_modules(__path__) if module.name not in _OTHERS
  )


def without_weights() -> Sequence[str]:
  """The methods that have no networks, so that their name is a model; it loads all methods."""
  return [name for name in names() if not get(name).networks]


def in_tiles(method: Method) -> str:
  """What tiles of a method's pictures give, see `Method.in_tiles`: "same", "close" or "no"."""
  if method.in_tiles is not None:
    return method.in_tiles
  has_vectors = any(field.is_vector for field in method.outputs)
  return "no" if method.is_random or has_vectors else "close"


def get(name: str) -> Method:
  """The method of a name: its module's `METHOD`; or "module:attribute", one of a user's own.

  Raises:
    UserError: there is none, and the message lists those that there are; or see `parts.find`.
  """
  if parts.is_foreign(name):
    found = parts.find("method", name, {})
    if not isinstance(found, Method):
      raise UserError(f"{name} is no method: it is a {type(found).__name__}")
    return found
  if name not in names():
    raise UserError(f"unknown method {name!r}: give one of {', '.join(names())}")
  return importlib.import_module(f"{__name__}.{name}").METHOD
