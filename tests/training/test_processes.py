"""Real processes, started by `launch/local.py`: the same model on any of them, and how they end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from dmfnet_jax.weights.files import read_weights, save_weights

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests" / "training" / "worker.py"
pytestmark = pytest.mark.slow


def start(processes, devices, **job):
  """Starts a job on so many processes of so many devices each."""
  command = [sys.executable, str(ROOT / "launch" / "local.py"), "-n", str(processes)]
  command += ["--devices-per-process", str(devices), "--", sys.executable, str(WORKER)]
  return subprocess.Popen(
    [*command, json.dumps(job, default=str)],
    env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process, code=0):
  output, _ = process.communicate(timeout=900)
  assert process.returncode == code, output
  return output


def wait_for_line(path, process, text='"step"'):
  deadline = time.monotonic() + 200
  while not path.exists() or text not in path.read_text():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.05)


def train_losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line["loss"] for line in lines if "loss" in line]


def validation_losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line["validation/loss"] for line in lines if "validation/loss" in line]


def children_of(process):
  """Ids of the processes that this one has started, in the order of their start."""
  children = []
  for path in Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that has ended meanwhile
      # PID (NAME) STATE PARENT ...: a name may hold spaces and brackets.
      if int(path.read_text().rpartition(")")[2].split()[1]) == process.pid:
        children.append(int(path.parent.name))
  return sorted(children)


def test_any_topology_trains_the_same_model(data_dir, tmp_path):
  """Twenty steps with dropout; the validation's three pairs do not fill the devices."""
  changes = {"num_train_steps": 20, "eval_every_steps": 10, "checkpoint_every_steps": 0}
  changes["sample_every_steps"] = 0
  workdirs = {}
  for processes, devices in ((1, 1), (1, 4), (2, 2)):
    workdir = tmp_path / f"{processes}x{devices}"
    job = {"data_dir": data_dir, "workdir": workdir, "out": f"{workdir}.npz", "changes": changes}
    output = finish(start(processes, devices, **job))
    assert output.count(f"{processes} x {devices} at step 20") == processes
    workdirs[processes, devices] = workdir
  expected = workdirs.pop((1, 1))
  assert len(train_losses(expected)) == 20
  for workdir in workdirs.values():
    np.testing.assert_allclose(train_losses(workdir), train_losses(expected), rtol=1e-5)
    np.testing.assert_allclose(validation_losses(workdir), validation_losses(expected), rtol=1e-5)
    with np.load(f"{workdir}.npz") as ours, np.load(f"{expected}.npz") as theirs:
      assert set(ours) == set(theirs)
      for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_sigterm_saves_on_all_and_another_topology_goes_on(data_dir, tmp_path):
  """One of two processes is told; both save the same step and end well. One device finishes."""
  workdir = tmp_path / "run"
  job = {"data_dir": data_dir, "workdir": workdir, "toy": True}
  changes = {"num_train_steps": 100_000, "checkpoint_every_steps": 0, "eval_every_steps": 0}
  process = start(2, 2, **job, changes=changes | {"num_workers": 1})
  wait_for_line(workdir / "metrics.jsonl", process)
  begin = time.monotonic()
  os.killpg(children_of(process)[1], signal.SIGTERM)  # its reading worker gets it, too
  output = finish(process)
  assert time.monotonic() - begin < 30
  (checkpoint,) = (workdir / "checkpoints").iterdir()
  step = int(checkpoint.name)
  assert f"told to stop: saved step {step}" in output
  assert output.count(f"2 x 2 at step {step}") == 2

  for count in (1, 2):  # the second one for the whole length at once
    run = tmp_path / f"single{count}" if count == 2 else workdir
    changes |= {"num_train_steps": step + 5}
    finish(start(1, 1, **job | {"workdir": run, "out": f"{run}.npz"}, changes=changes))
  with np.load(f"{workdir}.npz") as ours, np.load(f"{tmp_path / 'single2'}.npz") as theirs:
    for name in ours:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_ctrl_c_saves_on_all(data_dir, tmp_path):
  """local.py passes it on: both save the same step, and end as what was interrupted."""
  workdir = tmp_path / "run"
  changes = {"num_train_steps": 100_000, "checkpoint_every_steps": 0, "eval_every_steps": 0}
  process = start(2, 1, data_dir=data_dir, workdir=workdir, toy=True, changes=changes)
  wait_for_line(workdir / "metrics.jsonl", process)
  process.send_signal(signal.SIGINT)
  output = finish(process, code=130)
  (checkpoint,) = (workdir / "checkpoints").iterdir()
  assert f"told to stop: saved step {checkpoint.name}" in output
  assert output.count("dmfnet: interrupted (process") == 2


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_within_a_minute(data_dir, tmp_path, lost):
  workdir = tmp_path / "run"
  changes = {"num_train_steps": 1_000_000, "checkpoint_every_steps": 50, "eval_every_steps": 0}
  process = start(2, 1, data_dir=data_dir, workdir=workdir, toy=True, changes=changes)
  wait_for_line(workdir / "metrics.jsonl", process, '"step": 60')
  begin = time.monotonic()
  os.kill(children_of(process)[lost], signal.SIGKILL)
  output, _ = process.communicate(timeout=90)
  assert time.monotonic() - begin < 60  # local.py would kill it then: it ended by itself
  # That of the survivor (an error, or JAX's abort), or of the one that was killed.
  assert process.returncode in (1, 128 + signal.SIGABRT, 128 + signal.SIGKILL), output
  survivor = 1 - lost
  ended = f"[{survivor}] dmfnet: error: process {survivor} of 2 ends"
  assert ended in output or "another task died" in output or "UNAVAILABLE" in output
  assert any((workdir / "checkpoints").iterdir())


