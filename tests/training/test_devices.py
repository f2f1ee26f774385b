"""One device and four devices train the same model; and they need no TensorFlow for it."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tiny

TESTS = Path(__file__).resolve().parents[1]
DEVICES = 4

# Both stages, as `stage1_run` and `stage2_run` train them on one device.
PROGRAM = """
  import sys
  from importlib.machinery import PathFinder

  class Hiding(PathFinder):  # as if it were not installed
    @classmethod
    def find_spec(cls, name, path=None, target=None):
      return None if name == "tensorflow" else super().find_spec(name, path, target)

  sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding

  import jax
  import numpy as np
  import tiny
  from dmfnet_jax.training import setup
  from dmfnet_jax.training.loop import train_and_evaluate

  data_dir, stage1, out = sys.argv[1:]
  print(jax.device_count(), "devices")
  # A CPU's cores share what divides among them.
  assert [len(setup.choose_devices(size)) for size in (1, 4, 6, 7)] == [1, 4, 3, 1]
  told = setup.tell_idle(6, setup.choose_devices(6))
  assert told.startswith("config.batch_size=6 is divided among 3 of 4 cores: a multiple of 4"), told
  assert not setup.tell_idle(4, setup.choose_devices(4))
  for config in (tiny.config(1, data_dir), tiny.config(2, data_dir, start=stage1)):
    state = train_and_evaluate(config, f"{out}/stage{config.stage}")
    np.savez(f"{out}/stage{config.stage}.npz", **tiny.leaves(state.params))
  assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def four_devices(data_dir, stage1_run, tmp_path_factory) -> Path:
  """A folder with runs of both stages on four devices, where TensorFlow cannot be imported."""
  out = tmp_path_factory.mktemp("four_devices")
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(PROGRAM), str(data_dir), str(stage1_run[0]), str(out)],
    env=os.environ
    | {"JAX_NUM_CPU_DEVICES": str(DEVICES), "PYTHONPATH": str(TESTS), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == f"{DEVICES} devices\n"
  return out


def losses(workdir):
  """Everything in a run's metrics but its speed, and each name's values in order."""
  values: dict[str, list[float]] = {}
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    for name, value in json.loads(line).items():
      if not name.startswith(("steps_per", "images_per", "data_wait", "device_memory")):
        values.setdefault(name, []).append(value)
  return values


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_four_devices_train_what_one_trains(stage, four_devices, request):
  """Dropout, noise and the padded last batch of the evaluation included."""
  workdir, state = request.getfixturevalue(f"stage{stage}_run")
  ours, theirs = losses(four_devices / f"stage{stage}"), losses(workdir)
  assert ours.keys() == theirs.keys()
  for name, values in theirs.items():
    np.testing.assert_allclose(ours[name], values, rtol=1e-5, err_msg=name)
  with np.load(four_devices / f"stage{stage}.npz") as arrays:
    params = dict(arrays)
  assert params.keys() == tiny.leaves(state.params).keys()
  for path, leaf in tiny.leaves(state.params).items():
    np.testing.assert_allclose(params[path], leaf, rtol=1e-4, atol=1e-4, err_msg=path)


@pytest.mark.slow
def test_without_tensorflow_there_are_metrics_but_no_tensorboard(four_devices):
  for stage in (1, 2):
    names = {path.name for path in (four_devices / f"stage{stage}").iterdir()}
    assert "metrics.jsonl" in names
    assert not [name for name in names if name.startswith("events.")]
    assert len(list((four_devices / f"stage{stage}/samples").iterdir())) == 1


def test_tensorflow_is_not_imported_before_it_is_used():
  """Even where it is installed."""
  code = (
    "import sys; from dmfnet_jax.training import loop; import dmfnet_jax.inference.model;"
    "sys.exit('imported' if 'tensorflow' in sys.modules else 0)"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
