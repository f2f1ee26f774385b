"""Whole runs: a resumed run is the uninterrupted one, and a workdir is all that a run needs."""

import contextlib
import json
import shutil

import numpy as np
import optax
import pytest
import tiny
import toy
from etils import epath
from PIL import Image

import dmfnet_jax
from dmfnet_jax.data import builders, pipeline
from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.errors import UserError
from dmfnet_jax.training import resumption
from dmfnet_jax.training.loop import train_and_evaluate
from dmfnet_jax.training.progress import Report
from dmfnet_jax.weights.files import read_weights
from dmfnet_jax.weights.workdir import load_trained

TERMS = {1: ["mse_a", "mse_b"], 2: ["gradient", "intensity", "ssim"]}
TIMES = ("steps_per_second", "images_per_second", "data_wait_fraction", "device_memory_gib")


def read_metrics(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(lines):
  return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def interrupt_at(monkeypatch, step):
  """Makes the run stop as by Ctrl-C when it looks at the result of a step."""
  add = Report.add

  def add_or_stop(self, this_step, *args):
    if this_step == step:
      raise KeyboardInterrupt
    add(self, this_step, *args)

  monkeypatch.setattr(Report, "add", add_or_stop)


def assert_interrupted_run_resumes(config, workdir, finished, monkeypatch, between=lambda: None):
  """Stops a run at step 3, resumes it from step 2 and compares it with one that ran through."""
  with monkeypatch.context() as patch:
    interrupt_at(patch, 3)
    with pytest.raises(KeyboardInterrupt):
      train_and_evaluate(config, workdir)
  assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["2"]
  between()
  state = train_and_evaluate(config, workdir)

  finished_workdir, finished_state = finished
  assert int(state.step) == 4
  tiny.assert_same(state, finished_state)
  lines, expected = read_metrics(workdir), read_metrics(finished_workdir)
  assert without_times(lines) == without_times(expected)
  sample = "samples/step_00000004.png"
  assert (workdir / sample).read_bytes() == (finished_workdir / sample).read_bytes()


def test_stage1_resumes_bit_for_bit(data_dir, stage1_run, tmp_path, monkeypatch):
  config = tiny.config(1, data_dir)
  assert_interrupted_run_resumes(config, tmp_path, stage1_run, monkeypatch)


def test_stage2_resumes_without_stage1(data_dir, stage1_run, stage2_run, tmp_path, monkeypatch):
  """The same, where Stage I's workdir is gone meanwhile; then the workdir is a model."""
  stage1 = tmp_path / "stage1"
  shutil.copytree(stage1_run[0], stage1)
  config = tiny.config(2, data_dir, start=str(stage1))
  workdir = tmp_path / "stage2"
  assert_interrupted_run_resumes(
    config, workdir, stage2_run, monkeypatch, between=lambda: shutil.rmtree(stage1)
  )

  model = dmfnet_jax.load_model(str(workdir))
  best = min(
    (line for line in read_metrics(workdir) if "validation/loss" in line),
    key=lambda line: line["validation/loss"],
  )
  assert best["step"] == 4  # else the state below is not the best one
  tiny.assert_same(model.params, {**stage2_run[1].ema_params, **stage1_run[1].ema_params})
  a, b = np.random.default_rng(0).integers(0, 256, (2, 16, 16), np.uint8)
  assert np.ptp(model.fuse(a, b).astype(int)) > 0


def test_a_finished_run_is_left_as_it_is(data_dir, stage2_run):
  workdir, state = stage2_run
  before = {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*")}
  lines = (workdir / "metrics.jsonl").read_bytes()
  tiny.assert_same(train_and_evaluate(tiny.config(2, data_dir), workdir), state)
  assert {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*")} == before
  assert (workdir / "metrics.jsonl").read_bytes() == lines


def init_params(config):
  return tiny.run_setup(config).stage.init(gaussian.make_key(config.seed))


@pytest.mark.parametrize("stage", [1, 2])
def test_every_trained_leaf_changes(stage, request):
  """Each parameter has had a finite gradient that is not zero, and has moved."""
  _, state = request.getfixturevalue(f"stage{stage}_run")
  config = tiny.config(1) if stage == 1 else tiny.stage2_config()
  (network,) = state.params
  start = tiny.leaves(init_params(config)[network])
  moments = tiny.leaves(optax.tree.get(state.opt_state, "mu"))
  for path, leaf in tiny.leaves(state.params[network]).items():
    assert np.isfinite(moments[path]).all(), path
    assert np.abs(moments[path]).max() > 0, path
    assert (leaf != start[path]).any(), path
    assert leaf.dtype == np.float32, path


def test_stage2_leaves_the_unet_alone(stage1_run, stage2_run):
  workdir, state = stage2_run
  tiny.assert_same(state.frozen, stage1_run[1].ema_params)
  copy, config = read_weights(workdir / "frozen_start.safetensors")
  tiny.assert_same(copy, stage1_run[1].ema_params)
  assert config["unet"]["width"] == 8


@pytest.mark.parametrize("stage", [1, 2])
def test_metrics_file(stage, request):
  """A line of means each `log_every_steps`, one of validation each `eval_every_steps`."""
  workdir, _ = request.getfixturevalue(f"stage{stage}_run")
  lines = read_metrics(workdir)
  assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4]
  training = {"step", "loss", "grad_norm", "learning_rate", *TERMS[stage], *TIMES}
  validation = {"step", "validation/loss", *(f"validation/{term}" for term in TERMS[stage])}
  expected = [training, training, validation, training, training, validation]
  assert [set(line) for line in lines] == expected
  assert all(np.isfinite(value) for line in lines for value in line.values())
  assert all(0 <= line["data_wait_fraction"] <= 1 for line in lines if "loss" in line)


@pytest.mark.parametrize(("stage", "columns"), [(1, 9), (2, 4)])
def test_samples_are_pictures(stage, columns, request):
  """A row for each of the three validation pairs, and something to see in every tile."""
  workdir, _ = request.getfixturevalue(f"stage{stage}_run")
  (path,) = (workdir / "samples").iterdir()
  assert path.name == "step_00000004.png"
  picture = np.asarray(Image.open(path))
  height, width = picture.shape[:2]
  assert width >= columns * 32
  assert height >= 3 * 24
  # Each lies in the middle of its cell, which is as wide as the longest title; gaps are of 4.
  cell = (width - 4) // columns - 4
  for column in range(columns):
    left = 4 + column * (cell + 4) + (cell - 32) // 2
    bottom = picture[-(24 + 4) :, left : left + 32]
    assert bottom.std() > 5, column


@pytest.fixture(scope="module")
def toy_run(data_dir, tmp_path_factory):
  """The workdir of two steps of the toy; not to be changed."""
  workdir = tmp_path_factory.mktemp("toy_run")
  train_and_evaluate(tiny.toy_config(data_dir, num_train_steps=2), workdir)
  return workdir


def spoil_step(monkeypatch, step):
  """Makes one step's loss not a number, of runs of `toy.WATCHED`."""
  monkeypatch.setitem(toy.WATCHERS, "step", lambda this: np.nan if this == step else 0.0)


def records_of_step(config, step):
  """The positions in the training split of what a step of an uninterrupted run is trained on."""
  source = builders.open_source(config.dataset, config.data_dir, "train")
  batches = pipeline.make_train_dataset(
    source, crop_size=config.crop_size, batch_size=config.batch_size, seed=config.seed
  )
  with contextlib.closing(batches):
    return [next(batches)["record"].tolist() for _ in range(step)][-1]


@pytest.mark.parametrize("log_every_steps", [1, 100])
def test_nan_names_step_and_records_and_is_not_saved(
  data_dir, tmp_path, monkeypatch, log_every_steps
):
  spoil_step(monkeypatch, 3)
  config = tiny.toy_config(data_dir, method="toy:WATCHED", log_every_steps=log_every_steps)
  with pytest.raises(UserError, match=r"step 3: the loss is nan") as caught:
    train_and_evaluate(config, tmp_path)
  records = records_of_step(config, 3)
  assert len(records) == 4
  assert str(records) in str(caught.value)
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_parameters_that_a_step_has_blown_up_are_not_saved(data_dir, tmp_path):
  """The loss of the step was finite; what it left is not, and validation tells."""
  config = tiny.toy_config(
    data_dir, optimizer__learning_rate=1e30, checkpoint_every_steps=1, ema_decay=0.0
  )
  with pytest.raises(UserError, match=r"step 1: the validation loss is (inf|nan);.*learning_rate"):
    train_and_evaluate(config, tmp_path)
  assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_step_is_compiled_once(data_dir, tmp_path):
  """Neither the second step nor a later one is traced anew, say for another sharding."""
  before = len(toy.TRACED)
  train_and_evaluate(tiny.toy_config(data_dir), tmp_path)
  assert sorted(toy.TRACED[before:]) == [False, True]


def test_a_workdir_may_be_relative(data_dir, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = tiny.toy_config(data_dir, num_train_steps=2)
  state = train_and_evaluate(config, "runs/toy")
  params, _ = load_trained(epath.Path("runs/toy"))
  tiny.assert_same(params, state.ema_params)
  tiny.assert_same(train_and_evaluate(config, "runs/toy"), state)


def test_another_seed_is_another_run(data_dir, tmp_path):
  states = [
    train_and_evaluate(tiny.toy_config(data_dir, seed=seed), tmp_path / name)
    for name, seed in (("first", 0), ("again", 0), ("other", 1))
  ]
  tiny.assert_same(states[0], states[1])
  other = tiny.leaves(states[2].params)
  for path, leaf in tiny.leaves(states[0].params).items():
    assert (leaf != other[path]).all(), path


@pytest.mark.parametrize("stage", [1, 2])
def test_another_seed_is_another_start(stage):
  first, again, other = (
    tiny.leaves(
      init_params(tiny.config(1, seed=seed) if stage == 1 else tiny.stage2_config(seed=seed))
    )
    for seed in (0, 0, 1)
  )
  tiny.assert_same(first, again)
  for path, leaf in first.items():
    if path.endswith("kernel"):
      assert (leaf != other[path]).any(), path


def test_evaluation_is_the_same_in_batches_of_any_size(data_dir, tmp_path):
  """Three pairs in batches of one, two (padded) and eight."""
  values = []
  for size in (1, 2, 8):
    config = tiny.toy_config(data_dir, eval_batch_size=size, num_train_steps=1)
    train_and_evaluate(config, tmp_path / str(size))
    values.append(read_metrics(tmp_path / str(size))[-1]["validation/loss"])
  assert values[1] == pytest.approx(values[0], rel=1e-6)
  assert values[2] == pytest.approx(values[0], rel=1e-6)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"batch_size": 2}, r"config.batch_size = 4, this run has 2; .* start a new workdir$"),
    ({"seed": 1}, r"config.seed = 0, this run has 1; .* start a new workdir$"),
    ({"toy__width": 4}, r"config.toy.width = 8, this run has 4; .* start a new workdir$"),
    ({"optimizer__name": "adam"}, 'config.optimizer.name = "adamw", this run has "adam"; .*r$'),
    ({"optimizer__clip_norm": 1.0}, r"config.optimizer.clip_norm = 0.0, this run has 1.0; .*r$"),
    ({"ema_decay": 0.0}, r"config.ema_decay = 0.5, this run has 0.0; .*r$"),
    (
      {"crop_size": 32, "optimizer__learning_rate": 0.5, "num_train_steps": 9},
      r"config.crop_size = 16, this run has 32; config.optimizer.learning_rate = 0.001, this run "
      r"has 0.5; .*may_change=crop_size,optimizer.learning_rate\)",
    ),
    ({"may_change": ("toy.width",), "toy__width": 4}, "config.toy.width = 8, this run has 4"),
    ({"may_change": ("seed",), "seed": 1}, "config.seed = 0, this run has 1; .* a new workdir$"),
  ],
)
def test_resuming_another_run_is_refused(toy_run, data_dir, change, message):
  with pytest.raises(UserError, match=f"cannot resume: .*{message}"):
    train_and_evaluate(tiny.toy_config(data_dir, **change), toy_run)


