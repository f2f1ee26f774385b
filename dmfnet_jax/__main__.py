"""`python -m dmfnet_jax` is the `dmfnet` command."""

import sys

from dmfnet_jax.cli import main

if __name__ == "__main__":
  sys.exit(main())
