"""What Ray costs: `launch/ray_fuse.py` beside `dmfnet fuse`, for the same small pairs.

  python tests/benchmarks/bench_ray.py [--pairs 2000] [--size 64] [--model small-fast]

Each is a process of its own, from its start to its end; what they compile is in the cache before.
They take turns, so that what else the machine does meets both. Prints the medians of the whole
time, of the start (of `--few` pairs, less their share), and what Ray adds for
each pair. Then how long reading a list, its records and leaving out what is done take for so many
rows (`--rows`), without fusing.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "launch")]

import measuring  # noqa: E402
import ray_fuse  # noqa: E402

from dmfnet_jax.fusing.options import FuseOptions  # noqa: E402
from dmfnet_jax.io import pictures  # noqa: E402

_COMMANDS = {
  "dmfnet fuse": [sys.executable, "-m", "dmfnet_jax", "fuse"],
  "ray_fuse.py": [sys.executable, str(ROOT / "launch" / "ray_fuse.py")],
}


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--pairs", type=int, default=2000)
  parser.add_argument("--size", type=int, default=64)
  parser.add_argument("--model", default="small-fast")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--few", type=int, default=16, help="pairs of the runs that show the start")
  parser.add_argument("--rows", type=int, default=1_000_000)
  args = parser.parse_args()
  print(measuring.machine(), flush=True)
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    seconds: dict[tuple[str, int], list[float]] = {}
    for count in (args.few, args.pairs):
      _write_pairs(folder / str(count), count, args.size)
    for repeat in range(args.repeats + 1):  # the first fills the cache, by the few pairs
      for count in (args.few, args.pairs) if repeat else (args.few,):
        for label, command in _COMMANDS.items():
          out = folder / f"{label} {count} {repeat}"
          taken = _run([*command, "--model", args.model], folder / str(count), out)
          if repeat:
            seconds.setdefault((label, count), []).append(taken)
  medians = {key: statistics.median(values) for key, values in seconds.items()}
  print(f"{args.pairs} pairs of {args.size} x {args.size} with {args.model}")
  print(f"medians of {args.repeats}    {'all':>8} {'start':>8} {'a pair':>10}")
  for label in _COMMANDS:
    whole, few = (medians[label, count] for count in (args.pairs, args.few))
    each = (whole - few) / (args.pairs - args.few)
    print(f"{label:16} {whole:8.1f} s {few - args.few * each:6.1f} s {1000 * each:7.1f} ms")
  whole = [medians[label, args.pairs] for label in _COMMANDS]
  print(f"Ray adds {100 * (whole[1] / whole[0] - 1):.0f} %", flush=True)
  with tempfile.TemporaryDirectory() as name:
    _time_list(Path(name), args.rows)


def _write_pairs(folder: Path, count: int, size: int) -> None:
  rng = np.random.default_rng(0)
  for side in ("a", "b"):
    (folder / side).mkdir(parents=True)
    for i in range(count):
      picture = rng.integers(0, 256, (size, size), np.uint8)
      pictures.write_image(folder / side / f"{i:06}.png", picture)


def _run(command: list[str], pairs: Path, out: Path) -> float:
  words = [*command, str(pairs / "a"), str(pairs / "b"), "-o", str(out)]
  # By itself Ray lets all others of the machine go first, which says nothing of what it costs.
  environment = os.environ | {"RAY_worker_niceness": "0"}
  begin = time.perf_counter()
  subprocess.run(words, check=True, capture_output=True, env=environment)
  return time.perf_counter() - begin


def _time_list(folder: Path, rows: int) -> None:
  """What the driver does before the first pair; half of the rows have records."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  names = [f"{i:08}.png" for i in range(rows)]
  table = {side: [f"s3://bucket/{side}/{name}" for name in names] for side in ("mri", "pet")}
  pq.write_table(pa.table({"a": table["mri"], "b": table["pet"]}), folder / "pairs.parquet")
  (folder / "records").mkdir()
  part = 128
  for start in range(0, rows // 2, part):
    keys = [name[:-4] for name in names[start : start + part]]
    done = pa.table({"key": keys, "status": ["fused"] * len(keys)})
    pq.write_table(done, folder / "records" / f"{start:09}.parquet")
  begin = time.perf_counter()
  listed, _ = ray_fuse.read_pairs(
    [], str(folder / "pairs.parquet"), str(folder / "out"), FuseOptions()
  )
  read = time.perf_counter()
  fused, _ = ray_fuse.read_records(sorted((folder / "records").iterdir()))
  recorded = time.perf_counter()
  left = ray_fuse._select(listed, fused, invert=True)
  end = time.perf_counter()
  size = sum(path.stat().st_size for path in (folder / "records").iterdir())
  print(f"a list of {rows:,} rows, half of them in {len(fused) // part:,} parts of records")
  print(f"reading the list   {read - begin:6.1f} s, {listed.nbytes / 1e6:.0f} MB")
  print(
    f"reading records    {recorded - read:6.1f} s, {size / max(len(fused), 1):.0f} bytes a pair"
  )
  print(f"leaving out done   {end - recorded:6.1f} s, {left.num_rows:,} rows left")


if __name__ == "__main__":
  main()
