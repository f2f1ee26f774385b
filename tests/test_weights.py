"""Model files: what is written is read, whole or not at all."""

import resource
import signal
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors import numpy as safetensors

from dmfnet_jax.errors import UserError
from dmfnet_jax.weights import files as weights
from dmfnet_jax.weights import find

PARAMS = {
  "unet": {
    "init_conv": {"kernel": np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)},
    "scale": np.float32([1e-8, 1.0, 3e8]),
  },
  "fusion_head": {"bias": np.zeros(0, np.float32), "offset": np.array(0.1, np.float32)},
}
CONFIG = {
  "method": "dmfnet",
  "unet": {"width": 8, "multipliers": [1, 2]},
  "features": {"source": "decoder"},
}


def test_float32_comes_back_as_it_was(tmp_path):
  weights.save_weights(tmp_path / "x.safetensors", PARAMS, CONFIG)
  params, config = weights.read_weights(tmp_path / "x.safetensors")
  tiny.assert_same(params, PARAMS)
  assert config == weights.complete(CONFIG)
  assert config["unet"] | CONFIG["unet"] == config["unet"]
  # What is newer than the file has the method's default.
  assert config["features"]["timesteps"] == (5, 10, 20)


def test_arrays_need_not_be_contiguous_nor_numpys(tmp_path):
  kernel = np.arange(24, dtype=np.float32).reshape(4, 6)
  params = {"unet": {"turned": kernel.T, "every_other": kernel[:, ::2], "jax": jnp.ones((2, 3))}}
  weights.save_weights(str(tmp_path / "x.safetensors"), params, CONFIG)
  tiny.assert_same(weights.read_weights(str(tmp_path / "x.safetensors"))[0], params)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_become_float32(tmp_path, dtype):
  path = tmp_path / "x.safetensors"
  weights.save_weights(path, {"unet": {"x": np.array([0.5, -2.0])}}, CONFIG, dtype)
  tiny.assert_same(weights.read_weights(path)[0], {"unet": {"x": np.float32([0.5, -2.0])}})
  assert weights.read_weights(path)[0]["unet"]["x"].dtype == np.float32


def test_bfloat16_halves_the_file_and_rounds_once(tmp_path):
  params = {"unet": {"kernel": np.random.default_rng(0).standard_normal(9000).astype(np.float32)}}
  for name, dtype in (("full", None), ("half", jnp.bfloat16)):
    weights.save_weights(tmp_path / f"{name}.safetensors", params, CONFIG, dtype)
  sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
  assert sizes[0] - sizes[1] == pytest.approx(2 * 9000, abs=64)  # the header's length varies
  read, _ = weights.read_weights(tmp_path / "half.safetensors")
  kernel = read["unet"]["kernel"]
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel, params["unet"]["kernel"].astype(jnp.bfloat16))
  np.testing.assert_allclose(kernel, params["unet"]["kernel"], rtol=2**-8)


def test_it_is_an_ordinary_safetensors_file(tmp_path):
  weights.save_weights(tmp_path / "x.safetensors", PARAMS, CONFIG)
  flat = safetensors.load_file(tmp_path / "x.safetensors")
  assert sorted(flat) == [
    "fusion_head/bias",
    "fusion_head/offset",
    "unet/init_conv/kernel",
    "unet/scale",
  ]


def test_a_file_says_what_its_model_was_trained_on(tmp_path):
  path = tmp_path / "x.safetensors"
  for kinds in ((), ("MRI-CT", "MRI-PET")):
    weights.save_weights(path, PARAMS, CONFIG, trained_on=kinds)
    assert find.trained_on(path) == kinds
  assert find.trained_on(tmp_path) == ()  # a workdir that is not finished
  path.rename(tmp_path / "model.safetensors")
  assert find.trained_on(tmp_path) == kinds


def with_metadata(metadata, dtype=np.float32):
  return safetensors.save({"unet/x": np.ones(3, dtype)}, metadata)


METADATA = {"format": weights.FORMAT, "config": "{}"}
WHOLE = with_metadata(METADATA)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "is not a readable .safetensors file"),
    (b"PK\x03\x04 this is a zip, as torch writes it", "is not a readable .safetensors file"),
    (WHOLE[:-5], "is not a readable .safetensors file"),
    (WHOLE[:20], "is not a readable .safetensors file"),
    (struct.pack("<Q", 2**60) + b"{}", "is not a readable .safetensors file"),
    (with_metadata(None), "is not a dmfnet_jax model"),
    (with_metadata({"format": "pt"}), "is not a dmfnet_jax model"),
    (with_metadata({"format": weights.FORMAT}), "is not a dmfnet_jax model"),
    (with_metadata(METADATA, np.int8), "is not a dmfnet_jax model: unet/x is of type I8"),
  ],
)
def test_what_is_no_model_is_refused(tmp_path, content, message):
  path = tmp_path / "x.safetensors"
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as caught:
    weights.read_weights(path)
  assert str(path) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
  for path in (tmp_path / "missing.safetensors", tmp_path):
    with pytest.raises(UserError, match=f"{path}: (no such file|is a folder)"):
      weights.read_weights(path)


def test_a_save_without_room_leaves_the_old_file(tmp_path):
  """Files may not grow past a few kilobytes: as if there were no more room."""
  path = tmp_path / "x.safetensors"
  weights.save_weights(path, PARAMS, CONFIG)
  before = path.read_bytes()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
  try:
    with pytest.raises(UserError, match=f"{path}: cannot write: File too large"):
      weights.save_weights(path, {"unet": {"y": np.ones(10_000)}}, CONFIG)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_the_oldest_files_name_no_method(tmp_path):
  """They hold the first method's model."""
  path = tmp_path / "x.safetensors"
  metadata = {"format": weights.FORMAT, "config": '{"unet": {"width": 4}}'}
  path.write_bytes(safetensors.save({"unet/x": np.ones(3, np.float32)}, metadata))
  _, config = weights.read_weights(path)
  assert config["method"] == "dmfnet"
  assert (config["unet"]["width"], config["unet"]["norm_groups"]) == (4, 32)


def test_an_unknown_name_lists_the_known_ones():
  with pytest.raises(
    UserError, match=r"unknown model 'smal': give a released name \(fast, infrared"
  ):
    find.released_path("smal")


def test_every_released_model_is_read():
  for name in find.released_names():
    params, config = weights.read_weights(find.released_path(name))
    if config["method"] == "dmfnet":
      assert params.keys() == {"unet", "fusion_head"}, name
      assert config.keys() >= {"unet", "fusion_head", "features"}, name
    else:
      assert params.keys() == {"network"}, name
      assert config.keys() >= {"network", "loss"}, name
