"""What the commands say beside their answer."""

import sys
from collections.abc import Sequence


def first_of(names: Sequence[str]) -> str:
  """Lists the first ten of any number of names."""
  return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def say(message: str) -> None:
  """Prints one line on standard error, behind the program's name and above a progress bar."""
  line = f"dmfnet: {message}"
  if "tqdm" in sys.modules:  # without it there is no bar, and its import would take its time
    sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
  else:
    print(line, file=sys.stderr, flush=True)
