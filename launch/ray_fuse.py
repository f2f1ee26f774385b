r"""Fuses pictures by the million with Ray: on this machine, or on all machines of a cluster.

    pip install -e ".[ray]"
    python launch/ray_fuse.py MRI PET -o FUSED                       # two folders
    python launch/ray_fuse.py --pairs pairs.parquet -o s3://bucket/fused --address auto

Results are those of `dmfnet fuse`, byte for byte: its code reads, fuses and writes. Each device has
one worker, which holds the model and takes the pairs in parts. When all pairs of a part are done,
their records become one Parquet file; every file in the folder of records is complete, and they
have the same columns:

    key      the pair's name
    status   "fused" or "failed"
    reason   why it failed, or ""
    seconds  the time of its part, divided by the pairs of the part
    ...      with --metrics, those of `dmfnet evaluate`

Run it again and it goes on: a pair that has a record is not fused again. A lost worker's part is
given to another one. Progress and the reasons of failed pairs are shown.

Exit code: 0 where all pairs are fused, 1 where some failed, 2 where nothing could be done.
"""

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import importlib.util
import io
import itertools
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dmfnet_jax.cli.arguments import add_plugin, start_jax, whole
from dmfnet_jax.cli.fuse import add_option, join_values
from dmfnet_jax.errors import UserError, one_line
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.io import paths
from dmfnet_jax.messages import first_of, say

_OPTIONS = (
  *("model", "seed", "batch_size", "samples", "overlay", "emphasis", "tile", "strict", "precision"),
  *("suffix_a", "suffix_b", "window_a", "window_b", "window_c", "lut"),
)
_FUSED, _FAILED = "fused", "failed"
LOST = "its worker was lost each time: Ray's logs say why"
_STOPPED = "stopped"  # in place of records: nothing can be fused
_ROWS = 100_000  # of a list, read at a time
_MAX_TASKS = 4096  # of Ray: it holds each in memory
_MAX_REMARKS = 20


def main(argv: Sequence[str] | None = None) -> int:
  """Fuses; returns the exit code."""
  warnings.filterwarnings("ignore", module=r"PIL\.")
  try:
    args = _parser().parse_args(join_values(sys.argv[1:] if argv is None else argv))
    return run(args)
  except UserError as error:
    say(f"error: {error}")
    return 2
  except KeyboardInterrupt:
    say("interrupted: the same command goes on")
    return 130


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument(
    "sources", metavar="A B", nargs="*", help="folders of pictures, as `dmfnet fuse` takes them"
  )
  parser.add_argument("-o", "--out", required=True, help="the folder of the results")
  parser.add_argument(
    "--pairs",
    metavar="FILE",
    help="a list in place of A and B: CSV as for `dmfnet fuse`, or a Parquet file or folder with "
    "the columns a, b and, if wanted, name; paths begin at the list's folder",
  )
  parser.add_argument("--records", metavar="FOLDER", help="the folder of the records (OUT/records)")
  parser.add_argument("--metrics", action="store_true", help="also measure what was fused")
  parser.add_argument("--retry-failed", action="store_true", help="also those that failed before")
  parser.add_argument(
    "--part",
    type=whole(1),
    default=128,
    metavar="N",
    help="pairs of a part, which a lost worker's successor repeats (%(default)s)",
  )
  ray = parser.add_argument_group("Ray")
  ray.add_argument("--address", help="of a cluster, or auto; by default Ray starts on this machine")
  ray.add_argument(
    "--device",
    choices=("cpu", "gpu", "tpu"),
    help="of which each worker has one (by default GPUs or TPU chips where the cluster has any; on "
    "CPUs a worker has a machine)",
  )
  ray.add_argument("--cpus", type=whole(1), metavar="N", help="cores of each worker on CPUs")
  ray.add_argument("--workers", type=whole(1), metavar="N", help="at most so many")
  fusing = parser.add_argument_group("as for dmfnet fuse")
  for name in _OPTIONS:
    add_option(fusing, name)
  add_plugin(fusing)
  return parser


