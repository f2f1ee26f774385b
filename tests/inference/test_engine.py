"""The engine: sizes, memory, devices, and each chip's own share of the arithmetic."""

import functools
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

from dmfnet_jax import methods
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference import memory
from dmfnet_jax.inference.engine import Engine, example_keys, padded_side
from dmfnet_jax.inference.programs import divide_among
from dmfnet_jax.methods.method import Compute, Method
from dmfnet_jax.preflight.chips import describe_devices
from dmfnet_jax.weights.files import save_weights

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
  ("size", "padded"),
  [(1, 16), (16, 16), (17, 32), (250, 256), (256, 256), (257, 288), (512, 512), (513, 576)],
)
def test_a_side_is_padded_to_one_of_a_few_sizes(size, padded):
  assert padded_side(size, 16) == padded


def test_padded_sizes_fit_the_network_and_are_few():
  """Eight an octave, and at most an eighth larger than the picture (or less than a stride)."""
  for stride in (1, 2, 16):
    sizes = np.arange(1, 2049)
    padded = np.array([padded_side(size, stride) for size in sizes.tolist()])
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


def examples(*sizes, seed=0):
  """Sources of so many examples, [H, W, 1] each."""
  return [
    {"a": draw(*size, 1, seed=seed + i), "b": draw(*size, 1, seed=seed + i + 100)}
    for i, size in enumerate(sizes)
  ]


def fuse(fusing, sources, names=None, **options):
  names = names or [str(i) for i in range(len(sources))]
  results = fusing.run(sources, example_keys(0, names), **options)
  return [result["fused"][..., 0] for result in results]


def test_mixed_sizes_share_batches_and_do_not_mix(fusing):
  """Each picture is as if it alone had been fused, in the order given."""
  sizes = [(13, 21), (4, 6), (14, 22), (13, 22), (4, 5)]
  sources, names = examples(*sizes), list("vwxyz")
  together = fuse(fusing, sources, names, batch_size=2)
  assert [x.shape for x in together] == sizes
  for i, fused in enumerate(together):
    (alone,) = fuse(fusing, sources[i : i + 1], names[i : i + 1])
    np.testing.assert_allclose(fused, alone, atol=1e-6)


def test_a_picture_is_padded_by_reflection_and_cut(fusing):
  (source,) = examples((13, 21))
  padded = {name: np.pad(x, ((0, 1), (0, 1), (0, 0)), "reflect") for name, x in source.items()}
  (fused,), (whole,) = fuse(fusing, [source]), fuse(fusing, [padded])
  np.testing.assert_array_equal(whole[:13, :21], fused)


def test_progress_is_told_batch_by_batch(fusing):
  done = []
  fuse(fusing, examples(*[(4, 6)] * 5), batch_size=2, on_done=done.append)
  assert done == [2, 2, 1]


class Memory:
  """A method of a user's that has room for some examples and parts, and tells what was tried."""

  def __init__(self, room, parts=1):
    self.room = room
    self.tried = []
    self.method = Method(
      defaults=lambda stage: {},
      model=(),
      networks=(),
      parts=lambda config: parts,
      fuse=self.fuse,
    )

  def fuse(self, config, compute):
    def apply(params, images, keys):
      self.tried.append((len(keys), compute.parts_per_step))
      if len(keys) * compute.parts_per_step > self.room:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")
      return {"fused": images["a"]}

    return apply


@pytest.fixture
def engine_with(users_method):
  """Makes an engine of a method that lives in this test alone."""
  return lambda users, **options: Engine({}, {"method": users_method(users.method)}, **options)


def test_a_full_memory_takes_fewer_examples(engine_with):
  """From then on; what was fused before stays, and no picture is lost."""
  users = Memory(room=3)
  fusing = engine_with(users)
  sources = examples(*[(4, 6)] * 9)
  for _ in range(2):
    for fused, source in zip(fuse(fusing, sources, batch_size=8), sources, strict=True):
      np.testing.assert_array_equal(fused, source["a"][..., 0])
  assert [count for count, _ in users.tried] == [8, 4, 2]
  assert fusing.batch_size((4, 6), 8) == 2
  assert fusing.batch_size((8, 6), 8) == 8  # another size's memory is another matter


