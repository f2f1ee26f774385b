"""The exported program: only JAX runs it, for any number of pairs, to the model's own pictures."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy

from dmfnet_jax.errors import UserError
from dmfnet_jax.inference import engine, export
from dmfnet_jax.inference.model import Model
from dmfnet_jax.io import paths
from dmfnet_jax.weights.files import save_weights

SIZE = (13, 21)  # padded to 14 x 22
SEED = 2**31 + 5

PROGRAM = """
  import sys
  from importlib.machinery import PathFinder

  ALONE = ("dmfnet_jax", "flax", "optax", "orbax", "safetensors", "tensorflow", "etils", "PIL")

  class Hiding(PathFinder):  # as if only JAX were installed
    @classmethod
    def find_spec(cls, name, path=None, target=None):
      hidden = name.partition(".")[0] in ALONE
      return None if hidden else super().find_spec(name, path, target)

  sys.meta_path[:] = [f for f in sys.meta_path if f is not PathFinder and "editable" not in str(f)]
  sys.meta_path.append(Hiding)

  import jax
  import numpy as np

  program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
  given = np.load(sys.argv[2])
  images = given["a"], given["b"]
  fused = program.call(*images, np.uint32(given["seed"]), given["codes"])
  one = program.call(images[0][:2], images[1][:2], np.uint32(given["seed"]), given["codes"][:2])
  assert not any(name in sys.modules for name in ALONE)
  np.savez(sys.argv[3], fused=fused, one=one, platforms=program.platforms)
"""


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
  save_weights(path, *tiny.model())
  return path


@pytest.mark.parametrize("batch", [1, 2])
def test_a_process_that_has_only_jax_fuses(tmp_path, model_file, batch):
  export.export_model(str(model_file), tmp_path / "new" / "program", size=SIZE, batch=batch)
  a, b = np.random.default_rng(0).uniform(-1, 1, (2, 4, *SIZE)).astype(np.float32)
  names = ["", "x", "left", "y"]
  codes = np.array([engine.name_code(name) for name in names], np.uint32)
  np.savez(tmp_path / "given.npz", a=a, b=b, codes=codes, seed=SEED)
  paths = [tmp_path / "new" / "program", tmp_path / "given.npz", tmp_path / "fused.npz"]
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(PROGRAM), *map(str, paths)],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    cwd=tmp_path,  # not the checkout, where the package would be found
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = np.load(tmp_path / "fused.npz")
  assert found["platforms"].tolist() == ["cpu", "cuda", "tpu"]
  expected = Model(*tiny.model()).fuse(a, b, seed=SEED, names=names)
  np.testing.assert_allclose(found["fused"], expected, atol=1e-5)
  np.testing.assert_allclose(found["one"], expected[:2], atol=1e-5)


def test_onnx_runtime_fuses(tmp_path, model_file):
  """Any number of pairs, of a size that is padded; the picture is the model's without names."""
  onnxruntime = pytest.importorskip("onnxruntime")
  export.export_model(str(model_file), tmp_path / "fuse.onnx", size=SIZE, file_format="onnx")
  session = onnxruntime.InferenceSession(tmp_path / "fuse.onnx", providers=["CPUExecutionProvider"])
  a, b = np.random.default_rng(0).uniform(-1, 1, (2, 3, *SIZE)).astype(np.float32)
  expected = Model(*tiny.model()).fuse(a, b)
  for count in (1, 3):
    (fused,) = session.run(["fused"], {"a": a[:count], "b": b[:count]})
    np.testing.assert_allclose(fused, expected[:count], atol=1e-4)


def test_what_onnx_has_not_is_told_in_a_line(users_method):
  pytest.importorskip("jax2onnx")

  def fuse(params, images, keys):
    spectrum = jnp.fft.fft2(images["a"][..., 0])
    return {"fused": jnp.fft.ifft2(spectrum).real[..., None]}

  name = users_method(dataclasses.replace(toy.METHOD, fuse=lambda config, compute: fuse))
  with pytest.raises(UserError, match=rf"jax2onnx cannot write what {name} computes \(.*FFT"):
    export.export_onnx({"toy": toy.PARAMS}, {"method": name, "toy": {}}, size=(8, 8))


def test_onnx_has_no_bfloat16_and_no_fixed_batch(tmp_path, model_file):
  for option in ({"precision": "bfloat16"}, {"batch": 2}):
    with pytest.raises(UserError, match="an ONNX program is float32 and takes any batch"):
      export.export_model(str(model_file), tmp_path / "x.onnx", file_format="onnx", **option)
  assert not list(tmp_path.iterdir())


def test_the_program_is_one_step_whatever_the_batch():
  """The number of pairs is open, a multiple of those that go through the networks together."""
  params, config = tiny.model()
  shapes = {
    batch: export.export_fuse(params, config, size=SIZE, batch=batch, precision="bfloat16").in_avals
    for batch in (1, 4)
  }
  assert [str(shape.shape[0]) for shape in shapes[1][:2]] == ["n", "n"]
  assert [str(shape.shape[0]) for shape in shapes[4][:2]] == ["4*n", "4*n"]


def test_what_cannot_be_exported_writes_nothing(tmp_path, model_file):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="unknown model 'none'"):
    export.export_model("none", tmp_path / "program")
  with pytest.raises(UserError, match="cannot make this folder"):
    export.export_model(str(model_file), tmp_path / "file" / "program", size=SIZE)
  assert [path.name for path in paths.list_files(tmp_path)] == ["file"]