def run(args: argparse.Namespace) -> int:
  """Fuses what has no record yet; returns the exit code."""
  if (args.pairs is None) == (not args.sources) or len(args.sources) == 1:
    raise UserError("give the folders A and B, or a list by --pairs")
  if importlib.util.find_spec("ray") is None:
    raise UserError("needs Ray: pip install 'dmfnet_jax[ray]'")
  options = FuseOptions(**{name: getattr(args, name) for name in _OPTIONS}, resume=True)
  table, options = read_pairs(args.sources, args.pairs, args.out, options)
  _connect(args.address)  # before JAX, whose threads bear no fork

  import jax

  from dmfnet_jax.fusing import files, resume
  from dmfnet_jax.fusing.familiar import Familiarity

  # Only to see whether it is there and does this: it would take a GPU's memory from the workers.
  jax.config.update("jax_platforms", "cpu")
  start_jax(args)
  sources = 2 + len(table["further"][0])
  model = files.load(options, sources)
  out, records = paths.as_path(args.out), paths.as_path(args.records or f"{args.out}/records")
  for folder in (out, records):
    paths.make_folder(folder)
  model_sha256 = model.fingerprint()
  parts = _parts(records)
  resume.compare_or_leave_record(out, options, model_sha256, {path.name for path in parts})
  first = itertools.islice(table.to_reader(1), 10_000)
  familiarity = Familiarity(options.model, model.trained_on)
  familiarity.check_names(pair for row in first for pair in _pairs(row, out))

  job = Job(
    *(options, os.fspath(out), os.fspath(records), model_sha256, args.metrics, sources),
    plugins=tuple(args.plugin),
    cores=args.cpus,
  )
  fused, failed = read_records(parts)
  kept = fused if args.retry_failed else [*fused, *failed]
  left = _select(table, kept, invert=True)
  earlier, failures = _select(table, fused).num_rows, 0
  if not args.retry_failed:
    failures = _select(table, failed).num_rows
  done = earlier
  if left.num_rows:
    now_fused, now_failed = _fuse(args, job, left)
    done, failures = done + now_fused, failures + now_failed
  told = f", {earlier} of them earlier" if earlier else ""
  say(f"{done} of {table.num_rows} pairs fused into {args.out}{told}; records in {records}")
  if failures:
    say(f"{failures} failed: the records say why; --retry-failed fuses them again")
  return 1 if failures else 0


@dataclasses.dataclass(frozen=True)
class Job:
  """What a worker must know.

  Attributes:
    options: how to fuse.
    out: the folder of the results.
    records: the folder of the records.
    model_sha256: the model's fingerprint.
    with_metrics: whether the results are measured.
    sources: of each pair.
    plugins: modules whose parts the model may name.
    folder: where relative paths begin.
    cores: JAX devices of a worker on CPUs; None: as many as it finds.
    run: begins the names of this run's records: later runs come behind earlier ones.
  """

  options: FuseOptions
  out: str
  records: str
  model_sha256: str
  with_metrics: bool
  sources: int = 2
  plugins: tuple[str, ...] = ()
  folder: str = dataclasses.field(default_factory=os.getcwd)
  cores: int | None = None
  run: str = dataclasses.field(
    default_factory=lambda: datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%f")
  )


# --- What there is to do ---------------------------------------------------------------------


