"""What a large job costs before its first pair: matching two folders, leaving out what is there.

  python tests/benchmarks/bench_jobs.py [--pairs 100000]

The files are empty, since neither step opens one. Half of the results exist. CPU seconds, and the
process's memory above what it took before.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import measuring  # noqa: E402

from dmfnet_jax.fusing.match import match_pairs  # noqa: E402
from dmfnet_jax.fusing.resume import unfinished  # noqa: E402
from dmfnet_jax.io import paths  # noqa: E402


def peak_bytes() -> int:
  """The most memory that this process has had."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
  """Prints a line for each step."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pairs", type=int, default=100_000)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folders = [Path(name) / part for part in ("mri", "pet", "fused")]
    for folder in folders:
      folder.mkdir()
      for i in range(args.pairs // 2 if folder.name == "fused" else args.pairs):
        (folder / f"{i:08}.png").touch()
    print(f"{args.pairs:,} pairs, half of them fused already")
    print(measuring.machine(), flush=True)
    before, begin = peak_bytes(), time.process_time()
    pairs = match_pairs(*folders).pairs
    matched = time.process_time()
    left = unfinished(pairs, {path.name for path in paths.list_files(folders[-1])})
    end = time.process_time()
    assert len(left) == args.pairs - args.pairs // 2
    print(f"matching                 {matched - begin:6.2f} s")
    print(f"leaving out what is there {end - matched:5.2f} s")
    print(f"memory for both          {(peak_bytes() - before) / 1e6:6.0f} MB")


if __name__ == "__main__":
  main()