def test_where_not_even_one_fits_it_is_said(engine_with):
  users = Memory(room=0)
  with pytest.raises(UserError, match=r"a picture of 4 x 6 does not fit the memory"):
    fuse(engine_with(users), examples((4, 6), (4, 6)), batch_size=2)
  assert [count for count, _ in users.tried] == [2, 1]


def test_parts_that_the_user_has_set_are_kept(engine_with):
  users = Memory(room=2, parts=6)
  with pytest.raises(UserError, match="does not fit the memory"):
    fuse(engine_with(users, parts_per_step=3), examples((4, 6)))
  assert users.tried == [(1, 3)]


def test_other_errors_pass(engine_with):
  users = Memory(room=1)
  fusing = engine_with(users)
  with pytest.raises(ValueError, match="told"):
    fuse(fusing, examples((4, 6)), on_done=lambda count: (_ for _ in ()).throw(ValueError("told")))


def test_the_noise_is_the_same_with_any_default_generator(fusing):
  """Keys of other generators would draw otherwise in a batch than alone."""
  keys = example_keys(0, ["x", "y"])
  with jax.default_prng_impl("rbg"):
    other = example_keys(0, ["x", "y"])
  assert (jax.random.key_data(keys) == jax.random.key_data(other)).all()
  assert jax.random.key_impl(other) == jax.random.key_impl(keys)


def estimate(config, size, pairs, passes, dtype):
  method = methods.get(config["method"])
  return method.memory(config, size, pairs, passes, jnp.dtype(dtype).itemsize)


def test_fewer_passes_take_less_memory():
  """At most half of the one batch of six; stated without running anything."""
  params, config = tiny.model(width=16, multipliers=(1, 1, 2))
  sizes = {
    passes: Engine(params, config, parts_per_step=passes).temporary_bytes((64, 64))
    for passes in (1, 2, 6)
  }
  assert sizes[1] < sizes[2] < sizes[6]
  assert sizes[1] <= sizes[6] / 2
  for passes, measured in sizes.items():
    estimated = estimate(config, (64, 64), 1, passes, "float32")
    assert measured <= estimated <= 2 * measured


class Device:
  def __init__(self, platform, free=None):
    self.platform = platform
    self.free = free

  def memory_stats(self):
    return self.free and {"bytes_limit": self.free + 1000, "bytes_in_use": 1000}


def test_passes_follow_the_memory_at_hand():
  """CPUs and TPUs take the passes one by one; a GPU as many as fit half of what is free."""
  _, config = tiny.model()
  method = methods.get(config["method"])

  def choose(*device):
    return memory.choose_parts(method, config, (256, 256), 4, "float32", Device(*device))

  assert choose("cpu") == choose("tpu", 2**40) == 1
  for passes in (1, 2, 3, 6):
    free = 2 * estimate(config, (256, 256), 4, passes, "float32")
    assert choose("gpu", free) == passes
    assert estimate(config, (256, 256), 4, passes, "bfloat16") < free / 2
  assert choose("gpu", 2) == 1
  assert choose("gpu", None) == 6


DEVICES = """
  import sys
  import jax
  import numpy as np
  import tiny
  from dmfnet_jax.inference.model import Model

  assert jax.local_device_count() == 4
  given = np.load(sys.argv[1])
  model = Model(*tiny.model())
  assert model.batch_size((4, 6)) == 4 and model.batch_size((4, 6), 6) == 6
  names = [str(i) for i in range(7)]
  fused = {
    "by_one": model.fuse(given["a"], given["b"], names=names),
    "by_two": model.fuse(given["a"], given["b"], names=names, batch_size=8),
    "by_three": model.fuse(given["a"], given["b"], names=names, batch_size=3),
    "alone": model.fuse(given["a"][0], given["b"][0], names=names[:1]),
    "one_by_one": model.fuse(
      given["a"][[0, 0]], given["b"][[0, 0]], names=names[:1] * 2, batch_size=1
    ),
    "large": model.fuse(given["large_a"], given["large_b"]),
    "narrow": model.fuse(given["large_a"][:, :4], given["large_b"][:, :4]),
  }
  np.savez(sys.argv[2], **fused)
"""


