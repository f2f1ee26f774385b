"""A run that is killed, finds its checkpoints damaged or its disk full, or meets a NaN."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import toy
from etils import epath
from test_loop import read_metrics, records_of_step, spoil_step, without_times

from dmfnet_jax.data import builders, pipeline
from dmfnet_jax.errors import UserError
from dmfnet_jax.training.loop import train_and_evaluate
from dmfnet_jax.weights.workdir import load_trained

TESTS = Path(__file__).resolve().parents[1]
KILLS = 20


def run_script(name, job, *arguments, **options):
  environment = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS / 'training'}", "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, str(TESTS / "training" / name), json.dumps(job, default=str)]
  return subprocess.Popen(
    [*command, *arguments],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **options,
  )


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit(data_dir, tmp_path):
  changes = {"num_train_steps": 1000, "checkpoint_every_steps": 4, "eval_every_steps": 0}
  job = {"data_dir": data_dir, "toy": True, "changes": changes | {"sample_every_steps": 0}}
  for name, kills in (("straight", 0), ("killed", KILLS)):
    done = run_script(
      "killer.py", job | {"workdir": tmp_path / name, "out": tmp_path / f"{name}.npz"}, str(kills)
    )
    output, _ = done.communicate(timeout=500)
    assert done.returncode == 0, output
  assert int(re.search(r"(\d+) of 20 kills during a save", output)[1]) >= 5
  assert "at step 1000" in output
  with np.load(tmp_path / "killed.npz") as ours, np.load(tmp_path / "straight.npz") as theirs:
    tiny.assert_same(dict(ours), dict(theirs))
  ours, theirs = (without_times(read_metrics(tmp_path / n)) for n in ("killed", "straight"))
  assert ours == theirs  # every step's loss: the data's position was kept, too


@pytest.mark.parametrize(
  ("number", "num_workers"), [(signal.SIGTERM, 0), (signal.SIGTERM, 1), (signal.SIGINT, 1)]
)
def test_sigterm_and_ctrl_c_save_and_end_well(data_dir, tmp_path, number, num_workers):
  """Sent to the whole group, as SLURM and a terminal do: also to the workers that read."""
  workdir = tmp_path / "run"
  changes = {"num_train_steps": 100_000, "checkpoint_every_steps": 0, "eval_every_steps": 0}
  changes["num_workers"] = num_workers
  job = {"data_dir": data_dir, "workdir": workdir, "toy": True, "changes": changes}
  process = run_script("worker.py", job, start_new_session=True)
  while not (workdir / "metrics.jsonl").exists() or not read_metrics(workdir):
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.05)
  begin = time.monotonic()
  os.killpg(process.pid, number)
  output, _ = process.communicate(timeout=60)
  # Whoever waits for a run that Ctrl-C stopped must not take it for done.
  assert process.returncode == (0 if number == signal.SIGTERM else -number), output
  assert ("Ctrl-C again ends at once" in output) == (number == signal.SIGINT)
  assert time.monotonic() - begin < 30
  (checkpoint,) = (workdir / "checkpoints").iterdir()
  step = int(checkpoint.name)
  assert f"told to stop: saved step {step}" in output
  assert read_metrics(workdir)[-1]["step"] == step
  # Never evaluated, it is still a model; and the run goes on to what it would have been.
  load_trained(epath.Path(workdir))
  config = tiny.toy_config(data_dir, **changes | {"num_train_steps": step + 2})
  tiny.assert_same(train_and_evaluate(config, workdir), train_and_evaluate(config, tmp_path / "b"))


def test_sigterm_does_not_wait_for_the_end_of_an_evaluation(data_dir, tmp_path, monkeypatch):
  make, taken = pipeline.make_eval_batches, []

  def batches(*args, **options):
    whole = list(make(*args, **options))

    class Told:
      def __iter__(self):
        for batch in whole:
          signal.raise_signal(signal.SIGTERM)
          taken.append(batch)
          yield batch

    return Told()

  changes = {"eval_batch_size": 1, "eval_every_steps": 1, "checkpoint_every_steps": 0}
  config = tiny.toy_config(data_dir, num_train_steps=2, **changes)
  with monkeypatch.context() as patch:
    patch.setattr(pipeline, "make_eval_batches", batches)
    train_and_evaluate(config, tmp_path / "run")
  assert len(taken) == 1
  assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]
  assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1]
  resumed = train_and_evaluate(config, tmp_path / "run")
  tiny.assert_same(resumed, train_and_evaluate(config, tmp_path / "straight"))


@pytest.fixture(scope="module")
def two_checkpoints(data_dir, tmp_path_factory):
  """A workdir with checkpoints of steps 2 and 4, and the state after step 6."""
  workdir = tmp_path_factory.mktemp("two_checkpoints")
  train_and_evaluate(tiny.toy_config(data_dir), workdir / "run")
  state = train_and_evaluate(tiny.toy_config(data_dir, num_train_steps=6), workdir / "straight")
  return workdir / "run", state


def files_of_checkpoint():
  """What Orbax writes, by the part that is damaged."""
  return [
    "state/manifest.ocdbt",
    "state/_METADATA",
    "data/metadata",
    "config/metadata",
    "state/d/*",
  ]


@pytest.mark.parametrize("how", ["truncated", "deleted"])
@pytest.mark.parametrize("pattern", files_of_checkpoint())
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
  two_checkpoints, data_dir, tmp_path, capsys, pattern, how
):
  run, expected = two_checkpoints
  workdir = tmp_path / "run"
  shutil.copytree(run, workdir)
  newest = workdir / "checkpoints" / "4"
  files = sorted(newest.glob(pattern))
  assert files
  for file in files:
    if how == "truncated":
      os.truncate(file, file.stat().st_size // 2)
    else:
      file.unlink()
  state = train_and_evaluate(tiny.toy_config(data_dir, num_train_steps=6), workdir)
  error = capsys.readouterr().err
  assert f"warning: cannot read the checkpoint {newest} (" in error
  assert "resuming" in error
  assert "at step 2" in error
  tiny.assert_same(state, expected)
  steps = {path.name for path in (workdir / "checkpoints").iterdir()}
  assert steps == {"2", "4", "6"}  # step 4 was written anew
  assert len(list((workdir / "damaged_checkpoints").iterdir())) == 1


@pytest.mark.parametrize("step", [2, 4])
def test_damaged_metrics_cost_no_checkpoint(two_checkpoints, data_dir, tmp_path, capsys, step):
  """Of the newest or an older one: Orbax reads them all before it does anything."""
  run, expected = two_checkpoints
  workdir = tmp_path / "run"
  shutil.copytree(run, workdir)
  file = workdir / "checkpoints" / str(step) / "metrics" / "metrics"
  os.truncate(file, file.stat().st_size // 2)
  load_trained(epath.Path(workdir))
  state = train_and_evaluate(tiny.toy_config(data_dir, num_train_steps=6), workdir)
  error = capsys.readouterr().err
  assert f"cannot read the metrics of the checkpoint {workdir / 'checkpoints' / str(step)}" in error
  assert "resuming" in error
  assert "at step 4" in error
  tiny.assert_same(state, expected)


def test_a_damaged_best_checkpoint_leaves_the_next_best(two_checkpoints, tmp_path, capsys):
  workdir = epath.Path(tmp_path / "run")
  shutil.copytree(two_checkpoints[0], workdir)
  metrics = {
    step: json.loads((workdir / "checkpoints" / step / "metrics" / "metrics").read_text())["loss"]
    for step in ("2", "4")
  }
  best, other = sorted(metrics, key=metrics.get)
  expected, _ = load_trained(workdir)
  shutil.rmtree(workdir / "checkpoints" / best / "state")
  params, _ = load_trained(workdir)
  assert f"cannot read the checkpoint {workdir / 'checkpoints' / best} (" in capsys.readouterr().err
  assert any((tiny.leaves(params)[k] != v).any() for k, v in tiny.leaves(expected).items())
  shutil.rmtree(workdir / "checkpoints" / other / "state")
  with pytest.raises(UserError, match=r"none of the checkpoints in .* can be read"):
    load_trained(workdir)


def test_where_no_checkpoint_can_be_read_none_is_touched(two_checkpoints, data_dir, tmp_path):
  """The cause may pass; then the run goes on, as it does where the user starts anew."""
  run, expected = two_checkpoints
  workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
  shutil.copytree(run, workdir)
  for step in ("2", "4"):
    (workdir / "checkpoints" / step / "state").rename(tmp_path / step)
  config = tiny.toy_config(data_dir, num_train_steps=6)
  with pytest.raises(UserError, match=r"none of the checkpoints in .* move this folder away"):
    train_and_evaluate(config, workdir)
  assert not (workdir / "damaged_checkpoints").exists()
  shutil.copytree(workdir, elsewhere)
  for step in ("2", "4"):
    (tmp_path / step).rename(workdir / "checkpoints" / step / "state")
  tiny.assert_same(train_and_evaluate(config, workdir), expected)
  shutil.rmtree(elsewhere / "checkpoints")
  tiny.assert_same(train_and_evaluate(config, elsewhere), expected)


def test_a_full_disk_stops_the_run_and_spares_the_checkpoint(data_dir, tmp_path):
  """Files may not grow past a kilobyte after the first checkpoint: as if there were no room."""
  workdir = tmp_path / "run"
  job = {"data_dir": data_dir, "workdir": workdir, "toy": True}
  changes = {"num_train_steps": 2, "log_every_steps": 1000}
  process = run_script("worker.py", job | {"changes": changes})
  output, _ = process.communicate(timeout=200)
  assert process.returncode == 0, output
  before = {p: p.read_bytes() for p in (workdir / "checkpoints" / "2").rglob("*") if p.is_file()}

  def no_room():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

  changes = {"num_train_steps": 8, "log_every_steps": 1000}
  process = run_script("worker.py", job | {"changes": changes}, preexec_fn=no_room)
  output, _ = process.communicate(timeout=200)
  assert process.returncode != 0
  assert re.search(r"UserError: (cannot write a checkpoint to|.*File too large)", output), output
  after = {p: p.read_bytes() for p in (workdir / "checkpoints" / "2").rglob("*") if p.is_file()}
  assert after == before

  config = tiny.toy_config(data_dir, num_train_steps=8)
  tiny.assert_same(
    train_and_evaluate(config, workdir), train_and_evaluate(config, tmp_path / "straight")
  )


@pytest.mark.parametrize("place", ["/proc/dmfnet_run", "{tmp}/file/run"])
def test_an_unwritable_workdir_is_named(data_dir, tmp_path, place):
  (tmp_path / "file").touch()
  workdir = place.format(tmp=tmp_path)
  with pytest.raises(UserError, match=f"{workdir}: cannot make this folder"):
    train_and_evaluate(tiny.toy_config(data_dir), workdir)


def test_a_file_that_cannot_be_written_is_named(data_dir, tmp_path):
  (tmp_path / "parameters.txt" / "in_the_way").mkdir(parents=True)
  with pytest.raises(UserError, match=r"parameters\.txt: cannot write: "):
    train_and_evaluate(tiny.toy_config(data_dir), tmp_path)


def test_an_error_of_the_disk_spares_the_checkpoint_under_way(data_dir, tmp_path, monkeypatch):
  """Step 3's line of metrics has no room; step 2's checkpoint, perhaps still in flight, has."""
  full = tmp_path / "full"
  full.symlink_to("/dev/full")

  def fill_the_disk(step):
    if step == 3:
      with contextlib.suppress(FileNotFoundError):  # each device calls, and the first one has it
        full.rename(tmp_path / "metrics.jsonl")
    return 0.0

  monkeypatch.setitem(toy.WATCHERS, "step", fill_the_disk)
  with pytest.raises(
    UserError, match=r"No space left .*; the checkpoints written before are intact"
  ):
    train_and_evaluate(tiny.toy_config(data_dir, method="toy:WATCHED"), tmp_path)
  assert not full.is_symlink()
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_a_save_that_failed_is_noticed_at_the_next_line(data_dir, tmp_path, monkeypatch):
  """Not at the next save, which may be hours of training later."""
  from dmfnet_jax.training.checkpoint import Checkpointer

  monkeypatch.setattr(
    "orbax.checkpoint.checkpoint_managers.AnyPreservationPolicy.should_preserve", _no_room
  )
  asked = []
  check = Checkpointer.check

  def counted(self):
    asked.append(1)
    while self._manager.is_saving_in_progress():
      time.sleep(0.01)
    check(self)

  monkeypatch.setattr(Checkpointer, "check", counted)
  config = tiny.toy_config(data_dir, num_train_steps=500, checkpoint_every_steps=2)
  with pytest.raises(UserError, match=r"cannot write a checkpoint to .*No space left on device"):
    train_and_evaluate(config, tmp_path)
  assert len(asked) <= 3


def _no_room(*args, **kwargs):
  raise OSError(28, "No space left on device")


def test_nan_writes_its_examples_down(data_dir, tmp_path, monkeypatch):
  spoil_step(monkeypatch, 3)
  config = tiny.toy_config(data_dir, method="toy:WATCHED")
  with pytest.raises(UserError, match=r"step 3: the loss is nan"):
    train_and_evaluate(config, tmp_path)
  records = records_of_step(config, 3)
  (line,) = (tmp_path / "nonfinite.jsonl").read_text().splitlines()
  entry = json.loads(line)
  assert (entry["step"], entry["loss"], entry["records"]) == (3, "nan", records)
  source = builders.open_source("paired_folder", data_dir, "train")
  assert entry["names"] == [source[record]["name"].decode() for record in records]
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_a_skipped_step_leaves_the_state_alone(data_dir, tmp_path, monkeypatch, capsys):
  """The run goes on as if the step had not been, but for its number."""
  changes = {"on_nonfinite": "skip", "log_every_steps": 2, "num_train_steps": 6}
  config = tiny.toy_config(data_dir, method="toy:WATCHED", **changes)
  spoil_step(monkeypatch, 3)
  state = train_and_evaluate(config, tmp_path)
  assert int(state.step) == 6
  assert all(np.isfinite(leaf).all() for leaf in tiny.leaves(state).values())
  lines = [line for line in read_metrics(tmp_path) if "loss" in line]
  assert [line.get("skipped_steps") for line in lines] == [None, 1, None]
  assert all(np.isfinite(line["loss"]) for line in lines)
  assert "step 3: the loss is nan" in capsys.readouterr().err
  assert json.loads((tmp_path / "nonfinite.jsonl").read_text())["step"] == 3
  assert load_trained(epath.Path(tmp_path))


def test_a_profile_is_recorded_on_request(data_dir, tmp_path):
  """In a process of its own: JAX's profiler crashes where preflight's tests have loaded libtpu."""
  workdir = tmp_path / "run"
  job = {"data_dir": data_dir, "workdir": workdir, "toy": True, "changes": {"profile_steps": 1}}
  done = run_script("worker.py", job)
  output, _ = done.communicate(timeout=300)
  assert done.returncode == 0, output
  assert list((workdir / "plugins" / "profile").rglob("*.xplane.pb"))
  assert "a profile of steps 3 to 3 is in" in output
