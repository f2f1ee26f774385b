"""Writes a model as one compiled-anywhere program that needs nothing but JAX to run.

The file is a `jax.export` artifact: StableHLO for CPU, CUDA GPUs and TPUs, with the weights inside.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax import methods
from dmfnet_jax.inference import engine
from dmfnet_jax.inference.model import load_model
from dmfnet_jax.io import paths
from dmfnet_jax.methods.method import Compute

PLATFORMS = ("cpu", "cuda", "tpu")


def export_model(
  model_spec: str,
  out: paths.PathLike,
  *,
  size: tuple[int, int] = (256, 256),
  batch: int = 1,
  precision: str = "float32",
  plugins: Sequence[str] = (),
) -> None:
  """Exports the fusing of pictures of one size, any number of them.

  In any process that has JAX,

      program = jax.export.deserialize(bytearray(open(out, "rb").read()))
      fused = program.call(a, b, seed, codes)

  fuses the method's sources, here a and b: float32 [N, height, width] in [-1, 1] (of a source with
  colours [N, height, width, 3], of a vector [N, C]), to float32 of the same shape. `seed` is a
  uint32 scalar and `codes` uint32 [N]: the CRC-32 of the pairs' names, 0 for none. The result is
  that of `model.fuse` with this seed and these names, up to the rounding of another compilation.

  Args:
    model_spec: a released model's name, a `.safetensors` file or a training workdir.
    out: the file to write; its folder is made where needed.
    size: height and width of the pictures, any.
    batch: pairs that go through the networks at a time; N is a multiple of it.
    precision: "float32" or "bfloat16", in which the networks compute.
    plugins: see `load_model`.

  Raises:
    UserError: an unknown model, or the file cannot be written.
  """
  model = load_model(model_spec, compute_dtype=precision, plugins=plugins)
  exported = export_fuse(model.params, model.config, size=size, batch=batch, precision=precision)
  target = paths.as_path(out)
  paths.make_folder(target.parent)
  paths.write_bytes(target, bytes(exported.serialize()))


def export_fuse(
  params: Any, config: dict[str, Any], *, size: tuple[int, int], batch: int, precision: str
) -> jax.export.Exported:
  """Lowers the whole computation, noise and padding included, for `PLATFORMS`.

  Args:
    params: the parameters by network.
    config: the model config.
    size: height and width.
    batch: examples at a time.
    precision: the compute dtype.
  """
  method = methods.get(config["method"])
  stride = method.stride(config)
  margins = [(0, engine.padded_side(side, stride, method.exact_size) - side) for side in size]
  window = tuple(slice(method.scale * side) for side in size)
  # One part at a time: how much memory the program will find is not known here.
  fuse_padded = method.fuse(config, Compute(precision, 1))
  output = method.outputs[0]

  @jax.jit
  def fuse(*args: jax.Array) -> jax.Array:
    *sources, seed, codes = args

    def step(inputs: tuple[jax.Array, ...]) -> jax.Array:
      *sources, codes = inputs
      images = {}
      for field, x in zip(method.sources, sources, strict=True):
        if not field.is_vector:
          x = x if field.channels > 1 else x[..., None]
          x = jnp.pad(x, [(0, 0), *margins, (0, 0)], mode="reflect")
        images[field.name] = x
      fused = fuse_padded(params, images, engine.fold_keys(seed, codes))[output.name]
      fused = fused if output.is_vector else fused[:, *window]
      return fused if output.channels > 1 else fused[..., 0]

    stepwise = jax.tree.map(lambda x: x.reshape(-1, batch, *x.shape[1:]), (*sources, codes))
    fused = jax.lax.map(step, stepwise)
    return fused.reshape(-1, *fused.shape[2:])

  (count,) = jax.export.symbolic_shape("n" if batch == 1 else f"{batch}*n")
  inputs = []
  for field in method.sources:
    channels = (field.channels,) if field.is_vector or field.channels > 1 else ()
    shape = (count, *(() if field.is_vector else size), *channels)
    inputs.append(jax.ShapeDtypeStruct(shape, jnp.float32))
  number = jnp.uint32
  lowered = jax.export.export(fuse, platforms=PLATFORMS)
  return lowered(*inputs, jax.ShapeDtypeStruct((), number), jax.ShapeDtypeStruct((count,), number))
