r"""`dmfnet preflight` for several topologies or recipes in turn: will this step fit that slice?

    python launch/preflight.py --topology v5e:2x2 --topology v6e:16x16 -- \
        --config configs/stage1.py --config.batch_size=1024 --config.remat=True

Needs `pip install -e ".[preflight]"` and no TPU. What stands behind -- goes to every
`dmfnet preflight`. Exit code: 0 where every one fits, else the highest one.
"""

import argparse
import sys
from collections.abc import Sequence

from dmfnet_jax.cli import main as dmfnet


def main(argv: Sequence[str] | None = None) -> int:
  """Runs `dmfnet preflight` for each topology; returns the highest exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--topology", action="append", required=True, metavar="KIND:SHAPE")
  parser.add_argument("options", nargs=argparse.REMAINDER, help="after --: for every one")
  args = parser.parse_args(argv)
  options = args.options[1:] if args.options[:1] == ["--"] else args.options
  return max(dmfnet(["preflight", "--topology", name, *options]) for name in args.topology)


if __name__ == "__main__":
  sys.exit(main())
