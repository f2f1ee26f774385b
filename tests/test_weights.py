"""Model files: what is written is read, whole or not at all."""

import struct

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath
from safetensors import numpy as safetensors

from dmfnet_jax import weights
from dmfnet_jax.errors import UserError

PARAMS = {
  "unet": {
    "init_conv": {"kernel": np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)},
    "scale": np.float32([1e-8, 1.0, 3e8]),
  },
  "fusion_head": {"bias": np.zeros(0, np.float32), "offset": np.array(0.1, np.float32)},
}
CONFIG = {"unet": {"width": 8, "multipliers": [1, 2]}, "features": {"source": "decoder"}}


def test_float32_comes_back_as_it_was(tmp_path):
  weights.save_weights(tmp_path / "x.safetensors", PARAMS, CONFIG)
  params, config = weights.read_weights(tmp_path / "x.safetensors")
  tiny.assert_same(params, PARAMS)
  assert config == CONFIG


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
    with pytest.raises(UserError, match=f"cannot read the model file {path}: "):
      weights.read_weights(path)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
  path = epath.Path(tmp_path / "x.safetensors")
  weights.save_weights(path, PARAMS, CONFIG)
  before = path.read_bytes()

  def fill_the_disk(self, data):
    with open(self, "wb") as file:
      file.write(data[: len(data) // 2])
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(type(path), "write_bytes", fill_the_disk)
  with pytest.raises(UserError, match=f"cannot write the model file {path}: No space left"):
    weights.save_weights(path, {"unet": {"y": np.ones(100)}}, CONFIG)
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [tmp_path / path.name]


def test_an_unknown_name_lists_the_known_ones(monkeypatch):
  monkeypatch.setattr(weights, "released_names", lambda: ["large", "small"])
  with pytest.raises(UserError, match=r"unknown model 'smal': give a released name \(large, small"):
    weights.released_path("smal")


def test_every_released_model_is_read():
  for name in weights.released_names():
    params, config = weights.read_weights(weights.released_path(name))
    assert params.keys() == {"unet", "fusion_head"}, name
    assert config.keys() == {"unet", "fusion_head", "features"}, name
