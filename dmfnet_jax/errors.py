"""The one exception that stands for a user's mistake."""


class UserError(Exception):
  """A mistake that the user can mend: one line that says what is wrong, where, and what to do.

  The command line prints the message without a traceback; in Python it is an ordinary exception.
  """
