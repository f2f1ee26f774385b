"""Writes a model as one program that runs without this package, with the weights inside.

A `jax.export` artifact is StableHLO for CPU, CUDA GPUs and TPUs and needs JAX; an ONNX file runs in
ONNX Runtime, OpenVINO and others.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from dmfnet_jax import methods
from dmfnet_jax.errors import UserError, one_line
from dmfnet_jax.inference import engine
from dmfnet_jax.inference.model import load_model
from dmfnet_jax.io import paths
from dmfnet_jax.methods.method import Compute, Method

PLATFORMS = ("cpu", "cuda", "tpu")
FORMATS = ("jax", "onnx")


def export_model(
  model_spec: str,
  out: paths.PathLike,
  *,
  size: tuple[int, ...] = (256, 256),
  batch: int = 1,
  precision: str = "float32",
  file_format: str = "jax",
  plugins: Sequence[str] = (),
) -> None:
  """Exports the fusing of pictures of one size, any number of them.

  A program of the format "jax" is called, in any process that has JAX, as

      program = jax.export.deserialize(bytearray(open(out, "rb").read()))
      fused = program.call(a, b, seed, codes)

  fuses the method's sources, here a and b: float32 [N, height, width] in [-1, 1] (of a source with
  colours [N, height, width, 3], of a vector [N, C]), to float32 of the same shape. `seed` is a
  uint32 scalar and `codes` uint32 [N]: the CRC-32 of the pairs' names, 0 for none. The result is
  that of `model.fuse` with this seed and these names, up to the rounding of another compilation. Of
  a method that classifies it is [N, classes], the probabilities of all outputs in their order.

  An ONNX program has the sources alone as inputs, by their names, and its result is that of
  `model.fuse` with the seed 0 and without names: the noise is in the file.

  Args:
    model_spec: a released model's name, a `.safetensors` file or a training workdir.
    out: the file to write; its folder is made where needed.
    size: height and width of the pictures, any; of volumes three sides, or equal ones. A method
      that takes one size only has that.
    batch: pairs that go through the networks at a time; N is a multiple of it.
    precision: "float32" or "bfloat16", in which the networks compute.
    file_format: "jax" or "onnx".
    plugins: see `load_model`.

  Raises:
    UserError: an unknown model, a size of too few or too many sides, the file cannot be written, or
      what an ONNX program cannot have.
  """
  if file_format == "onnx" and (precision, batch) != ("float32", 1):
    raise UserError(
      "an ONNX program is float32 and takes any batch: leave --precision and --batch out, and ask "
      "the runtime for bfloat16 (OpenVINO: INFERENCE_PRECISION_HINT)"
    )
  model = load_model(model_spec, compute_dtype=precision, plugins=plugins)
  space = model.method.space
  if len(size) != space and len(set(size)) > 1:
    given = "x".join(map(str, size))
    wanted = "x".join(["64"] * space)
    raise UserError(f"--size {given}: {model_spec} takes {space} sides, such as {wanted}")
  size = size if len(size) == space else size[:1] * space
  size = model.method.size(model.config) or size
  target = paths.as_path(out)
  paths.make_folder(target.parent)
  if file_format == "onnx":
    content = export_onnx(model.params, model.config, size=size)
  else:
    exported = export_fuse(model.params, model.config, size=size, batch=batch, precision=precision)
    content = bytes(exported.serialize())
  paths.write_bytes(target, content)


def export_fuse(
  params: Any, config: dict[str, Any], *, size: tuple[int, ...], batch: int, precision: str
) -> jax.export.Exported:
  """Lowers the whole computation, noise and padding included, for `PLATFORMS`.

  Args:
    params: the parameters by network.
    config: the model config.
    size: height and width; of volumes three sides.
    batch: examples at a time.
    precision: the compute dtype.
  """
  method = methods.get(config["method"])
  # One part at a time: how much memory the program will find is not known here.
  fuse_pictures = _on_pictures(params, config, size, Compute(precision, 1))

  @jax.jit
  def fuse(*args: jax.Array) -> jax.Array:
    *sources, seed, codes = args

    def step(inputs: tuple[jax.Array, ...]) -> jax.Array:
      *sources, codes = inputs
      return fuse_pictures(sources, engine.fold_keys(seed, codes))

    stepwise = jax.tree.map(lambda x: x.reshape(-1, batch, *x.shape[1:]), (*sources, codes))
    fused = jax.lax.map(step, stepwise)
    return fused.reshape(-1, *fused.shape[2:])

  (count,) = jax.export.symbolic_shape("n" if batch == 1 else f"{batch}*n")
  inputs = [jax.ShapeDtypeStruct((count, *shape), jnp.float32) for shape in _shapes(method, size)]
  number = jnp.uint32
  lowered = jax.export.export(fuse, platforms=PLATFORMS)
  return lowered(*inputs, jax.ShapeDtypeStruct((), number), jax.ShapeDtypeStruct((count,), number))


def export_onnx(params: Any, config: dict[str, Any], *, size: tuple[int, ...]) -> bytes:
  """Writes the whole computation as an ONNX model of any number of examples.

  Args:
    params: the parameters by network.
    config: the model config.
    size: height and width; of volumes three sides.

  Raises:
    UserError: jax2onnx is not installed, or has no counterpart of what the method computes.
  """
  try:
    import jax2onnx
  except ImportError as error:
    raise UserError(
      'an ONNX program is written by jax2onnx: pip install "dmfnet_jax[onnx]"'
    ) from error
  method = methods.get(config["method"])
  # All parts at once: runtimes are no good at loops.
  compute = Compute("float32", method.parts(config))
  fuse_pictures = _on_pictures(params, config, size, compute)
  keys = engine.example_keys(0, [""])

  def fuse_one(*sources: jax.Array) -> jax.Array:
    with jax.ensure_compile_time_eval():  # ONNX has no random numbers of ours: they are drawn here
      return fuse_pictures([x[None] for x in sources], keys)[0]

  shapes = _shapes(method, size)
  traced = jax.make_jaxpr(fuse_one)(*(jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes))
  fuse = jax.vmap(lambda *sources: jaxpr_as_fun(traced)(*sources)[0])
  logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it remarks on every shape
  try:
    program = jax2onnx.to_onnx(
      fuse,
      [("N", *shape) for shape in shapes],
      model_name=config["method"],
      input_names=[field.name for field in method.sources],
      output_names=[method.outputs[0].name],
    )
  except NotImplementedError as error:
    raise UserError(
      f"jax2onnx cannot write what {config['method']} computes ({one_line(error)}): leave "
      "--format onnx out"
    ) from error
  return program.SerializeToString()


def _shapes(method: Method, size: tuple[int, ...]) -> list[tuple[int, ...]]:
  """The shapes of an example's sources in a program."""
  return [
    (*(() if f.is_vector else size), *((f.channels,) if f.is_vector or f.channels > 1 else ()))
    for f in method.sources
  ]