def test_a_checkpoint_that_one_process_cannot_read_is_used_by_none(data_dir, tmp_path):
  """Both go back to the one before, and end as if it had been the newest."""
  changes = {"checkpoint_every_steps": 2, "eval_every_steps": 0, "num_train_steps": 4}
  job = {"data_dir": data_dir, "workdir": tmp_path / "run", "toy": True}
  finish(start(2, 1, **job, changes=changes))
  changes["num_train_steps"] = 6
  out = tmp_path / "out.npz"
  output = finish(start(2, 1, **job, changes=changes, blind_to=4, out=out))
  assert "cannot read the checkpoint" in output
  assert "at step 2" in output
  straight = job | {"workdir": tmp_path / "straight", "out": tmp_path / "straight.npz"}
  finish(start(2, 1, **straight, changes=changes))
  with np.load(out) as ours, np.load(tmp_path / "straight.npz") as theirs:
    tiny.assert_same(dict(ours), dict(theirs))


def test_stage2_ends_with_a_model_file(data_dir, tmp_path):
  """Both processes read the best checkpoint, and one writes; again where all is trained already."""
  params, config = tiny.model()
  save_weights(tmp_path / "unet.safetensors", {"unet": params["unet"]}, config)
  changes = {"num_train_steps": 2, "start": str(tmp_path / "unet.safetensors")}
  workdir = tmp_path / "run"
  job = {"stage": 2, "data_dir": data_dir, "workdir": workdir, "changes": changes}
  for _ in range(2):
    output = finish(start(2, 1, **job))
    assert output.count("2 x 1 at step 2") == 2
    model, _ = read_weights(workdir / "model.safetensors")
    assert model["fusion_head"].keys() == params["fusion_head"].keys()
    copy, _ = read_weights(workdir / "frozen_start.safetensors")
    tiny.assert_same(copy, {"unet": params["unet"]})
    (workdir / "model.safetensors").unlink()


def test_a_users_mistake_is_told_by_all_and_ends_all(data_dir, tmp_path):
  job = {"data_dir": data_dir, "workdir": tmp_path, "toy": True, "changes": {"batch_size": 3}}
  output = finish(start(2, 1, **job), code=2)
  for index in (0, 1):
    assert f"[{index}] dmfnet: error: config.batch_size=3 is global" in output
  assert "Traceback" not in output
