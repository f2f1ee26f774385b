"""The public model object: loads, fuses arrays, keeps colour."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dmfnet_jax import methods
from dmfnet_jax.backend import enable_compilation_cache, use_all_cores
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.engine import Engine, example_keys
from dmfnet_jax.io import color, pictures
from dmfnet_jax.methods import parts
from dmfnet_jax.methods.method import Field, Params, select
from dmfnet_jax.weights import load_params


class Model:
  """A trained model of any method.

  Attributes:
    method: the method's record.
    params: network -> pytree of float32 arrays.
    config: the model config: its "method" and the model's sections.
  """

  def __init__(self, params: Params, config: dict[str, Any], **engine_options: Any):
    self.params = params
    self.config = config
    self._engine = Engine(params, config, **engine_options)
    self.method = self._engine.method

  def fuse(
    self,
    *sources: Any,
    seed: int = 0,
    names: Sequence[str] | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    on_done: Callable[[int], None] | None = None,
  ) -> Any:
    """Fuses one example, a batch of them or lists of pictures of any sizes.

    Args:
      *sources: the method's sources in their order, such as A and B: [H, W] or [B, H, W] each, or a
        list of B pictures [H, W]; uint8 or float in [-1, 1]. Where the method takes colour or the
        result is to have it, with a last axis of 3 (RGB). All of one kind of dtype.
      seed: noise is drawn from (seed, name), so the same call gives the same picture.
      names: [B] names of the examples (or one string for one); by default all are "", so a picture
        is the same alone and in a batch.
      samples: fuse K times with other noise and return the mean and the deviation.
      batch_size: examples that go through the networks at a time, over all devices; by default one
        per core or device on a CPU and half a million pixels' worth per accelerator.
      on_done: told how many examples are done, after each batch.

    Returns:
      The fused pictures, of the inputs' kind of dtype (uint8 or float32 in [-1, 1]), a list where
      lists were given; coloured where the source that gives colour is: its chroma with the fused
      luma. With `samples`, a tuple of the mean pictures and the per-pixel standard deviation of the
      luma in grey levels 0..255 (float32).

    Raises:
      UserError: shapes, dtypes or names that do not go together, or samples of a method that draws
        nothing.
    """
    for option, value in (("samples", samples), ("batch_size", batch_size)):
      if value is not None and value < 1:
        raise UserError(f"{option} must be at least 1, got {value}")
    if samples is not None and not self.method.is_random:
      raise UserError(f"{self.config['method']} draws no noise: samples would all be the same")
    listed, single, columns = self._columns(sources)
    count = len(columns[0])
    if single and isinstance(names, str):
      names = [names]
    if names is None:
      names = [""] * count
    if isinstance(names, str) or len(names) != count:
      given = repr(names) if isinstance(names, str) else f"{len(names)} names"
      raise UserError(f"{given} for {count} pairs: give a list of one name per pair")

    fields = self.method.sources
    examples = [
      {f.name: _to_source(f, x, self.method.space) for f, x in zip(fields, row, strict=True)}
      for row in zip(*columns, strict=True)
    ]
    output = self.method.outputs[0].name
    drawn = []
    for draw in range(samples or 1):
      keys = example_keys(seed, names, draw)
      # Of several draws each example is done with the last one.
      tell = on_done if draw == (samples or 1) - 1 else None
      results = self._engine.run(examples, keys, batch_size, tell)
      drawn.append([result[output] for result in results])

    coloured = next((i for i, field in enumerate(fields) if field.gives_colour), 0)
    fused = [
      _finish(np.stack(pictures_drawn).mean(0), like)
      for *pictures_drawn, like in zip(*drawn, columns[coloured], strict=True)
    ]
    answers: list[Any] = [fused]
    if samples is not None:
      stacks = [np.stack(luma) for luma in zip(*drawn, strict=True)]
      answers.append([luma[..., 0].std(0) * 127.5 for luma in stacks])
    if single:
      answers = [answer[0] for answer in answers]
    elif not listed:
      answers = [np.stack(answer) for answer in answers]
    return answers[0] if samples is None else tuple(answers)

  def _columns(self, sources: Sequence[Any]) -> tuple[bool, bool, list[list[np.ndarray]]]:
    """Whether lists were given, or one example; and each source's arrays, one per example."""
    fields = self.method.sources
    if len(sources) != len(fields):
      wanted = ", ".join(field.name for field in fields)
      raise UserError(f"{self.config['method']} takes {len(fields)} sources ({wanted})")
    listed = all(isinstance(source, (list, tuple)) for source in sources)
    first = next(i for i, field in enumerate(fields) if not field.is_vector)
    if listed:
      columns = [[np.asarray(x) for x in source] for source in sources]
      if len({len(column) for column in columns}) > 1:
        counts = " and ".join(
          f"{len(c)} pictures {f.name}" for c, f in zip(columns, fields, strict=True)
        )
        raise UserError(counts)
      for row in zip(*columns, strict=True):
        self._check(row, (self.method.space,))
      return True, False, columns
    arrays = [np.asarray(source) for source in sources]
    space = self.method.space
    self._check(arrays, (space, space + 1))
    single = arrays[first].ndim == space
    return False, single, [[x] if single else list(x) for x in arrays]

  def _check(self, arrays: Sequence[np.ndarray], ndims: Sequence[int]) -> None:
    """Refuses arrays that do not go together."""
    fields = self.method.sources
    shown = [(f, x) for f, x in zip(fields, arrays, strict=True) if not f.is_vector]
    first = shown[0][1]
    shape = _without_colour(first, ndims)
    shapes = {
      x.shape[:-1] if x.ndim == len(shape) + 1 and x.shape[-1] == 3 else x.shape for _, x in shown
    }
    if len(shape) not in ndims or shapes != {shape}:
      wanted = " or ".join({2: "[H, W]", 3: "[B, H, W]", 4: "[B, D, H, W]"}[n] for n in ndims)
      others = " and ".join(f.name for f, _ in shown[1:])
      got = " and ".join(str(x.shape) for _, x in shown)
      raise UserError(
        f"{shown[0][0].name} must be {wanted} and {others} of the same shape (or with 3 "
        f"colours last), got {got}"
      )
    if 0 in shape:
      raise UserError(f"an image without pixels: {shown[0][0].name} has the shape {shape}")
    kinds = [x.dtype == np.uint8 or np.issubdtype(x.dtype, np.floating) for _, x in shown]
    if not all(kinds) or len({x.dtype == np.uint8 for _, x in shown}) > 1:
      names = " and ".join(f.name for f, _ in shown)
      got = " and ".join(str(x.dtype) for _, x in shown)
      raise UserError(f"{names} must both be uint8 or both float, got {got}")
    for f, x in shown:
      # Tolerates rounding; anything else is an image in another range, such as 0..255 floats.
      if x.dtype != np.uint8 and not (x.min() >= -1.001 and x.max() <= 1.001):
        raise UserError(f"{f.name} is float and must lie in [-1, 1], got {x.min()} to {x.max()}")

  def padded_size(self, height: int, width: int) -> tuple[int, int]:
    """The size to which a picture is padded; pictures of one padded size share batches."""
    height, width = self._engine.padded((height, width))
    return height, width

  def batch_size(self, padded_size: tuple[int, int], batch_size: int | None = None) -> int:
    """How many pictures of a padded size go through at a time, over all devices."""
    return self._engine.batch_size(padded_size, batch_size)

  def fingerprint(self) -> str:
    """SHA-256 over the model's config and parameters, names and values."""
    # The oldest method went without a name: results of then are still this model's.
    named = {k: v for k, v in self.config.items() if (k, v) != ("method", methods.OLDEST)}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
      digest.update(jax.tree_util.keystr(path).encode())
      digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()

  def __getattr__(self, name: str) -> Callable[..., Any]:
    """A further function of the method, one of its `extras`."""
    engine = self.__dict__.get("_engine")
    if engine is None or name not in engine.method.extras:
      raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
    return lambda *args: engine.extra(name, *args)


