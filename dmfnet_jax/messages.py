"""What the commands say beside their answer."""

import sys


def say(message: str) -> None:
  """Prints one line on standard error, behind the program's name."""
  print(f"dmfnet: {message}", file=sys.stderr, flush=True)
