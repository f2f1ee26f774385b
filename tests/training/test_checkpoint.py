"""Which checkpoints stay, what they hold, and which one a workdir is loaded from."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath

from dmfnet_jax.errors import UserError
from dmfnet_jax.training.checkpoint import Checkpointer
from dmfnet_jax.training.state import Optimizers, create_train_state
from dmfnet_jax.weights.files import save_weights
from dmfnet_jax.weights.workdir import load_trained, read_together


def make_state(step, *, ema=False, network="unet"):
  """A state whose parameters tell the step, and the average a hundred times it."""
  params = {network: {"x": np.full(3, step, np.float32)}}
  frozen = {"other": {"y": np.ones(2)}}
  state = create_train_state(params, Optimizers(tiny.config(1), params), ema=ema, frozen=frozen)
  if ema:
    state = state.replace(ema_params={network: {"x": np.full(3, 100 * step, np.float32)}})
  return state.replace(step=np.array(step, np.int32))


def save_all(workdir, losses, *, first=1, config=None, keep=2, **options):
  """Saves a checkpoint a loss, from step `first` on."""
  checkpointer = Checkpointer(epath.Path(workdir), config or tiny.config(1), keep)
  for step, loss in enumerate(losses, first):
    checkpointer.save(
      make_state(step, **options), {"next_batch": step}, {"loss": loss, "mse": 2 * loss}
    )
  checkpointer.close()


def steps_on_disk(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize(
  ("losses", "kept"),
  [
    ([5, 1, 4, 3, 2], [2, 4, 5]),
    ([5, 4, 3, 2, 1], [4, 5]),
    ([1, 2, 3, 4, 5], [1, 4, 5]),
    ([3, 1, 2, 1.5, 0.5, 4, 5], [5, 6, 7]),  # an earlier best goes
  ],
)
def test_the_newest_few_and_the_best_stay(tmp_path, losses, kept):
  save_all(tmp_path, losses)
  assert steps_on_disk(tmp_path) == kept


def test_the_best_stays_over_a_restart(tmp_path):
  save_all(tmp_path, [5, 1, 4])
  save_all(tmp_path, [3, 2, 6], first=4)
  assert steps_on_disk(tmp_path) == [2, 5, 6]


@pytest.mark.parametrize(("ema", "expected"), [(False, 2), (True, 200)])
def test_a_workdir_is_loaded_from_its_best_checkpoint(tmp_path, ema, expected):
  save_all(tmp_path, [5, 1, 4, 3], ema=ema)
  params, config = load_trained(epath.Path(tmp_path))
  tiny.assert_same(params, {"unet": {"x": np.full(3, expected, np.float32)}})
  assert config["unet"]["width"] == 8
  assert config.keys() == {"method", "unet"}


def test_stage2_is_loaded_with_its_copy_of_the_unet(tmp_path):
  save_all(tmp_path, [5, 1, 4], config=tiny.stage2_config(), network="fusion_head")
  frozen = {"unet": {"z": np.arange(3, dtype=np.float32)}}
  earlier = {"method": "dmfnet", "unet": {"width": 12}}
  save_weights(tmp_path / "frozen_start.safetensors", frozen, earlier)
  params, config = load_trained(epath.Path(tmp_path))
  tiny.assert_same(params, frozen | {"fusion_head": {"x": np.full(3, 2, np.float32)}})
  assert config["unet"]["width"] == 8  # the run's own section wins
  assert config["features"]["timesteps"] == [5, 10, 20]


def test_restoring_takes_the_newest_and_keeps_the_frozen(tmp_path):
  save_all(tmp_path, [5, 1, 4], ema=True)
  checkpointer = Checkpointer(epath.Path(tmp_path), tiny.config(1), 2)
  template = make_state(0, ema=True)
  state, position = checkpointer.restore(template)
  checkpointer.close()
  tiny.assert_same(state, make_state(3, ema=True))
  assert state.frozen is template.frozen
  assert state.params["unet"]["x"].dtype == jnp.float32
  assert position == {"next_batch": 3}


def test_an_empty_workdir_has_nothing(tmp_path):
  (tmp_path / "elsewhere").mkdir()
  with pytest.raises(UserError, match=r"no checkpoint in .*elsewhere"):
    load_trained(epath.Path(tmp_path / "elsewhere"))
  checkpointer = Checkpointer(epath.Path(tmp_path), tiny.config(1), 2)
  assert checkpointer.restore(make_state(0)) is None
  checkpointer.close()
  with pytest.raises(UserError, match="no checkpoint in"):
    load_trained(epath.Path(tmp_path))


def test_what_one_process_cannot_read_ends_all():
  """Each asks whether all could, also the one that could not."""
  asked = []

  def agree(yes, answer):
    asked.append(yes)
    return answer

  def fail():
    raise UserError("no such file")

  assert read_together(lambda: 3, lambda yes: agree(yes, True)) == 3
  with pytest.raises(UserError, match="another process cannot"):
    read_together(lambda: 3, lambda yes: agree(yes, False))
  with pytest.raises(UserError, match="no such file"):
    read_together(fail, lambda yes: agree(yes, yes))
  assert asked == [True, True, False]
