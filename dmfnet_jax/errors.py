"""The one exception that stands for a user's mistake."""


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
