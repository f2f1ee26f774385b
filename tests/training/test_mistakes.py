"""What `dmfnet train` answers to mistakes: one line that names the field or the file."""

import types

import jax
import pytest
import tiny

from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.training import distributed, loop
from dmfnet_jax.training.setup import check_config


@pytest.fixture
def dmfnet_train(capsys, tmp_path):
  """Runs the command on a config of the checkout; returns the message and checks its form."""

  def run(config, *overrides, code=2):
    workdir = tmp_path / "run"
    words = ["train", "--config", config, "--workdir", str(workdir), *overrides]
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dmfnet: error: ")
    assert captured.err.count("\n") == 1
    assert not (workdir / "checkpoints").exists()
    return captured.err

  return run


no_tpu = pytest.mark.skipif(distributed.has_tpu(), reason="a host of a TPU slice is never alone")
STAGE1, STAGE2 = "configs/dmfnet.py:stage=1", "configs/dmfnet.py:stage=2"


@pytest.mark.parametrize(
  ("config", "override", "message"),
  [
    (STAGE1, "--config.batch_sise=4", "no field 'batch_sise'; did you mean 'batch_size'?"),
    (STAGE1, "--config.unet.widht=4", "no field 'widht'; did you mean 'width'?"),
    (STAGE1, "--config.batch_size=many", "in the config: "),
    (STAGE1, "--config.batch_size=2.5", "in the config: "),
    ("configs/no_such.py", "--config.seed=1", "no config file 'configs/no_such.py'; installed"),
    (STAGE1, "--config.batch_size=0", "config.batch_size=0 is global and must be a multiple"),
    (STAGE1, "--config.crop_size=24", "config.crop_size=24 must be a multiple of 16"),
    (STAGE1, "--config.crop_size=0", "config.crop_size=0 must be a multiple of 16"),
    (STAGE1, "--config.unet.norm_groups=5", "config.unet.norm_groups=5 must divide the width 128"),
    (STAGE1, "--config.compute_dtype=float16", "'float32', 'bfloat16', not 'float16'"),
    (STAGE1, "--config.num_train_steps=0", "config.num_train_steps=0 must be at least 1"),
    (STAGE1, "--config.schedule.name=cosin", "config.schedule.name is one of 'linear', "),
    (STAGE1, "--config.timestep_range=(0,400)", "must be ascending steps in 1..2000"),
    (STAGE1, "--config.timestep_range=(1,2001)", "must be ascending steps in 1..2000"),
    (STAGE1, "--config.timestep_range=(400,1)", "must be ascending steps in 1..2000"),
    (STAGE2, "--config.features.timesteps=(5,3000)", "config.features.timesteps=(5, 3000) must"),
    (STAGE2, "--config.features.timesteps=()", "config.features.timesteps=() must"),
    (STAGE2, "--config.features.source=middle", "config.features.source is one of 'decoder', "),
    (STAGE2, "--config.fusion_head.attention=no", "config.fusion_head.attention is one of"),
    (
      STAGE1,
      "--config.method=cddfuse",
      "lacks: network, fusion, loss: take a recipe of that method",
    ),
    (STAGE1, "--config.dataset=harvard", "unknown dataset 'harvard'; known ones: "),
    (
      STAGE1,
      "--config.data_dir=/nowhere",
      "no prepared dataset 'harvard_mmif' in /nowhere; prepare",
    ),
  ],
)
def test_a_wrong_value_is_named(dmfnet_train, config, override, message):
  assert message in dmfnet_train(config, override)


def test_a_missing_config_lists_what_there_is(dmfnet_train):
  message = dmfnet_train("configs/stage3.py")
  assert "dmfnet.py" in message
  assert "ablations.py" in message
  assert "common.py" not in message


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ("configs/dmfnet.py:stage=3", "in the config: stage is one of 1, 2, not '3'"),
    (
      "configs/dmfnet.py:size=huge",
      "size is one of paper, small, small-fast, small-v2, fast, infrared, tiny, not 'huge'",
    ),
    ("configs/dmfnet.py:sise=tiny", "no argument 'sise'; there are stage, size"),
    ("configs/ablations.py:nothing", "no ablation 'nothing'; there are untrained, "),
  ],
)
def test_a_wrong_argument_of_a_config_is_named(dmfnet_train, config, message):
  assert message in dmfnet_train(config)


def test_the_batch_is_divided_among_the_devices(dmfnet_train):
  """By default those that JAX has; of a CPU's cores as many as divide it."""
  with pytest.raises(UserError, match=r"batch_size=4 is global .* a multiple of the 3 devices"):
    check_config(tiny.toy_config(), devices=3)
  check_config(tiny.toy_config(batch_size=6), devices=3)
  message = dmfnet_train(STAGE1, "--config.batch_size=0")
  assert f"must be a multiple of the {jax.device_count()} devices" in message


