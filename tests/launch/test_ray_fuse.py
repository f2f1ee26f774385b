"""launch/ray_fuse.py: the bytes of `dmfnet fuse`, records, lost machines and workers, lists."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from fake_model import FakeModel, in_place

from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.measure import measure
from dmfnet_jax.io import pictures
from dmfnet_jax.weights import files as weights

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPT = LAUNCH / "ray_fuse.py"
sys.path.insert(0, str(LAUNCH))

import ray_fuse  # noqa: E402

# Of a worker's life: one pair ends the worker that fuses it.
DEADLY = """
import os, sys
sys.path.insert(0, {launch!r})
import ray, ray_fuse
ray.cloudpickle.register_pickle_by_value(ray_fuse)
class Deadly(ray_fuse.Worker):
  def __call__(self, part):
    if "03" in part["key"].to_pylist():
      os._exit(1)
    return super().__call__(part)
ray_fuse.Worker = Deadly
sys.exit(ray_fuse.main(sys.argv[1:]))
"""


def write_pairs(folder: Path, stems, shapes=((48, 64),)) -> tuple[Path, Path]:
  rng = np.random.default_rng(0)
  for side in ("a", "b"):
    (folder / side).mkdir(exist_ok=True)
    for i, stem in enumerate(stems):
      picture = rng.integers(0, 256, shapes[i % len(shapes)], np.uint8)
      pictures.write_image(folder / side / f"{stem}.png", picture)
  return folder / "a", folder / "b"


def run(*words, program=(str(SCRIPT),)):
  command = [sys.executable, *program, *map(str, words)]
  return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def contents(folder: Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def rows_of(folder: Path) -> list[dict]:
  """All records, also those that would be one too many."""
  return [row for path in sorted(folder.iterdir()) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def cluster():
  """A head without cores, to which the tests add machines; lost ones are noticed in seconds."""
  from ray.cluster_utils import Cluster

  noticed = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
  # Ray lets all others go first, which on a busy machine would take the tests minutes.
  asked = noticed | {"worker_niceness": 0}
  head = {"num_cpus": 0, "include_dashboard": False, "_system_config": asked}
  cluster = Cluster(initialize_head=True, head_node_args=head)
  yield cluster
  cluster.shutdown()


@pytest.fixture
def machine(cluster):
  """One more machine, with a core."""
  node = cluster.add_node(num_cpus=1)
  yield node
  if node in cluster.worker_nodes:
    cluster.remove_node(node)


def test_same_bytes_as_the_command_and_nothing_is_done_twice(tmp_path, cluster, machine):
  stems = [f"{i:02d}" for i in range(7)]
  a, b = write_pairs(tmp_path, stems[:6], ((48, 64), (64, 48)))
  (a / "03.png").write_bytes(b"no picture")
  params, config = tiny.model()
  weights.save_weights(tmp_path / "tiny.safetensors", params, config)
  asked = ["--model", tmp_path / "tiny.safetensors", "--seed", "3", "--window-b", "5,200"]
  on_ray = ["--address", cluster.address, "--part", "4"]
  one, out = tmp_path / "one", tmp_path / "out"
  command = run("fuse", a, b, "-o", one, *asked, program=("-m", "dmfnet_jax"))
  assert command.returncode == 1
  done = run(a, b, "-o", out, *asked, *on_ray)
  assert done.returncode == 1, done.stderr
  assert contents(out) == contents(one)
  assert {"00.png", "00.json"} <= set(contents(out))

  reason = f"{a / '03.png'}: not a readable PNG, JPEG, TIFF, BMP, GIF or WebP picture"
  assert f"error: pair 03: {reason}" in done.stderr
  assert "pair 00: windows: B 5 to 200" in done.stderr
  assert f"5 of 6 pairs fused into {out}" in done.stderr
  assert "Traceback" not in done.stderr
  rows = {row["key"]: row for row in rows_of(out / "records")}
  assert len(list((out / "records").iterdir())) == 2
  assert {key: row["status"] for key, row in rows.items()} == {
    stem: "failed" if stem == "03" else "fused" for stem in stems[:6]
  }
  assert rows["03"]["reason"] == reason
  assert all(0 < row["seconds"] < 300 for row in rows.values())

  # One file more, and one that can be read now: the others stay as they are.
  before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
  for side in (a, b):
    for stem in ("03", "06"):
      (side / f"{stem}.png").write_bytes((b / "00.png").read_bytes())
  done = run(a, b, "-o", out, *asked, *on_ray, "--retry-failed")
  assert done.returncode == 0, done.stderr
  assert f"7 of 7 pairs fused into {out}, 5 of them earlier" in done.stderr
  assert {path: path.stat().st_mtime_ns for path in before} == before
  keys = [row["key"] for row in rows_of(out / "records")]
  assert sorted(keys) == sorted([*stems, "03"])


@pytest.mark.slow
def test_a_lost_machine_costs_time_alone(tmp_path, cluster, machine):
  """Of two machines one is killed midway: every pair is there, and has one record."""
  stems = [f"{i:03d}" for i in range(160)]
  a, b = write_pairs(tmp_path, stems)
  out = tmp_path / "out"
  lost = cluster.add_node(num_cpus=1)
  command = [sys.executable, str(SCRIPT), str(a), str(b), "-o", str(out), "--model", "max"]
  command += ["--part", "2", "--address", cluster.address]
  with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
    end = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < end:
      if len(list(out.glob("records/*.parquet"))) >= 4:
        break
      time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()
    cluster.remove_node(lost, allow_graceful=False)
    _, told = process.communicate(timeout=300)
  assert process.returncode == 0, told
  assert f"160 of 160 pairs fused into {out}" in told
  assert "Traceback" not in told
  assert sorted(path.stem for path in out.glob("*.png")) == stems
  assert sorted(row["key"] for row in rows_of(out / "records")) == stems


@pytest.mark.slow
def test_a_pair_that_ends_its_worker_is_a_failure_of_its_own(tmp_path, cluster, machine):
  stems = [f"{i:02d}" for i in range(14)]  # more than a worker is given at once
  a, b = write_pairs(tmp_path, stems)
  (tmp_path / "deadly.py").write_text(DEADLY.format(launch=str(LAUNCH)))
  out = tmp_path / "out"
  program = (str(tmp_path / "deadly.py"),)
  asked = ["--model", "max", "--part", "2", "--address", cluster.address]
  done = run(a, b, "-o", out, *asked, program=program)
  assert done.returncode == 1, done.stderr
  assert "13 of 14 pairs fused" in done.stderr
  assert "Traceback" not in done.stderr
  found = {row["key"]: row["reason"] for row in rows_of(out / "records")}
  assert found == {**dict.fromkeys(stems, ""), "03": ray_fuse.LOST}


@pytest.fixture
def job(tmp_path):
  """Makes a job, and the pairs of a part of it, for a worker without Ray."""

  def make(stems, *, with_metrics=False, model="fake"):
    a, b = write_pairs(tmp_path, stems)
    for name in ("out", "records"):
      (tmp_path / name).mkdir(exist_ok=True)
    options = ray_fuse.FuseOptions(model=model)
    places = (str(tmp_path / "out"), str(tmp_path / "records"))
    table, _ = ray_fuse.read_pairs([str(a), str(b)], None, places[0], options)
    return ray_fuse.Job(options, *places, "sha256", with_metrics), table

  return make


def test_metrics_are_those_of_evaluate(tmp_path, job):
  made, part = job(["0", "1", "2"], with_metrics=True)
  (tmp_path / "b" / "1.png").unlink()
  with in_place(FakeModel()):
    rows = ray_fuse.Worker(made)(part).to_pylist()
  sources = (tmp_path / side / "0.png" for side in ("a", "b"))
  expected = measure({"0": Pair("0", *sources, tmp_path / "out" / "0.png")}).pairs["0"]
  assert {name: rows[0][name] for name in expected} == pytest.approx(expected, rel=1e-5)
  assert [row["status"] for row in rows] == ["fused", "failed", "fused"]
  assert rows[1]["VIFF"] is None
  (path,) = (tmp_path / "records").iterdir()
  left = [{k: v for k, v in row.items() if k != "remarks"} for row in rows]
  assert pq.read_table(path).to_pylist() == left


def test_a_fault_of_the_program_is_that_of_its_pair(job):
  """The others of its part are fused, each alone."""
  made, part = job(["0", "1", "2"])
  with in_place(FakeModel()) as model:
    fuse = model.fuse

    def faulty(*sources, names, **asked):
      if "1" in names:
        raise KeyError("fusion")
      return fuse(*sources, names=names, **asked)

    model.fuse = faulty
    model.batch_size = lambda padded_size, batch_size=None: 3
    rows = ray_fuse.Worker(made)(part).to_pylist()
  assert [row["reason"] for row in rows] == ["", "KeyError: 'fusion'", ""]


def test_what_another_worker_has_ended_is_not_done_again(job):
  made, part = job(["0", "1"])
  with in_place(FakeModel()) as model:
    first = ray_fuse.Worker(made)(part).to_pylist()
    model.calls.clear()
    again = ray_fuse.Worker(made)(part).to_pylist()
  assert model.calls == []
  assert [row["key"] for row in again] == ["0", "1"]
  assert [row["seconds"] for row in again] == [row["seconds"] for row in first]


def test_a_model_that_a_worker_lacks_ends_the_run(tmp_path, job):
  made, part = job(["0"], model=str(tmp_path / "none.safetensors"))
  (row,) = ray_fuse.Worker(made)(part).to_pylist()
  assert row["status"] == "stopped"
  assert "none.safetensors: no such file" in row["reason"]
  assert list((tmp_path / "records").iterdir()) == []


def test_lists(tmp_path):
  """A list of 25 rows in CSV and as a folder of Parquet files is the same."""
  rows = [(f"a/{i}_T1w.png", f"b/{i}.png", "" if i else "first") for i in range(25)]
  with (tmp_path / "pairs.csv").open("w", newline="") as file:
    csv.writer(file).writerows([("a", "b", "name"), *rows])
  (tmp_path / "lists").mkdir()
  for i, part in enumerate((rows[:20], rows[20:])):
    columns = dict(zip(("a", "b", "name"), map(list, zip(*part, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "lists" / f"{i}.parquet")
  for place, root in (("pairs.csv", tmp_path), ("lists", tmp_path)):
    options = ray_fuse.FuseOptions(suffix_a="_T1w")
    table, _ = ray_fuse.read_pairs([], str(tmp_path / place), str(tmp_path / "out"), options)
    assert table["key"].to_pylist() == ["first", *map(str, range(1, 25))]
    assert table["a"].to_pylist() == [str(root / a) for a, _, _ in rows]
    assert table["b"].to_pylist() == [str(root / b) for _, b, _ in rows]


@pytest.mark.parametrize(
  ("lines", "told"),
  [
    ([("a/x.png", "b/x.png"), ("c/x.png", "b/x.png")], "names of several pairs: x"),
    ([("a/x.png", "b/x.png", "../x")], "line 1: the name '../x' is no file's name"),
    ([("a/x.png", "")], "line 1: give the paths of A and of B"),
    ([("out/x.png", "b/x.png")], "the output folder is a source folder"),
    ([], "holds no pair"),
  ],
)
def test_a_list_that_cannot_be_is_told_in_a_line(tmp_path, capsys, lines, told):
  (tmp_path / "out").mkdir()
  with (tmp_path / "pairs.csv").open("w", newline="") as file:
    csv.writer(file).writerows(lines)
  asked = ["--pairs", str(tmp_path / "pairs.csv"), "-o", str(tmp_path / "out")]
  assert ray_fuse.main(asked) == 2
  err = capsys.readouterr().err
  assert told in err
  assert err.count("\n") == 1
  assert list((tmp_path / "out").iterdir()) == []


def test_a_parquet_file_that_is_none(tmp_path, capsys):
  for name, data in (("x.parquet", b"PAR1"), ("y.parquet", None)):
    if data is None:
      pq.write_table(pa.table({"mri": ["1"]}), tmp_path / name)
    else:
      (tmp_path / name).write_bytes(data)
    assert ray_fuse.main(["--pairs", str(tmp_path / name), "-o", str(tmp_path / "out")]) == 2
  first, second = capsys.readouterr().err.splitlines()
  assert "x.parquet: cannot read as Parquet: " in first
  assert "y.parquet: has no columns a and b" in second


def test_results_of_other_options_are_not_mixed(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(ray_fuse, "_connect", lambda address: None)
  monkeypatch.setattr(ray_fuse, "_fuse", lambda args, job, left: (left.num_rows, 0))
  a, b = write_pairs(tmp_path, ["1"])
  asked = [str(a), str(b), "-o", str(tmp_path / "out"), "--model", "max"]
  assert ray_fuse.main(asked) == 0
  assert ray_fuse.main([*asked, "--lut", "hot"]) == 2
  assert "holds results of another lut" in capsys.readouterr().err


def test_of_several_records_the_last_one_counts(tmp_path):
  for name, status in (("1", "failed"), ("2", "fused"), ("3", "failed")):
    table = pa.table({"key": ["x", name], "status": [status, "fused"]})
    pq.write_table(table, tmp_path / f"{name}.parquet")
  fused, failed = ray_fuse.read_records(sorted(tmp_path.iterdir()))
  assert (sorted(fused), failed) == (["1", "2", "3"], ["x"])


@pytest.mark.parametrize(
  ("nodes", "words", "expected"),
  [
    ([{"CPU": 4.0}, {"CPU": 8.0}, {}], [], ({"num_cpus": 4}, 3)),
    ([{"CPU": 4.0}, {"CPU": 8.0}], ["--cpus", "2"], ({"num_cpus": 2}, 6)),
    ([{"CPU": 4.0}, {"CPU": 8.0, "GPU": 8.0}], [], ({"num_gpus": 1}, 8)),
    ([{"CPU": 4.0, "TPU": 4.0}], ["--workers", "2"], ({"resources": {"TPU": 1}}, 2)),
    ([{"CPU": 4.0, "GPU": 1.0}], ["--device", "cpu"], ({"num_cpus": 4}, 1)),
  ],
)
def test_a_worker_for_each_device(nodes, words, expected):
  args = ray_fuse._parser().parse_args(["a", "b", "-o", "out", *words])
  alive = [{"Alive": True, "Resources": resources} for resources in nodes]
  lost = {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 16.0}}
  assert ray_fuse._needs([*alive, lost], args) == expected