def _on_pictures(
  params: Any, config: dict[str, Any], size: tuple[int, ...], compute: Compute
) -> Callable[[Sequence[jax.Array], jax.Array], jax.Array]:
  """A method's `fuse` of sources as a program takes them, padding and cutting included."""
  method = methods.get(config["method"])
  stride = method.stride(config)
  margins = [(0, engine.padded_side(side, stride, method.exact_size) - side) for side in size]
  scale = method.scale(config)
  window = tuple(slice(scale * side) for side in size)
  fuse_padded = method.fuse(config, compute)
  after_crop = method.after_crop(config) or (lambda outputs: outputs)
  vectors = {field.name for field in method.outputs if field.is_vector}
  output = method.outputs[0]

  def fuse(sources: Sequence[jax.Array], keys: jax.Array) -> jax.Array:
    images = {}
    for field, x in zip(method.sources, sources, strict=True):
      if not field.is_vector:
        x = x if field.channels > 1 else x[..., None]
        x = jnp.pad(x, [(0, 0), *margins, (0, 0)], mode="reflect")
      images[field.name] = x
    outputs = fuse_padded(params, images, keys)
    cropped = {k: v if k in vectors else v[:, *window] for k, v in outputs.items()}
    finished = after_crop(cropped)
    if method.is_classification:
      return jnp.concatenate([finished[field.name] for field in method.outputs], axis=-1)
    fused = finished[output.name]
    return fused if output.channels > 1 else fused[..., 0]

  return fuse