def test_what_may_change_is_checked(toy_run, data_dir):
  config = tiny.toy_config(data_dir, may_change=("learning_rate",))
  with pytest.raises(UserError, match=r"may_change names 'learning_rate', which is no field"):
    train_and_evaluate(config, toy_run)


@pytest.mark.parametrize(
  ("change", "refused"),
  [({}, None), ({"fusion_head__output": "blend"}, "output"), ({"ema_decay": 0.5}, "ema_decay")],
)
def test_what_an_older_checkpoint_lacks_had_the_recipes_value(change, refused):
  def as_saved(config):
    return json.loads(config.to_json())

  theirs = as_saved(tiny.stage2_config(ema_decay=0.0))
  del theirs["fusion_head"]["output"], theirs["ema_decay"], theirs["loss"]["overlap"]
  ours = as_saved(tiny.stage2_config(**{"ema_decay": 0.0, "loss__overlap": 0.5} | change))
  if refused is None:
    resumption.refuse_other_config(ours, theirs)
  else:
    with pytest.raises(UserError, match=rf"has config\.\S*{refused} = .* a new workdir$"):
      resumption.refuse_other_config(ours, theirs)


def test_resuming_for_longer_is_not(toy_run, data_dir, tmp_path):
  shutil.copytree(toy_run, tmp_path / "longer")
  changes = {
    "num_train_steps": 6,
    "log_every_steps": 2,
    "eval_batch_size": 3,
    "may_change": ("crop_size,optimizer.learning_rate",),
    "optimizer__learning_rate": 1e-4,
  }
  state = train_and_evaluate(tiny.toy_config(data_dir, **changes), tmp_path / "longer")
  assert int(state.step) == 6


