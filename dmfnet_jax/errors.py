"""The one exception that stands for a user's mistake, and what its messages share."""

from collections.abc import Iterable
from typing import Any


class UserError(Exception):
  """A mistake that the user can mend: one line that says what is wrong, where, and what to do.

  The command line prints the message without a traceback; in Python it is an ordinary exception.
  """


def why_failed(error: UserError | MemoryError, what: str) -> str:
  """Why one pair of many failed, in a line.

  Args:
    error: what was raised for it.
    what: that which did not fit, where the memory was full: "the pictures".
  """
  return f"{what} do not fit the memory" if isinstance(error, MemoryError) else str(error)


def one_line(error: Exception) -> str:
  """What an error of a library says, in one line; its type's name where it says nothing."""
  return " ".join(str(error).split()) or type(error).__name__


def check_choice(field: str, value: Any, known: Iterable[Any]) -> None:
  """Raises a `UserError` where a config field's value is none of those that there are."""
  if value not in known:
    raise UserError(f"config.{field} is one of {', '.join(map(repr, known))}, not {value!r}")