@pytest.fixture
def on_tiny_data(data_dir):
  """Overrides that point a Stage II config at the prepared pairs."""
  return ["--config.dataset=paired_folder", f"--config.data_dir={data_dir}"]


@pytest.mark.parametrize(
  ("stage1", "message"),
  [
    ("", "config.start is empty: name the earlier stage's workdir or a model file"),
    ("no_such_model", "unknown model 'no_such_model': give a released name ("),
    ("{tmp}/missing.safetensors", "{tmp}/missing.safetensors: no such file"),
    ("{tmp}/empty", "no checkpoint in {tmp}/empty: give the --workdir of a training run"),
    (
      "{tmp}/head.safetensors",
      "config.start={tmp}/head.safetensors has no unet: name a model that has it",
    ),
  ],
)
def test_stage1_must_name_a_unet(dmfnet_train, on_tiny_data, tmp_path, stage1, message):
  from dmfnet_jax.weights import files as weights

  (tmp_path / "empty").mkdir()
  params, config = tiny.model()
  head = {"fusion_head": params["fusion_head"]}
  weights.save_weights(tmp_path / "head.safetensors", head, config)
  stage1 = stage1.format(tmp=tmp_path)
  error = dmfnet_train(STAGE2, *on_tiny_data, f"--config.stage1={stage1}")
  assert message.format(tmp=tmp_path) in error


def test_the_command_trains_with_overrides(on_tiny_data, tmp_path, monkeypatch):
  """What reaches the loop: the file's config with the overrides, and the workdir."""
  reached = []
  steps = iter([630_000, 7, 7])

  def train_and_evaluate(*args):
    reached.append(args)
    return types.SimpleNamespace(step=next(steps))

  monkeypatch.setattr(loop, "train_and_evaluate", train_and_evaluate)
  words = ["train", "--config", STAGE1, "--workdir", "w", *on_tiny_data, "--config.seed=3"]
  assert main(words) == 0
  ((config, workdir),) = reached
  # One that SIGTERM stopped ends well, too, unless a launcher wants to know.
  assert main(words) == 0
  assert main([*words, "--preempted-exit-code=75"]) == 75
  assert workdir == "w"
  assert (config.seed, config.dataset, config.unet.width) == (3, "paired_folder", 128)


def test_a_deeper_unet_wants_a_coarser_crop(dmfnet_train):
  deep = "--config.unet.multipliers=(1,1,1,1,2,2)"
  message = dmfnet_train(STAGE1, deep, "--config.crop_size=80")
  assert "config.crop_size=80 must be a multiple of 32" in message


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--num-processes=2"], "need --coordinator HOST:PORT, --num-processes N and --process-id I"),
    (
      ["--coordinator=host", "--num-processes=2", "--process-id=0"],
      "the coordinator's address is HOST:PORT, not 'host'",
    ),
    (
      ["--coordinator=127.0.0.1:1", "--num-processes=2", "--process-id=2"],
      "cannot join the other processes: ",
    ),
  ],
)
def test_processes_are_given_wholly_or_not_at_all(dmfnet_train, flags, message):
  assert message in dmfnet_train(STAGE1, *flags)


@no_tpu
def test_pods_that_cannot_find_each_other_do_not_train_alone(dmfnet_train, monkeypatch):
  monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
  monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
  assert "this pod is one of several, and has no TPU" in dmfnet_train(STAGE1)


def test_a_slice_that_does_not_answer_is_told(dmfnet_train, monkeypatch):
  """JAX asks for the other hosts with `requests`, whose errors are `OSError`s."""

  def initialize(*args, cluster_detection_method, **options):
    asked.append(cluster_detection_method is None)
    raise OSError("Max retries exceeded with url: /computeMetadata")

  asked = []
  monkeypatch.setattr(distributed, "has_tpu", lambda: True)
  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  message = dmfnet_train(STAGE1)
  assert "cannot join the other processes: Max retries exceeded" in message
  assert "for this host alone: --coordinator localhost:8476 --num-processes 1" in message
  dmfnet_train(
    STAGE1, *("--coordinator=localhost:8476", "--num-processes=1", "--process-id=0")
  )  # JAX must not ask again
  assert asked == [True, False]


@no_tpu
@pytest.mark.parametrize(
  ("tasks", "step_tasks", "expected"),
  [("4", "4", True), ("4", "1", False), ("4", None, True), ("1", None, False)],
)
def test_a_step_of_one_task_is_alone(tasks, step_tasks, expected):
  """As a plain command in an allocation for several."""
  environment = {"SLURM_NTASKS": tasks, "SLURM_STEP_NODELIST": "node1", "SLURM_PROCID": "1"}
  if step_tasks:
    environment["SLURM_STEP_NUM_TASKS"] = step_tasks
  assert distributed._in_cluster(environment) == expected
