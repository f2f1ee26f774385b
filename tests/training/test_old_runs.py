"""Runs that version 0.1.0 began: the same command goes on with them, to what it would have made.

`golden/old_runs.tar.gz` holds a prepared dataset and the workdirs of a Stage I and a Stage II run
that version 0.1.0 saved at step 2 of 4 and was stopped in step 3 (without pictures, TensorBoard
files and the list of parameters); the Stage I run on which the second one is built is gone.
`old_runs.npz` holds what they became when that version went on with them: parameters and moving
averages after step 4, and the losses. Both were made with the settings of these tests, on one CPU
device.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
import unchanged
from safetensors import numpy as safetensors

from dmfnet_jax import weights
from dmfnet_jax.cli import main

GOLDEN = Path(unchanged.__file__).parent / "golden"
NETWORKS = {1: "unet", 2: "fusion_head"}  # what a stage trains
LEARNING_RATE = 1e-3
# As they were given to version 0.1.0.
FIELDS = {
  "dataset": "paired_folder",
  "crop_size": 16,
  "batch_size": 4,
  "num_train_steps": 4,
  "log_every_steps": 1,
  "eval_every_steps": 2,
  "sample_every_steps": 4,
  "checkpoint_every_steps": 2,
  "eval_batch_size": 2,
  "optimizer.learning_rate": LEARNING_RATE,
  "ema_decay": 0.5,
}
STAGE_FIELDS = {
  1: {
    "unet.width": 8,
    "unet.multipliers": "(1,1)",
    "unet.num_res_blocks": 1,
    "unet.norm_groups": 4,
  },
  2: {"stage1": "finished_stage1"},
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
  with np.load(GOLDEN / "old_runs.npz") as file:
    return dict(file)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_of_the_first_version_goes_on(golden, tmp_path, capsys, stage):
  workdir = unpack(tmp_path) / f"stage{stage}"
  fields = FIELDS | STAGE_FIELDS[stage] | {"data_dir": tmp_path / "data"}
  command = ["train", "--config", f"configs/dmfnet.py:stage={stage}", "--workdir", str(workdir)]
  assert main([*command, *(f"--config.{field}={value}" for field, value in fields.items())]) == 0
  error = capsys.readouterr().err
  assert f"resuming {workdir} at step 2" in error
  assert "warning" not in error

  # The first two lines are those of the first version.
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  for field in ("loss", "validation/loss"):
    values = [line[field] for line in lines if field in line]
    np.testing.assert_allclose(values, golden[f"stage{stage}/{field}"], rtol=1e-5)

  assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
  state = read_state(workdir / "checkpoints" / "4")
  assert int(state["step"]) == 4
  network = NETWORKS[stage]
  for tree in ("params", "ema_params"):
    trained = state[tree][network]
    assert_close({network: trained}, golden, f"stage{stage}/{tree}")

  # What is loaded is the average of step 4, the better one, and the UNet that was kept.
  params, config = weights.load_params(workdir)
  tiny.assert_same(params[network], state["ema_params"][network])
  assert config["unet"]["width"] == 8
  if stage == 2:
    kept = safetensors.load_file(workdir / "stage1.safetensors")
    ours = {f"unet/{path}": leaf for path, leaf in unchanged.leaves(params["unet"])}
    tiny.assert_same(ours, kept)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_workdir_of_the_first_version_is_a_model(tmp_path, stage):
  """Before anything is written to it: the networks, and for which method they are."""
  workdir = unpack(tmp_path) / f"stage{stage}"
  params, config = weights.load_params(workdir)
  assert set(params) == {"unet", NETWORKS[stage]}
  assert config["unet"]["multipliers"] == [1, 1]
  state = read_state(workdir / "checkpoints" / "2")
  tiny.assert_same(params[NETWORKS[stage]], state["ema_params"])


def unpack(folder: Path) -> Path:
  with tarfile.open(GOLDEN / "old_runs.tar.gz") as archive:
    archive.extractall(folder, filter="data")
  return folder


def read_state(checkpoint: Path) -> dict[str, Any]:
  """A checkpoint's state as it was saved, read by Orbax alone."""
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
    items = ocp.args.Composite(state=ocp.args.StandardRestore())
    return reader.restore(checkpoint.absolute(), args=items)["state"]


def assert_close(params: dict[str, Any], golden: dict[str, np.ndarray], name: str) -> None:
  """Compares every leaf: to 1e-5 of its largest value and a twentieth of a step.

  Adam makes whole steps of gradients that are hardly more than rounding.
  """
  ours = dict(unchanged.leaves(params, name))
  assert ours.keys() == {key for key in golden if key.startswith(f"{name}/")}
  for path, leaf in ours.items():
    within = 1e-5 * np.abs(golden[path]).max() + LEARNING_RATE / 20
    np.testing.assert_allclose(leaf, golden[path], rtol=0, atol=within, err_msg=path)
