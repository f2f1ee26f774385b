"""`metrics.jsonl`: one line of JSON a write, and no trace of an attempt that was given up."""

import json
import sys

import numpy as np
from etils import epath

from dmfnet_jax.io import paths
from dmfnet_jax.report import run as report_run
from dmfnet_jax.training import metric_writer
from dmfnet_jax.training.metric_writer import MetricWriter
from dmfnet_jax.weights.workdir import read_log


def read(workdir):
  def refuse(text):
    raise ValueError(f"{text} is not JSON")

  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line, parse_constant=refuse) for line in lines]


def write(workdir, *steps, first_step=0, **scalars):
  writer = MetricWriter(epath.Path(workdir), first_step)
  for step in steps:
    writer.write_scalars(step, scalars or {"loss": np.float32(step / 2)})
  return writer


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  writer = write(tmp_path, 1, 2)
  assert read(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
  writer.close()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]
  assert "pip install 'dmfnet_jax[tensorboard]'" in capsys.readouterr().err


def test_what_is_not_finite_is_null(tmp_path):
  write(tmp_path, 1, loss=float("nan"), psnr=float("inf"), mse=1.0).close()
  assert read(tmp_path) == [{"step": 1, "loss": None, "psnr": None, "mse": 1.0}]


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path):
  write(tmp_path, 1, 2, 3, 4).close()
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 5, "lo')  # the machine went down
  write(tmp_path, 3, first_step=2, loss=7.0).close()
  assert read(tmp_path) == [
    {"step": 1, "loss": 0.5},
    {"step": 2, "loss": 1.0},
    {"step": 3, "loss": 7.0},
  ]


def test_a_line_is_appended_and_the_rest_left_alone(tmp_path):
  """A long run's file is not written anew at every line: another's line in it stays."""
  writer = write(tmp_path, 1)
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 1, "other": 1}\n')
  writer.write_scalars(2, {"loss": 1.0})
  writer.close()
  assert [line.get("other") for line in read(tmp_path)] == [None, 1, None]


def test_an_object_store_gets_parts_that_the_next_attempt_joins(tmp_path, monkeypatch):
  """What is there is not read, and not written again, while the run goes on."""
  monkeypatch.setattr(paths, "is_remote", lambda path: True)
  writer = write(tmp_path, 1, 2)
  assert steps_of(tmp_path) == []  # not yet a minute
  writer.flush()
  assert steps_of(tmp_path) == [1, 2]
  monkeypatch.setattr(metric_writer, "_REMOTE_SECONDS", 0.0)
  monkeypatch.setattr(epath.Path, "read_bytes", None)
  writer.write_scalars(3, {"loss": 1.0})
  monkeypatch.undo()
  monkeypatch.setattr(paths, "is_remote", lambda path: True)
  writer.close()
  assert steps_of(tmp_path) == [1, 2, 3]
  assert (tmp_path / "metrics.jsonl").read_bytes() == b""
  assert report_run.read_metrics(tmp_path)["loss"] == [(1, 0.5), (2, 1.0), (3, 1.0)]
  resumed = write(tmp_path, 3, first_step=2, loss=7.0)
  assert [line["loss"] for line in read(tmp_path)] == [0.5, 1.0]
  resumed.close()
  assert report_run.read_metrics(tmp_path)["loss"] == [(1, 0.5), (2, 1.0), (3, 7.0)]


def steps_of(workdir):
  return [json.loads(line)["step"] for line in read_log(epath.Path(workdir))]


def test_lines_that_a_kill_left_in_both_are_read_once(tmp_path, monkeypatch):
  monkeypatch.setattr(paths, "is_remote", lambda path: True)
  write(tmp_path, 1, 2).close()
  (part,) = (tmp_path / "metrics_parts").iterdir()
  (tmp_path / "metrics.jsonl").write_bytes(part.read_bytes())
  assert steps_of(tmp_path) == [1, 2]


def test_tensorboard_is_written_where_tensorflow_is(tmp_path):
  writer = write(tmp_path, 1)
  writer.write_image(1, "samples", np.zeros((4, 4, 3), np.uint8))
  writer.close()
  try:
    import tensorflow  # noqa: F401
  except ImportError:
    assert not list(tmp_path.glob("events.*"))
  else:
    (events,) = tmp_path.glob("events.*")
    assert b"samples" in events.read_bytes()
