"""The engine: sizes, memory, devices, and each chip's own share of the arithmetic."""

import functools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dmfnet_jax.inference import batches, engine
from dmfnet_jax.inference.engine import Engine, padded_size
from dmfnet_jax.preflight.chips import describe_devices

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
  ("size", "padded"),
  [(1, 16), (16, 16), (17, 32), (250, 256), (256, 256), (257, 288), (512, 512), (513, 576)],
)
def test_a_side_is_padded_to_one_of_a_few_sizes(size, padded):
  assert padded_size(size, 16) == padded


def test_padded_sizes_fit_the_network_and_are_few():
  """Eight an octave, and at most an eighth larger than the picture (or less than a stride)."""
  for stride in (1, 2, 16):
    sizes = np.arange(1, 2049)
    padded = np.array([padded_size(size, stride) for size in sizes.tolist()])
    assert (padded % stride == 0).all()
    assert (padded >= sizes).all()
    assert (padded - sizes < np.maximum(stride, sizes / 8 + 1)).all()
    assert (np.diff(padded) >= 0).all()
    assert len(np.unique(padded[(sizes > 256) & (sizes <= 512)])) == 8


@pytest.fixture(scope="module")
def fusing():
  return Engine(*tiny.model())


def draw(*shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_mixed_sizes_share_programs_and_do_not_mix(fusing, monkeypatch):
  """Sizes of one padded size compile once; each picture is as if it alone had been fused."""
  programs = []
  fuse = engine._fuse

  def counting(*key):
    program = fuse(*key)

    def call(params, a, b, keys):
      programs.append(a.shape)
      return program(params, a, b, keys)

    return call

  monkeypatch.setattr(engine, "_fuse", counting)
  alone = {}
  for size in ((13, 21), (14, 22), (13, 22)):
    a, b = draw(1, *size), draw(1, *size, seed=1)
    alone[size] = fusing.fuse(a, b, engine.pair_keys(0, ["x"]))
  assert set(programs) == {(1, 14, 22)}
  for size, expected in alone.items():
    a, b = draw(1, *size), draw(1, *size, seed=1)
    np.testing.assert_array_equal(fusing.fuse(a, b, engine.pair_keys(0, ["x"])), expected)
    padded = [np.pad(x, ((0, 0), (0, 14 - size[0]), (0, 22 - size[1])), "reflect") for x in (a, b)]
    whole = fusing.fuse(*padded, engine.pair_keys(0, ["x"]))
    np.testing.assert_array_equal(whole[0][: size[0], : size[1]], expected[0])


def test_pictures_of_one_padded_size_share_a_batch(fusing):
  sizes = [(13, 21), (14, 22), (13, 22), (14, 21)]
  a, b = ([draw(*size, seed=seed) for size in sizes] for seed in (0, 1))
  keys = engine.pair_keys(0, ["w", "x", "y", "z"])
  together = fusing.fuse(a, b, keys, batch_size=3)
  assert [x.shape for x in together] == sizes
  for i, fused in enumerate(together):
    (alone,) = fusing.fuse(a[i : i + 1], b[i : i + 1], keys[i : i + 1])
    np.testing.assert_allclose(fused, alone, atol=1e-6)
  with pytest.raises(ValueError, match="negative"):  # another padded size: whose it would be
    fusing.fuse([a[0], draw(15, 21)], [b[0], draw(15, 21)], keys[:2])


def test_a_full_memory_takes_fewer_passes(monkeypatch):
  """From then on, down to one; with passes that the user has set it is an error at once."""
  monkeypatch.setattr(engine, "choose_passes", lambda *args: 6)
  ran = []
  original = engine._fuse

  def fuse(config, dtype, passes, devices):
    ran.append(passes)
    if passes > limit:
      raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")
    return original(config, dtype, passes, devices)

  monkeypatch.setattr(engine, "_fuse", fuse)
  a, b, keys = draw(1, 4, 6), draw(1, 4, 6, seed=1), engine.pair_keys(0, ["x"])
  limit = 6
  (expected,) = Engine(*tiny.model()).fuse(a, b, keys)
  fusing, limit = Engine(*tiny.model()), 2
  ran.clear()
  for _ in range(2):
    np.testing.assert_allclose(fusing.fuse(a, b, keys)[0], expected, atol=1e-5)
  assert ran == [6, 3, 2, 2]
  for impossible in (Engine(*tiny.model(), passes_per_step=3), fusing):
    limit = 0
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
      impossible.fuse(a, b, keys)
  assert ran[4:] == [3, 2, 1]


def test_the_noise_is_the_same_with_any_default_generator(fusing):
  """Keys of other generators would draw otherwise in a batch than alone."""
  keys = engine.pair_keys(0, ["x", "y"])
  with jax.default_prng_impl("rbg"):
    other = engine.pair_keys(0, ["x", "y"])
  assert (jax.random.key_data(keys) == jax.random.key_data(other)).all()
  assert jax.random.key_impl(other) == jax.random.key_impl(keys)


def test_fewer_passes_take_less_memory():
  """At most half of the one batch of six; stated without running anything."""
  params, config = tiny.model(width=16, multipliers=(1, 1, 2))
  sizes = {
    passes: Engine(params, config, passes_per_step=passes).temporary_bytes(64, 64)
    for passes in (1, 2, 3, 6)
  }
  assert sizes[1] < sizes[2] < sizes[3] < sizes[6]
  assert sizes[1] <= sizes[6] / 2
  for passes, measured in sizes.items():
    estimated = batches.estimate_bytes(config, (64, 64), 1, passes, "float32")
    assert measured <= estimated <= 2 * measured


class Accelerator:
  platform = "gpu"

  def __init__(self, free):
    self.free = free

  def memory_stats(self):
    return self.free and {"bytes_limit": self.free + 1000, "bytes_in_use": 1000}


def test_passes_follow_the_memory_at_hand(monkeypatch):
  """CPUs and TPUs take the passes one by one; a GPU as many as fit half of what is free."""
  _, config = tiny.model()
  choice = (config, (256, 256), 4, "float32")
  assert batches.choose_passes(*choice) == 1
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert batches.choose_passes(*choice) == 1
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  for passes in (1, 2, 3, 6):
    free = 2 * batches.estimate_bytes(config, (256, 256), 4, passes, "float32")
    monkeypatch.setattr(jax, "local_devices", lambda free=free: [Accelerator(free)])
    assert batches.choose_passes(*choice) == passes
    half = batches.estimate_bytes(config, (256, 256), 4, passes, "bfloat16")
    assert half < free / 2
  monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator(2)])
  assert batches.choose_passes(*choice) == 1
  monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator(None)])
  assert batches.choose_passes(*choice) == 6


