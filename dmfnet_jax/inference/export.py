"""Writes a model as one compiled-anywhere program that needs nothing but JAX to run.

The file is a `jax.export` artifact: StableHLO for CPU, CUDA GPUs and TPUs, with the weights inside.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax.data import images
from dmfnet_jax.inference import engine
from dmfnet_jax.inference.model import load_model

PLATFORMS = ("cpu", "cuda", "tpu")


def export_model(
  model_spec: str,
  out: images.PathLike,
  *,
  size: tuple[int, int] = (256, 256),
  batch: int = 1,
  precision: str = "float32",
) -> None:
  """Exports the fusing of pictures of one size, any number of them.

  In any process that has JAX,

      program = jax.export.deserialize(bytearray(open(out, "rb").read()))
      fused = program.call(a, b, seed, codes)

  fuses a and b, float32 [N, height, width] in [-1, 1] (the MRIs and the other modality's lumas), to
  float32 of the same shape. `seed` is a uint32 scalar and `codes` uint32 [N]: the CRC-32 of the
  pairs' names, 0 for none. The result is that of `model.fuse` with this seed and these names, up
  to the rounding of another compilation.

  Args:
    model_spec: a released model's name, a `.safetensors` file or a training workdir.
    out: the file to write; its folder is made where needed.
    size: height and width of the pictures, any.
    batch: pairs that go through the networks at a time; N is a multiple of it.
    precision: "float32" or "bfloat16", in which the networks compute.

  Raises:
    UserError: an unknown model, or the file cannot be written.
  """
  model = load_model(model_spec, compute_dtype=precision)
  exported = export_fuse(model.params, model.config, size=size, batch=batch, precision=precision)
  target = images.as_path(out)
  images.make_folder(target.parent)
  images.write_bytes(target, bytes(exported.serialize()))


def export_fuse(
  params: Any, config: dict[str, Any], *, size: tuple[int, int], batch: int, precision: str
) -> jax.export.Exported:
  """Lowers the whole computation, noise and padding included, for `PLATFORMS`.

  Args:
    params: {"unet", "fusion_head"}.
    config: the model config.
    size: height and width.
    batch: pairs at a time.
    precision: the compute dtype.
  """
  height, width = size
  stride = 2 ** (len(config["unet"]["multipliers"]) - 1)
  sides = [engine.padded_size(side, stride) for side in size]
  margin = ((0, 0), (0, sides[0] - height), (0, sides[1] - width))
  # One pass at a time: how much memory the program will find is not known here.
  fuse_padded = engine.fuse_function(config, precision, 1)

  @jax.jit
  def fuse(a: jax.Array, b: jax.Array, seed: jax.Array, codes: jax.Array) -> jax.Array:
    def step(pairs: tuple[jax.Array, ...]) -> jax.Array:
      a, b, codes = pairs
      a, b = (jnp.pad(x, margin, mode="reflect") for x in (a, b))
      return fuse_padded(params, a, b, engine.fold_keys(seed, codes))[:, :height, :width]

    stepwise = jax.tree.map(lambda x: x.reshape(-1, batch, *x.shape[1:]), (a, b, codes))
    return jax.lax.map(step, stepwise).reshape(a.shape)

  (count,) = jax.export.symbolic_shape("n" if batch == 1 else f"{batch}*n")
  image = jax.ShapeDtypeStruct((count, height, width), jnp.float32)
  number = jnp.uint32
  lowered = jax.export.export(fuse, platforms=PLATFORMS)
  return lowered(
    image, image, jax.ShapeDtypeStruct((), number), jax.ShapeDtypeStruct((count,), number)
  )