def read_pairs(
  sources: Sequence[str], place: str | None, out: str, options: FuseOptions
) -> tuple[Any, FuseOptions]:
  """All pairs: a `pyarrow.Table` of key, a, b, further (a list of paths), and the full options.

  No picture is opened. Of a list it is not asked whether its files exist: that is a request for
  each. A pair without its files fails.

  Raises:
    UserError: there are none, or two of one name, or they are no pictures.
  """
  import pyarrow as pa

  if place is None:
    from dmfnet_jax.fusing.files import find_pairs

    pairs, options = find_pairs(sources[0], sources[1], out, options, sources[2:])
    if volumes := [pair.stem for pair in pairs if pair.is_volume]:
      raise UserError(f"volumes, which `dmfnet fuse` takes: {first_of(volumes)}")
    found = ((pair.stem, pair.a, pair.b, [path for _, path in pair.further]) for pair in pairs)
  else:
    _ = options.windows, options.table  # a mistyped one is noticed here
    found = _listed(paths.as_path(place), paths.as_path(out), options)
  schema = pa.schema(
    {"key": pa.string(), "a": pa.string(), "b": pa.string(), "further": pa.list_(pa.string())}
  )
  chunks = []
  while rows := list(itertools.islice(found, _ROWS)):
    columns = [*zip(*((k, str(a), str(b), list(map(str, c))) for k, a, b, c in rows), strict=True)]
    chunks.append(pa.table(list(map(list, columns)), schema=schema))
  if not chunks:
    raise UserError(f"{place}: holds no pair")
  table = pa.concat_tables(chunks)
  count = table.group_by("key").aggregate([("a", "count")])
  twice = count.filter(pa.compute.field("a_count") > 1)["key"].to_pylist()
  if twice:
    raise UserError(f"{place}: names of several pairs: {first_of(sorted(twice))}: name each apart")
  return table, options


def _listed(place: Any, out: Any, options: FuseOptions) -> Iterator[tuple[str, Any, Any, tuple]]:
  """Name, A and B of a list's lines."""
  from dmfnet_jax.fusing.pairing import Naming, pair_name, read_rows, same

  naming = Naming(options.suffix_a, options.suffix_b)
  folders: set[str] = set()
  root = os.fspath(place.parent)
  is_table = place.suffix.lower() == ".parquet" or place.is_dir()
  for number, row in _parquet_rows(place) if is_table else read_rows(place):
    if not (row["a"] and row["b"]):
      raise UserError(f"{place}: line {number}: give the paths of A and of B")
    # Of millions each path object counts.
    a, b = (row[x] if paths.is_remote(row[x]) else os.path.join(root, row[x]) for x in "ab")
    stem = os.path.splitext(os.path.basename(a))[0]
    name = row["name"] or pair_name(paths.compose(stem), naming)
    if "/" in name or "\\" in name or name in (".", ".."):
      raise UserError(f"{place}: line {number}: the name {name!r} is no file's name")
    for folder in {os.path.dirname(a), os.path.dirname(b)} - folders:
      folders.add(folder)
      if same(out, folder):
        raise UserError(f"{out}: the output folder is a source folder: choose another")
    yield name, a, b, ()


