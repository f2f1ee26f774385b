"""Large pictures in tiles: no seams, the picture's own noise, the same whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.window import normal_window
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference import memory, tiles
from dmfnet_jax.inference.model import Model
from dmfnet_jax.methods.method import WINDOW, Method

SIZE = (150, 101)
SIDE = 64


def near(config, compute):
  """A pixel and its neighbours: what tiles do not change."""

  def fuse(params, images, keys):
    largest = jax.lax.reduce_window(
      images["a"], -jnp.inf, jax.lax.max, (1, 9, 9, 1), (1, 1, 1, 1), "SAME"
    )
    return {"fused": (largest - images["b"]) / 2}

  return fuse


def statistic(config, compute):
  """A picture against its own mean, which tiles do change."""

  def fuse(params, images, keys):
    a = images["a"]
    return {"fused": a - a.mean((1, 2, 3), keepdims=True)}

  return fuse


def noise(config, compute):
  """Noise alone, a tile's being that of its window."""

  def fuse(params, images, keys):
    shape = images["a"].shape[1:]
    if WINDOW not in images:
      drawn = gaussian.normal_per_example(keys, shape)
    else:
      drawn = jax.vmap(lambda key, at: normal_window(key, shape, at))(keys, images[WINDOW])
    return {"fused": drawn / 10}

  return fuse


@pytest.fixture
def make(users_method):
  """A model of a `fuse` above."""

  def model_of(fuse, **fields):
    fields = {"in_tiles": "same", "stride": lambda config: 4, **fields}
    method = Method(defaults=lambda stage: {}, model=(), networks=(), fuse=fuse, **fields)
    return Model({}, {"method": users_method(method)})

  return model_of


def pictures(*sizes):
  rng = np.random.default_rng(0)
  drawn = [rng.uniform(-1, 1, (2, *size)).astype(np.float32) for size in sizes]
  return [x[0] for x in drawn], [x[1] for x in drawn]