def test_the_choice_of_passes_is_kept(monkeypatch):
  """Less free memory later is no reason to compile another program for the same pictures."""
  chosen = iter([6, 2])
  monkeypatch.setattr(engine, "choose_passes", lambda *args: next(chosen))
  fusing = Engine(*tiny.model())
  keys = [fusing._key((16, 16), 4), fusing._key((16, 16), 4), fusing._key((16, 16), 2)]
  assert [passes for _, _, passes in keys] == [6, 6, 2]


DEVICES = """
  import sys
  import jax
  import numpy as np
  import tiny
  from dmfnet_jax.inference.batches import pairs_at_once
  from dmfnet_jax.inference.model import DMFNet

  assert jax.local_device_count() == 4
  assert pairs_at_once((3, 5)) == 4 and pairs_at_once((3, 5), batch_size=2) == 8
  given = np.load(sys.argv[1])
  model = DMFNet(*tiny.model())
  names = [str(i) for i in range(7)]
  fused = {
    "by_one": model.fuse(given["a"], given["b"], names=names),
    "by_two": model.fuse(given["a"], given["b"], names=names, batch_size=2),
    "alone": model.fuse(given["a"][0], given["b"][0], names=names[:1]),
  }
  first, divided = (jax.tree.leaves(model._engine._params_on(n))[0] for n in (1, 4))
  shared = divided.addressable_shards[0].data
  assert first.unsafe_buffer_pointer() == shared.unsafe_buffer_pointer()  # not held twice
  np.savez(sys.argv[2], **fused)
"""


def test_four_devices_fuse_what_one_fuses(tmp_path):
  """Seven pairs on four devices: every picture bit for bit as on one device, in the same share."""
  from dmfnet_jax.inference.model import DMFNet

  a, b = draw(7, 3, 5), draw(7, 3, 5, seed=1)
  np.savez(tmp_path / "given.npz", a=a, b=b)
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      textwrap.dedent(DEVICES),
      str(tmp_path / "given.npz"),
      str(tmp_path / "fused.npz"),
    ],
    env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(TESTS), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  fused = np.load(tmp_path / "fused.npz")
  model, names = DMFNet(*tiny.model()), [str(i) for i in range(7)]
  for key, batch_size in (("by_one", 1), ("by_two", 2)):
    expected = model.fuse(a, b, names=names, batch_size=batch_size)
    np.testing.assert_array_equal(fused[key], expected)
  np.testing.assert_array_equal(fused["alone"], fused["by_one"][0])


def test_each_chip_computes_its_own_share():
  """On a described slice of four TPU chips: a chip's program has a quarter of the arithmetic."""
  pytest.importorskip("libtpu", reason='TPU programs need libtpu: pip install -e ".[preflight]"')
  chips = describe_devices("v5e:2x2")
  params, config = tiny.model()

  def flops(num_devices, pairs):
    program = engine._fuse(json.dumps(config), "bfloat16", 6, tuple(chips[:num_devices]))
    image = jax.ShapeDtypeStruct((pairs, 16, 16), jnp.float32)
    keys = jax.eval_shape(lambda: engine.pair_keys(0, [""] * pairs))
    place = functools.partial(_shape, chips[0] if num_devices == 1 else None)
    inputs = jax.tree.map(place, (params, image, image, keys))
    compiled = program.trace(*inputs).lower().compile()
    return compiled.cost_analysis()["flops"]

  one_chip, share = flops(1, 8), flops(4, 8)
  assert share == pytest.approx(one_chip / 4, rel=0.05)
  # The arithmetic is in there at all: two pairs' six passes, with a 3 x 3 convolution each.
  assert share > 2 * 6 * 2 * 16 * 16 * 8 * 9 * 8


def _shape(chip, leaf):
  """A leaf's shape, on the chip where the program does not say itself where it runs."""
  sharding = jax.sharding.SingleDeviceSharding(chip) if chip is not None else None
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def test_models_of_one_config_share_their_programs():
  params, config = tiny.model()
  other = jax.tree.map(lambda x: 1.1 * x, params)
  first, second = Engine(params, config), Engine(other, config)
  a, b, keys = draw(1, 4, 6), draw(1, 4, 6, seed=1), engine.pair_keys(0, ["x"])
  assert (first.fuse(a, b, keys)[0] != second.fuse(a, b, keys)[0]).any()
  program = engine._fuse(*first._key((4, 6), 1), first._devices[:1])
  assert program is engine._fuse(*second._key((4, 6), 1), second._devices[:1])