def test_four_devices_fuse_what_one_fuses(tmp_path):
  """Seven pairs on four devices: every picture bit for bit as on one device, in the same share.

  A batch of three takes three of them. A pair alone is shared by two, which divide the passes and
  the rows, by their own exchanges where each has enough of them: the same up to rounding.
  """
  from dmfnet_jax.inference.model import Model

  a, b = draw(7, 3, 5), draw(7, 3, 5, seed=1)
  large = {f"large_{name}": draw(24, 20, seed=i) for i, name in enumerate("ab", 2)}
  np.savez(tmp_path / "given.npz", a=a, b=b, **large)
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      textwrap.dedent(DEVICES),
      str(tmp_path / "given.npz"),
      str(tmp_path / "fused.npz"),
    ],
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": str(TESTS), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  fused = np.load(tmp_path / "fused.npz")
  model, names = Model(*tiny.model()), [str(i) for i in range(7)]
  for key, batch_size in (("by_one", 1), ("by_two", 2), ("by_three", 1)):
    expected = model.fuse(a, b, names=names, batch_size=batch_size)
    np.testing.assert_array_equal(fused[key], expected)
  np.testing.assert_allclose(fused["alone"], fused["by_one"][0], rtol=0, atol=1e-6)
  np.testing.assert_allclose(fused["large"], model.fuse(*large.values()), rtol=0, atol=1e-6)
  narrow = model.fuse(*(x[:, :4] for x in large.values()))
  np.testing.assert_allclose(fused["narrow"], narrow, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(fused["one_by_one"], np.stack([fused["alone"]] * 2))


CORES = """
  import sys
  import jax
  import dmfnet_jax

  if sys.argv[2] == "started":
    jax.devices()
  dmfnet_jax.load_model(sys.argv[1])
  print(jax.local_device_count())
"""


def test_a_cpu_is_one_device_a_core_unless_somebody_has_chosen(tmp_path):
  """The user's number wins, by JAX's setting or XLA's; a JAX that has started is left alone."""
  save_weights(tmp_path / "m.safetensors", *tiny.model())
  cores = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
  flags = os.environ.get("XLA_FLAGS", "")
  chosen = f"{flags} --xla_force_host_platform_device_count=3"
  for expected, start, environment in (
    (cores, "", {}),
    (5, "", {"JAX_NUM_CPU_DEVICES": "5"}),
    (3, "", {"XLA_FLAGS": chosen}),
    (1, "started", {}),
  ):
    given = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"} | environment
    done = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(CORES), str(tmp_path / "m.safetensors"), start],
      env=given | {"PYTHONPATH": str(TESTS), "JAX_PLATFORMS": "cpu"},
      capture_output=True,
      text=True,
      check=True,
    )
    assert int(done.stdout) == expected


def test_each_chip_computes_its_own_share(libtpu):
  """On a described slice of four TPU chips: a chip's program has a quarter of the arithmetic."""
  chips = describe_devices("v5e:2x2")
  params, config = tiny.model()

  fuse = methods.get("dmfnet").fuse(config, Compute("bfloat16", 6))

  def flops(num_devices, pairs):
    program = jax.jit(fuse) if num_devices == 1 else divide_among(fuse, chips[:num_devices])
    image = jax.ShapeDtypeStruct((pairs, 16, 16, 1), jnp.float32)
    keys = jax.eval_shape(lambda: example_keys(0, [""] * pairs))
    place = functools.partial(_shape, chips[0] if num_devices == 1 else None)
    inputs = jax.tree.map(place, (params, {"a": image, "b": image}, keys))
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


def test_models_of_one_config_share_their_programs(engine_with):
  """Each with its own parameters; traced once."""
  users = Memory(room=1)
  first = engine_with(users)
  second = Engine({}, first.config)
  for fusing in (first, second):
    fuse(fusing, examples((4, 6)))
  assert users.tried == [(1, 1)]