def test_worker_processes_feed_the_same_run(data_dir, tmp_path):
  states = [
    train_and_evaluate(tiny.toy_config(data_dir, num_workers=workers), tmp_path / str(workers))
    for workers in (0, 1)
  ]
  tiny.assert_same(*states)


def test_remat_trains_the_same(data_dir, stage1_run, tmp_path):
  """Recomputed activations, dropout included, are the same up to rounding."""
  state = train_and_evaluate(tiny.config(1, data_dir, remat=True), tmp_path)
  expected = tiny.leaves(stage1_run[1].params)
  for path, leaf in tiny.leaves(state.params).items():
    # Adam makes whole steps of gradients that are hardly more than rounding.
    np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, atol=1e-4, err_msg=path)


def test_a_finished_run_leaves_a_model_file(stage1_run, stage2_run):
  """Of the best checkpoint, in half precision; Stage I has nothing to fuse with."""
  assert not (stage1_run[0] / "model.safetensors").exists()
  params, config = read_weights(stage2_run[0] / "model.safetensors")
  expected, expected_config = load_trained(epath.Path(stage2_run[0]))
  assert config == expected_config
  ours, theirs = tiny.leaves(params), tiny.leaves(expected)
  assert ours.keys() == theirs.keys()
  for name, leaf in ours.items():
    np.testing.assert_array_equal(leaf, theirs[name].astype(np.float16), err_msg=name)
