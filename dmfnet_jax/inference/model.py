"""The public model object: loads, fuses arrays, keeps colour."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dmfnet_jax import methods
from dmfnet_jax.backend import enable_compilation_cache, ignore_absent_tpu, use_all_cores
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference import emphasis as emphases
from dmfnet_jax.inference import tiles
from dmfnet_jax.inference.engine import Engine, example_keys
from dmfnet_jax.inference.sources import (
  are_volumes,
  coloured_source,
  finish,
  gather,
  gather_apart,
  luma,
  to_source,
)
from dmfnet_jax.io import pictures
from dmfnet_jax.methods import parts
from dmfnet_jax.methods.method import Params, select
from dmfnet_jax.weights import find, load_params


class Model:
  """A trained model of any method.

  Attributes:
    method: the method's record.
    params: network -> pytree of float32 arrays.
    config: the model config: its "method" and the model's sections.
    trained_on: kinds of pairs, such as "MRI-CT"; empty where unknown.
  """

  trained_on: tuple[str, ...] = ()

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
    tile: int | str = "auto",
    emphasis: str | None = None,
  ) -> Any:
    """Fuses one example, a batch of them or lists of pictures of any sizes, or volumes.

    A method for whole volumes takes [D, H, W] in the place of [H, W].

    Args:
      *sources: the method's sources in their order, such as A and B: [H, W] or [B, H, W] each, or a
        list of B pictures [H, W]; uint8 or float in [-1, 1]. A last axis of 3 is colour (RGB): the
        result has that of the source that gives colour, of another the luma is taken with a
        warning. Two arrays [H, W, 3] are two coloured pictures; `inference.sources` says how shapes
        are told apart. A float source without any negative value is refused. All of one kind of
        dtype. A path stands for the picture in the file. Or volumes, nibabel images or
        `io.grids.Volume`s on one grid, of which the axial slices are fused (of a single slice,
        that one), or by a method for volumes the whole, see `inference.volumes`.
      seed: noise is drawn from (seed, name), so the same call gives the same picture.
      names: [B] names of the examples (or one string for one); by default a path's stem, as in the
        command, and otherwise "", so a picture is the same alone and in a batch. Of volumes one.
      samples: fuse K times with other noise and return the mean and the deviation.
      batch_size: examples that go through the networks at a time, over all devices; by default one
        per core or device on a CPU and half a million pixels' worth per accelerator.
      on_done: told how many examples (slices) are done, after each batch.
      tile: the side of the overlapping tiles in which larger pictures are fused; "auto": those that
        do not fit the memory, with a warning; "off". See `tile_size`.
      emphasis: "tracer": the luma's coarse scale follows the source that gives colour, where that
        shows something, so that more uptake is brighter; see `inference.emphasis`.

    Returns:
      The fused pictures, of the inputs' kind of dtype (uint8 or float32 in [-1, 1]), a list where
      lists were given; coloured where the source that gives colour is: its chroma with the fused
      luma. Of volumes one of A's kind on A's grid. With `samples`, a tuple of the mean pictures and
      the per-pixel standard deviation of the luma in grey levels 0..255 (float32).

    Raises:
      UserError: shapes, dtypes, ranges, grids or names that do not go together, a file that cannot
        be read, or samples of a method that draws nothing.
    """
    for option, value in (("samples", samples), ("batch_size", batch_size)):
      if value is not None and value < 1:
        raise UserError(f"{option} must be at least 1, got {value}")
    if samples is not None and not self.method.is_random:
      raise UserError(f"{self.config['method']} draws no noise: samples would all be the same")
    if self.method.is_classification:
      raise UserError(f"{self.config['method']} makes no picture: call classify")
    if emphasis is not None:
      self.check_emphasis(emphasis)
    if are_volumes(sources):
      from dmfnet_jax.inference.volumes import fuse_volumes  # its libraries take half a second

      if not isinstance(names, str | None):
        raise UserError("volumes: give one name, not a list")
      options: dict[str, Any] = {
        "seed": seed,
        "samples": samples,
        "batch_size": batch_size,
        "on_done": on_done,
        "tile": tile,
        "emphasis": emphasis,
      }
      return fuse_volumes(self, sources, name=names or "", **options)
    columns, stems, listed, single = gather(self.method, self.config["method"], sources)
    count = len(columns[0])
    if single and isinstance(names, str):
      names = [names]
    if names is None:
      names = stems
    if isinstance(names, str) or len(names) != count:
      given = repr(names) if isinstance(names, str) else f"{len(names)} names"
      raise UserError(f"{given} for {count} pairs: give a list of one name per pair")

    fields = self.method.sources
    examples = [
      {f.name: to_source(f, x, self.method.space) for f, x in zip(fields, row, strict=True)}
      for row in zip(*columns, strict=True)
    ]
    if tile == "auto":
      self._warn_of_tiles(examples)
    output = self.method.outputs[0].name
    drawn = []
    for draw in range(samples or 1):
      keys = example_keys(seed, names, draw)
      # Of several draws each example is done with the last one.
      tell = on_done if draw == (samples or 1) - 1 else None
      results = self._engine.run(examples, keys, batch_size, tell, tile)
      drawn.append([result[output] for result in results])

    means = [np.stack(of_one).mean(0) for of_one in zip(*drawn, strict=True)]
    leading = coloured_source(self.method)
    if emphasis is not None:
      tracers = [example[fields[leading].name] for example in examples]
      means = [
        emphases.follow_tracer(mean[..., 0], tracer[..., 0])[..., None]
        for mean, tracer in zip(means, tracers, strict=True)
      ]
    fused = [finish(mean, like) for mean, like in zip(means, columns[leading], strict=True)]
    answers: list[Any] = [fused]
    if samples is not None:
      stacks = [np.stack(draws) for draws in zip(*drawn, strict=True)]
      answers.append([luma(draws).std(0) * 127.5 for draws in stacks])
    if single:
      answers = [answer[0] for answer in answers]
    elif not listed:
      answers = [np.stack(answer) for answer in answers]
    return answers[0] if samples is None else tuple(answers)

  def classify(
    self,
    *sources: Any,
    batch_size: int | None = None,
    on_done: Callable[[int], None] | None = None,
  ) -> Any:
    """Tells how probable the classes of one example, or of several, are.

    Args:
      *sources: the method's sources in their order, or a list of each. Pictures as `fuse` takes
        them, or paths; of any sizes: they are stretched to the method's. Vectors [C].
      batch_size: see `fuse`, as for the next one.
      on_done: the same.

    Returns:
      By the outputs' names the probabilities float32 [classes], whose names `method.outputs` has;
      where lists were given, a list of these.

    Raises:
      UserError: the method makes pictures; or what does not go together.
    """
    if not self.method.is_classification:
      raise UserError(f"{self.config['method']} tells no classes: call fuse")
    columns, listed = gather_apart(self.method, self.config["method"], sources)
    fields, size = self.method.sources, self.method.size(self.config)
    if size is not None:
      columns = [
        column if f.is_vector else [pictures.stretch(x, size) for x in column]
        for f, column in zip(fields, columns, strict=True)
      ]
    examples = [
      {f.name: to_source(f, x, self.method.space) for f, x in zip(fields, row, strict=True)}
      for row in zip(*columns, strict=True)
    ]
    keys = example_keys(0, [""] * len(examples))
    results = self._engine.run(examples, keys, batch_size, on_done)
    # JAX sorts names; the method has an order.
    found = [{f.name: result[f.name] for f in self.method.outputs} for result in results]
    return found if listed else found[0]

  def check_emphasis(self, emphasis: str) -> None:
    """Raises a `UserError` where there is no such emphasis, or not for this method."""
    if emphasis not in emphases.EMPHASES:
      known = ", ".join(emphases.EMPHASES)
      raise UserError(f"no emphasis {emphasis!r}: there is {known}")
    sources, (output, *_) = self.method.sources, self.method.outputs
    channels = sources[coloured_source(self.method)].channels, output.channels
    has_colour = any(field.gives_colour for field in sources)
    if not has_colour or channels != (1, 1) or self.method.space == 3:
      raise UserError(
        f"{self.config['method']} has no emphasis: it is for one luma of pictures, and a source "
        "that gives the colour"
      )

  def padded_size(self, height: int, width: int) -> tuple[int, int]:
    """The size to which a picture is padded; pictures of one padded size share batches."""
    height, width = self._engine.padded((height, width))
    return height, width

  def batch_size(self, padded_size: tuple[int, int], batch_size: int | None = None) -> int:
    """How many pictures of a padded size go through at a time, over all devices."""
    return self._engine.batch_size(padded_size, batch_size)

  def tile_size(self, height: int, width: int, tile: int | str = "auto") -> int | None:
    """The side of the tiles in which a picture is fused, or None where it is fused whole.

    Neighbours overlap by a quarter of the side, see `inference.tiles`. Noise is that of the whole
    picture. Whether the result is that of the whole picture depends on the method, see
    `Method.in_tiles`: norms, attention and statistics over a picture see a tile in its place.

    Args:
      height: of the picture.
      width: of the picture.
      tile: the side, which is padded as pictures are; "auto": 1024, but only where by estimate the
        picture does not fit the memory; "off".

    Raises:
      UserError: the side is too small, or the method has no tiles.
    """
    return self._engine.tile_side((height, width), tile)

  def block_size(self, size: tuple[int, int, int], tile: int | str = "auto") -> int | None:
    """The side of the blocks in which a volume is fused, or None where it is fused whole.

    As `tile_size`; here "auto" are blocks of 128.

    Raises:
      UserError: the side is too small, or the method has no tiles.
    """
    return self._engine.tile_side(size, tile)

  def _warn_of_tiles(self, examples: Sequence[Mapping[str, np.ndarray]]) -> None:
    sizes = {self._engine.size(example) for example in examples}
    for size in sorted(sizes):
      if side := self._engine.tile_side(size):
        # Where `fuse` was called.
        warnings.warn(tiles.describe(self.method, size, side), stacklevel=3)

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
    **engine_options: `compute_dtype`, `parts_per_step` and `on_step` of the `Engine`.

  Raises:
    UserError: nothing of that name, a damaged file, a workdir whose stage does not fuse yet, or a
      part of a module that `plugins` does not name.
  """
  enable_compilation_cache()
  ignore_absent_tpu()
  use_all_cores()
  parts.allow(plugins)
  path = find.place(model)  # once: it may ask the Hub
  params, config = load_params(path)
  loaded = Model(params, config, **engine_options)
  missing = [name for name in loaded.method.networks if name not in params]
  if missing:
    raise UserError(
      f"{model} has no {' and no '.join(missing)}: fusing needs a model of the method's last stage"
    )
  loaded._engine.check()
  loaded.trained_on = find.trained_on(path)
  loaded.params = select(params, loaded.method.networks)
  return loaded