def _parquet_rows(place: Any) -> Iterator[tuple[int, Mapping[str, str]]]:
  """The rows of a Parquet file, or of those of a folder, by number; as `pairing.read_rows`."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  listed = paths.list_files(place) if place.is_dir() else [place]
  number = itertools.count(1)
  for path in listed:
    try:
      file = pq.ParquetFile(io.BytesIO(paths.read_bytes(path)))
      wanted = [name for name in ("a", "b", "name") if name in file.schema_arrow.names]
      if wanted[:2] != ["a", "b"]:
        raise UserError(f"{path}: has no columns a and b")
      for batch in file.iter_batches(_ROWS, columns=wanted):
        for row in batch.to_pylist():
          yield next(number), {name: row.get(name) or "" for name in ("a", "b", "name")}
    except (pa.ArrowException, OSError) as error:
      raise UserError(f"{path}: cannot read as Parquet: {one_line(error)}") from error


def _parts(folder: Any) -> list[Any]:
  """The files of the records, the oldest first."""
  files = paths.list_files(folder, may_be_empty=True)
  return [path for path in files if path.suffix == ".parquet"]


def read_records(parts: Sequence[Any]) -> tuple[list[str], list[str]]:
  """The keys that are fused and those that failed; of several records the last one counts.

  Raises:
    UserError: a file is no part of the records.
  """
  import concurrent.futures

  import pyarrow as pa
  import pyarrow.parquet as pq

  def read(path: Any) -> Any:
    try:
      return pq.read_table(io.BytesIO(paths.read_bytes(path)), columns=["key", "status"])
    except (pa.ArrowException, OSError) as error:
      raise UserError(f"{path}: no part of the records: {one_line(error)}") from error

  with concurrent.futures.ThreadPoolExecutor(32) as pool:  # an object store answers many at once
    tables = list(pool.map(read, parts))
  last: dict[str, str] = {}
  for table in tables:
    last.update(zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True))
  keys: dict[str, list[str]] = {_FUSED: [], _FAILED: []}
  for key, status in last.items():
    keys[status].append(key)
  return keys[_FUSED], keys[_FAILED]


def _select(table: Any, keys: Sequence[str], *, invert: bool = False) -> Any:
  """The rows of some keys, or those of all others."""
  import pyarrow as pa
  import pyarrow.compute as pc

  found = pc.is_in(table["key"], value_set=pa.array(keys, pa.string()))
  return table.filter(pc.invert(found) if invert else found)


# --- The work --------------------------------------------------------------------------------


def _fuse(args: argparse.Namespace, job: Job, left: Any) -> tuple[int, int]:
  """Fuses pairs on the cluster; what a lost worker had is done again, in the end pair by pair.

  Returns:
    How many were fused, and how many failed.
  """
  import pyarrow as pa

  from dmfnet_jax.fusing.stream import Progress

  remarks: dict[str, None] = {}
  shown = 0

  def show(row: Mapping[str, Any]) -> None:
    nonlocal shown
    shown += 1
    for remark in row.get("remarks") or ():
      if remark not in remarks and len(remarks) <= _MAX_REMARKS:
        remarks[remark] = None
        say(remark if len(remarks) <= _MAX_REMARKS else "further remarks are not shown")
    if row["status"] == _FUSED:
      progress.done()
    else:
      progress.fail(row["key"], row["reason"])

  total = left.num_rows
  with Progress(total) as progress:
    # In the end each has a worker to itself: one that ends its worker may take the next along.
    for size, alone in ((args.part, False), (args.part, False), (1, False), (1, True)):
      shares = [left.slice(i, 1) for i in range(left.num_rows)] if alone else [left]
      for share in shares:
        for batch in _run(args, job, share, size):
          for row in batch.to_pylist():
            if row["status"] == _STOPPED:
              raise UserError(row["reason"])
            show(row)
      # A worker may have left its records and been lost before it could answer.
      fused, failed = _records_of(job)
      left = _select(left, [*fused, *failed], invert=True)
      progress.done(total - left.num_rows - shown)
      shown = total - left.num_rows
      if not left.num_rows:
        return len(fused), len(failed)
      if left.num_rows > max(8 * size, total // 2):
        raise UserError(
          f"workers are lost before they end a part; {shown} of {total} pairs are done: see the "
          "logs in /tmp/ray/session_latest/logs; the same command goes on"
        )
      if not alone:
        say(f"warning: workers were lost: {left.num_rows} pairs are to be done again")
    rows = [_record(key, _FAILED, LOST, 0.0) for key in left["key"].to_pylist()]
    for row in rows:
      show(row)
    _write_part(job, pa.Table.from_pylist(rows, _schema(job)))
  return len(fused), len(failed) + len(rows)


def _records_of(job: Job) -> tuple[list[str], list[str]]:
  """As `read_records`, of this run alone."""
  return read_records(
    [path for path in _parts(paths.as_path(job.records)) if path.name.startswith(job.run)]
  )


def _connect(address: str | None) -> None:
  """Starts Ray here, or joins a cluster."""
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  import ray

  how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
  starts = address in (None, "local") and "RAY_ADDRESS" not in os.environ
  if starts:
    how["include_dashboard"] = False
  for attempt in (1, 2):  # on a busy machine half a minute, its patience, may not do
    try:
      ray.init(address, **how)
      break
    except Exception as error:  # it raises that very class where it is slow to start
      if attempt == 1 and starts:
        ray.shutdown()
        continue
      where = address or "this machine"
      raise UserError(f"cannot use Ray at {where}: {one_line(error)}") from error
  # Ray Data tells of each run, and of lost workers by their tracebacks; here it is a line.
  logging.disable(logging.CRITICAL)


def _run(args: argparse.Namespace, job: Job, left: Any, size: int) -> Iterator[Any]:
  """Yields the records as Ray's workers end them; those of workers that were lost are lacking."""
  import ray

  context = ray.data.DataContext.get_current()
  context.enable_progress_bars = False
  needs, count = _needs(ray.nodes(), args)
  rows = size * -(-left.num_rows // (size * _MAX_TASKS))
  blocks = [left.slice(i, rows).combine_chunks() for i in range(0, left.num_rows, rows)]
  # That a worker was lost is not the end, that each one is lost is.
  context.max_errored_blocks = 100 + len(blocks) // 10
  workers = ray.data.ActorPoolStrategy(
    min_size=1,
    initial_size=min(count, len(blocks)),
    max_size=count,
    # A pair that ends its worker shall not take others with it.
    max_tasks_in_flight_per_actor=1 if size == 1 else None,
  )
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*ray_remote_args")  # as which these still go
    records = ray.data.from_arrow(blocks).map_batches(
      Worker,
      fn_constructor_args=(job,),
      batch_size=size,
      batch_format="pyarrow",
      compute=workers,
      # A worker that dies begins anew where there is room. What it had is done by the next pass:
      # Ray would keep it for that worker, which nothing brings back where its machine is gone.
      max_restarts=-1,
      max_task_retries=0,
      **needs,
    )
  # An answer that was lost on its way is found in the records.
  with contextlib.suppress(ray.exceptions.RayError):
    yield from records.iter_batches(batch_size=None, batch_format="pyarrow")


def _needs(nodes: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> tuple[dict, int]:
  """What a worker asks Ray for, and how many workers there are to be."""
  alive = [node["Resources"] for node in nodes if node["Alive"]]
  counts = {
    device: [int(node.get(device.upper(), 0)) for node in alive] for device in ("gpu", "tpu", "cpu")
  }
  device = args.device or next((name for name, each in counts.items() if sum(each)), "cpu")
  of_nodes = [n for n in counts[device] if n]
  if not of_nodes:
    raise UserError(f"the cluster has no {device.upper()}")
  cores = (args.cpus or min(of_nodes)) if device == "cpu" else 1
  workers = sum(n // cores for n in of_nodes)
  if not workers:
    raise UserError(f"no machine of the cluster has {cores} cores: give fewer --cpus")
  asked = {"cpu": {"num_cpus": cores}, "gpu": {"num_gpus": 1}, "tpu": {"resources": {"TPU": 1}}}
  return asked[device], min(workers, args.workers or workers)


class Worker:
  """Holds the model on a device; Ray calls it with the pairs of one part after the other."""

  def __init__(self, job: Job):
    if job.cores:
      os.environ["JAX_NUM_CPU_DEVICES"] = str(job.cores)
    start_jax(argparse.Namespace(plugin=job.plugins))
    from dmfnet_jax.fusing import files

    with contextlib.suppress(OSError):  # of no matter where all paths are absolute or remote
      os.chdir(job.folder)
    self._job = job
    self._model: Any = None
    self._cannot = ""
    try:
      self._model = files.load(job.options, job.sources)
    except UserError as error:
      self._cannot = f"a worker on {platform.node()}: {error}"

  def __call__(self, part: Any) -> Any:
    """Fuses the pairs of a part; returns their records, with what was remarked in the first.

    Where another worker has ended this part already, and its answer was lost, its records are
    returned and nothing is fused.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(self._job).append(pa.field("remarks", pa.list_(pa.string())))
    if self._model is None:
      return pa.Table.from_pylist([_record("", _STOPPED, self._cannot, 0.0)], schema)
    path = _part_path(self._job, part["key"].to_pylist())
    if path.exists():
      there = pq.read_table(io.BytesIO(paths.read_bytes(path)))
      return pa.Table.from_pylist(there.to_pylist(), schema)
    rows, remarks = self._fuse(part)
    _write_part(self._job, pa.Table.from_pylist(rows, _schema(self._job)))
    return pa.Table.from_pylist([{**rows[0], "remarks": remarks}, *rows[1:]], schema)

  def _fuse(self, part: Any) -> tuple[list[dict[str, Any]], list[str]]:
    from dmfnet_jax.fusing import files

    options, begin = self._job.options, time.monotonic()
    pairs = {pair.stem: pair for pair in _pairs(part, paths.as_path(self._job.out))}
    remarks: list[str] = []
    failures: dict[str, str] = {}

    def fuse(some: Mapping[str, Any]) -> None:
      progress = _Failures(failures)
      files.fuse_pictures(
        self._model, some, options, self._job.model_sha256, progress, remarks.append
      )

    try:
      fuse(pairs)
    except Exception:  # a fault of ours or of a library: not of the other pairs
      failures.clear()
      for key, pair in pairs.items():
        try:
          fuse({key: pair})
        except Exception as error:
          failures[key] = f"{type(error).__name__}: {one_line(error)}"
    values: Mapping[str, Mapping[str, float]] = {}
    done = {key: pair for key, pair in pairs.items() if key not in failures}
    if self._job.with_metrics and done:
      from dmfnet_jax.fusing.measure import measure

      try:
        values = measure(done).pairs
      except UserError:
        pass  # none can be measured, such as pictures that are too small
    seconds = (time.monotonic() - begin) / len(pairs)
    rows = [
      _record(key, _FAILED, failures[key], seconds)
      if key in failures
      else _record(key, _FUSED, "", seconds) | values.get(key, {})
      for key in pairs
    ]
    return rows, remarks


class _Failures:
  """Stands where `dmfnet fuse` has its bar."""

  def __init__(self, failures: dict[str, str]):
    self._failures = failures

  def done(self) -> None:
    """Nobody looks at a worker."""

  def fail(self, name: str, reason: object) -> None:
    """Keeps the reason."""
    self._failures[name] = str(reason)


def _pairs(part: Any, out: Any) -> Iterator[Any]:
  """The pairs of a table's rows."""
  from dmfnet_jax.fusing import kinds
  from dmfnet_jax.fusing.match import Pair

  for row in part.to_pylist():
    a, b, *further = map(paths.as_path, (row["a"], row["b"], *row["further"]))
    sources = tuple((kinds.PICTURE, path) for path in further)
    yield Pair(row["key"], a, b, out / f"{row['key']}.png", further=sources)


# --- Records ---------------------------------------------------------------------------------


def _record(key: str, status: str, reason: str, seconds: float) -> dict[str, Any]:
  return {"key": key, "status": status, "reason": reason, "seconds": seconds}


def _schema(job: Job) -> Any:
  import pyarrow as pa

  columns = {"key": pa.string(), "status": pa.string(), "reason": pa.string()}
  columns["seconds"] = pa.float64()
  if job.with_metrics:
    from dmfnet_jax.fusing.measure import ALL_NAMES

    columns |= dict.fromkeys(ALL_NAMES, pa.float64())
  return pa.schema(columns)


def _part_path(job: Job, keys: Sequence[str]) -> Any:
  """Where a part's records go: the same place for whoever does it."""
  digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
  return paths.as_path(job.records) / f"{job.run}-{digest}.parquet"


def _write_part(job: Job, table: Any) -> None:
  import pyarrow.parquet as pq

  encoded = io.BytesIO()
  pq.write_table(table, encoded)
  paths.write_bytes(_part_path(job, table["key"].to_pylist()), encoded.getvalue())


if __name__ == "__main__":
  sys.exit(main())