def load_model(
  model: str | os.PathLike[str], *, plugins: Sequence[str] = (), **engine_options: Any
) -> Model:
  """Loads a released name, a `.safetensors` file or a training workdir.

  What it compiles is kept between processes, see `backend.enable_compilation_cache`.

  Args:
    model: what to load; an existing path wins over a released name.
    plugins: modules of yours whose parts the model may name; see `methods.parts`.
    **engine_options: `compute_dtype` and `parts_per_step` of the `Engine`.

  Raises:
    UserError: nothing of that name, a damaged file, a workdir whose stage does not fuse yet, or a
      part of a module that `plugins` does not name.
  """
  enable_compilation_cache()
  use_all_cores()
  parts.allow(plugins)
  params, config = load_params(model)
  loaded = Model(params, config, **engine_options)
  missing = [name for name in loaded.method.networks if name not in params]
  if missing:
    raise UserError(
      f"{model} has no {' and no '.join(missing)}: fusing needs a model of the method's last stage"
    )
  loaded.params = select(params, loaded.method.networks)
  return loaded


def _without_colour(x: np.ndarray, ndims: Sequence[int]) -> tuple[int, ...]:
  """A picture's shape without its colours; what is ambiguous has none."""
  return x.shape[:-1] if x.ndim not in ndims and x.shape[-1:] == (3,) else x.shape


def _to_source(field: Field, x: np.ndarray, space: int) -> np.ndarray:
  """A source as methods take it: float32 [*space, C] in [-1, 1]; a vector as it is."""
  if field.is_vector:
    return x.astype(np.float32)
  is_rgb = x.ndim == space + 1
  if field.channels == 1:
    x = (_luma(x) if is_rgb else x)[..., None]
  elif not is_rgb:
    x = np.repeat(x[..., None], field.channels, axis=-1)
  return pictures.to_float(x) if x.dtype == np.uint8 else x.astype(np.float32)


def _luma(x: np.ndarray) -> np.ndarray:
  return color.rgb_to_luma(x) if x.dtype == np.uint8 else x @ np.array(color.WEIGHTS, x.dtype)


def _finish(fused: np.ndarray, like: np.ndarray) -> np.ndarray:
  """Gives a fused picture [H, W, C] in [-1, 1] a source's kind of dtype, and a luma its chroma."""
  fused = np.clip(fused, -1, 1)
  if fused.shape[-1] == 3:
    return pictures.from_float(fused) if like.dtype == np.uint8 else fused
  fused = fused[..., 0]
  is_rgb = like.ndim == fused.ndim + 1
  if like.dtype == np.uint8:
    grey = pictures.from_float(fused)
    return color.replace_luma(like, grey) if is_rgb else grey
  if not is_rgb:
    return fused
  # With Cb and Cr kept, a change of luma is the same change of red, green and blue.
  return np.clip(like + (fused - _luma(like))[..., None], -1, 1).astype(np.float32)