@pytest.mark.parametrize("size", [SIZE, (64, 65), (63, 300), (257, 129)])
def test_weights_add_up_to_one_and_tiles_cover_all(size):
  total, step = np.zeros(size), []
  for tile in tiles.plan(size, SIDE, 4):
    assert all(start % 4 == 0 for start in tile.corner)
    assert all(
      full == min(SIDE, -(-side // 4) * 4) for full, side in zip(tile.full, size, strict=True)
    )
    weight = np.multiply.outer(*tile.weights)
    step += [np.abs(np.diff(weight, axis=axis)).max(initial=0) for axis in (0, 1)]
    (y, x), (height, width) = tile.corner, tile.size
    total[y : y + height, x : x + width] += weight
  np.testing.assert_allclose(total, 1, atol=1e-6)
  assert max(step) < 0.25  # over 8 pixels


def test_what_is_local_is_the_same_in_tiles(make):
  a, b = pictures(SIZE)
  whole, cut = (make(near).fuse(a, b, tile=tile)[0] for tile in ("off", SIDE))
  np.testing.assert_allclose(cut, whole, atol=1e-6)


def test_tiles_that_differ_leave_no_seam(make):
  """A ramp against its tile's mean: tiles are as far apart as can be. The step is a blend's."""
  a = np.linspace(-1, 1, 301, dtype=np.float32)[None].repeat(40, 0)
  model = make(statistic, in_tiles="close")
  fused = model.fuse(a, a, tile=SIDE)
  own = a[0, 1] - a[0, 0]
  parts = [slice(t.corner[1], t.corner[1] + t.size[1]) for t in tiles.plan(a.shape, SIDE, 4)]
  means = [a[0, part].mean() for part in parts]
  apart = np.diff(means).max()  # what a hard edge would show
  step = np.abs(np.diff(fused, axis=1) - own).max()
  assert 0.02 < step / apart < 0.2  # the steepest of a raised cosine over 8 pixels: pi / 16
  assert apart > 0.25


def test_noise_belongs_to_the_picture(make):
  model = make(noise, is_random=True)
  a, b = pictures(SIZE)
  whole, cut, other = (
    model.fuse(a, b, tile=tile, seed=seed)[0] for tile, seed in (("off", 1), (SIDE, 1), (SIDE, 2))
  )
  np.testing.assert_allclose(cut, whole, atol=1e-6)
  assert np.abs(other - whole).mean() > 0.05


def test_a_window_of_noise_is_that_of_the_whole():
  key = gaussian.make_key(3)
  whole = jax.random.normal(key, (2, 40, 56, 3))
  draw = jax.jit(normal_window, static_argnums=1)
  drawn = draw(key, (2, 16, 24, 3), np.array([8, 32, 40, 56], np.int32))
  np.testing.assert_array_equal(drawn, whole[:, 8:24, 32:56])


def test_the_batch_changes_nothing_and_progress_counts_pictures(make):
  a, b = pictures(SIZE, (20, 20), SIZE)
  model, done = make(near), []
  results = [model.fuse(a, b, tile=SIDE, batch_size=n, on_done=done.append) for n in (1, 4)]
  for one, four in zip(*results, strict=True):
    np.testing.assert_array_equal(one, four)
  assert sum(done) == 2 * len(a)


def test_tiles_are_told_as_steps(make):
  told = []
  a, b = pictures(SIZE)
  model = make(near)
  watched = Model({}, model.config, on_step=lambda *step: told.append(step))
  watched.fuse(a, b, tile=SIDE, batch_size=1)
  assert told == [(i, 6) for i in range(1, 7)]


def test_what_follows_the_crop_sees_the_whole(make):
  """Each tile's own range would be another."""
  ramp = np.add.outer(np.linspace(-0.5, 0, 100), np.linspace(-0.2, 0.5, 100)).astype(np.float32)

  def stretch(config):
    return lambda outputs: {"fused": outputs["fused"] / jnp.max(outputs["fused"])}

  model = make(near, after_crop=stretch)
  whole, cut = (model.fuse(ramp, -ramp, tile=tile) for tile in ("off", SIDE))
  np.testing.assert_allclose(cut, whole, atol=1e-6)


def test_what_does_not_fit_is_cut_by_itself(make, monkeypatch):
  model = make(statistic, memory=lambda config, size, *_: 10 * size[0] * size[1], in_tiles="close")
  monkeypatch.setattr(memory, "usable_bytes", lambda device: 10 * 1280 * 2560)
  assert model.tile_size(1024, 1024) is None
  assert model.tile_size(1280, 2560) is None
  assert model.tile_size(1280, 2561) == 1024
  assert model.tile_size(1280, 2561, "off") is None
  a = np.zeros((1280, 2561), np.uint8)
  with pytest.warns(UserWarning, match="fused in tiles of 1024, which is close to"):
    model.fuse(a, a)


@pytest.mark.parametrize(
  ("line", "files"),
  [
    ("0::/job/step", ("memory.max", "memory.current", "inactive_file")),
    (
      "4:memory:/job/step",
      ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ),
  ],
)
def test_limits_of_jobs_and_containers_count(tmp_path, line, files):
  """Those of the groups above, too; files that the system keeps in memory are as good as free."""
  limit, used, cache = files
  for place, limited, use in (("", "max", 500), ("job", "400", 300), ("job/step", "max", 300)):
    top, _, name = limit.rpartition("/")
    folder = tmp_path / top / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(limited)
    (folder / used.rpartition("/")[2]).write_text(f"{use}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{cache} 50\n")
  assert memory._left_by_cgroups(f"{line}\n1:cpu:/\n", tmp_path) == [150]


def test_where_there_are_no_tiles_it_is_said(make):
  a, b = pictures(SIZE)
  for fields in ({"is_random": True, "in_tiles": None}, {"in_tiles": "no"}):
    model = make(near, **fields)
    assert model.tile_size(9999, 9999) is None
    with pytest.raises(UserError, match="has no tiles: it must see all of a picture"):
      model.fuse(a, b, tile=SIDE)
  for wrong in (8, "many", 64.0):
    with pytest.raises(UserError, match="give auto, off or a side from 32 pixels on"):
      make(near).fuse(a, b, tile=wrong)
