"""The compiled, batched computation of a method: arrays in, arrays out.

The engine pads each picture by reflection at the bottom and the right to one of a few sizes (or to
the method's stride alone), computes, and crops. The padded size follows from the picture's own size
alone: norms and attention see the whole padded picture, and yet a result never depends on what else
is computed with it. Programs are compiled once for each padded size and batch size.

Here, and nowhere else, it is decided which examples share a batch, how a batch is filled up, what
each device takes, and what happens where the memory is full. A picture that would not fit it is
computed in overlapping tiles, see `tiles`.
"""

import collections
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dmfnet_jax import methods
from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference import memory, programs, tiles
from dmfnet_jax.methods.method import WINDOW, Compute, Images, Params

Array = jax.Array
Size = tuple[int, ...]

_SIZES_PER_OCTAVE = 8  # a side grows by 12 % at most, by 4 % on average


def example_keys(seed: int, names: Sequence[str], draw: int = 0) -> Array:
  """Returns one PRNG key per example [B], folded from (seed, name, draw)."""
  codes = np.array([name_code(name) for name in names], np.uint32)
  return fold_keys(jnp.uint32(seed % 2**32), jnp.asarray(codes), draw)


def name_code(name: str) -> int:
  """The number, below 2^32, that stands for an example's name in its noise."""
  return zlib.crc32(name.encode())


def fold_keys(seed: Array, codes: Array, draw: int = 0) -> Array:
  """`example_keys` for traced numbers: a seed [] and the names' codes [B], uint32."""
  root = gaussian.make_key(seed)

  def fold(code: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(root, code), draw)

  return jax.vmap(fold)(codes)


def padded_side(side: int, stride: int, exact: bool = False) -> int:
  """The length to which a side is padded: one of few, so that mixed sizes need few programs.

  Up to 16 strides (256 pixels for a stride of 16) the next multiple of the stride; above that every
  octave has eight lengths: 288, 320, ..., 512, 576, 640, ... With `exact` the next multiple always.
  """
  step = max(stride, 2 ** (side.bit_length() - 1) // _SIZES_PER_OCTAVE)
  if exact or step % stride:
    step = stride  # a stride that is no power of two has no octaves
  return -(-side // step) * step


class Engine:
  """A model's program, compiled once for each (padded size, batch size) that it meets.

  Args:
    params: the parameters by network, float32.
    config: the model config, with its "method".
    compute_dtype: "float32" or "bfloat16".
    parts_per_step: how many of the method's parts run as one batch; by default what
      `memory.choose_parts` says for the device. It changes the rounding only.
    on_step: see `Compute`, and told of tiles. Programs that tell somebody are not kept between
      processes.
  """

  def __init__(
    self,
    params: Params,
    config: Mapping[str, Any],
    *,
    compute_dtype: str = "float32",
    parts_per_step: int | None = None,
    on_step: Callable[[Any, int], None] | None = None,
  ):
    self.method = methods.get(config["method"])
    self.config = config
    self._dtype = compute_dtype
    self._parts_per_step = parts_per_step
    self._on_step = on_step
    self._config_json = json.dumps(config)
    self._devices = tuple(jax.local_devices())
    self._params = {1: jax.device_put(params, self._devices[0])}  # by the number of devices
    self._parts: dict[tuple[Size, int], int] = {}  # as first chosen
    self._limits: dict[Size, int] = {}  # so many at a time fitted the memory
    self._compiled: dict[Size, dict[int, int]] = {}  # batch sizes, and the devices of each
    self._running: dict[Size, int] = {}  # the batch size that runs, or ran last
    self._sharing: dict[Size, int] = {}  # devices that share a single example
    self._fitting: dict[Size, int] = {}  # how many of a large size fit the memory by estimate

  def check(self) -> None:
    """Builds the method's networks, which computes nothing.

    Raises:
      UserError: the config names a part that there is not, or has fields that the method has not.
    """
    try:
      self.method.fuse(self.config, Compute(self._dtype))
    except (KeyError, TypeError) as error:
      raise UserError(
        f"the model's config is not one of this version's {self.config['method']}: {error}"
      ) from error

  def padded(self, size: Size) -> Size:
    """The size to which a picture is padded, which follows from its own."""
    stride = self.method.stride(self.config)
    return tuple(padded_side(side, stride, self.method.exact_size) for side in size)

  def batch_size(self, padded: Size, wanted: int | None = None) -> int:
    """How many examples of a padded size go through at a time, over all devices.

    Args:
      padded: the padded size.
      wanted: what the user says; by default `memory.examples_per_device` on each.
    """
    default = memory.examples_per_device(padded) * len(self._devices)
    if math.prod(padded) > tiles.TILE**2 and self._devices[0].platform == "cpu":
      default = min(default, max(self._fit(padded), 1))
    return min(wanted or default, self._limits.get(padded, wanted or default))

  def tile_side(self, size: Size, tile: int | str = "auto") -> int | None:
    """The side of the tiles in which pictures of a size are computed; None: whole.

    `tile` says which, see `tiles.choose_side`; a side is padded as pictures are.
    """
    padded, method = self.padded(size), self.config["method"]
    step = self._tile_step()
    side = tiles.choose_side(method, step, padded, tile, lambda: self._fit(padded) > 0)
    side = side and max(self.padded((-(-side // step) * step,) * len(size)))
    return side if side and max(padded) > side else None

  def _tile_step(self) -> int:
    return (self.method.tile_step or self.method.stride)(self.config)

  def _fit(self, padded: Size) -> int:
    """How many examples of a padded size fit the memory of a device, by estimate."""
    if padded not in self._fitting:
      # Once: the free memory changes from call to call.
      self._fitting[padded] = memory.count_fitting(
        self.method, self.config, padded, self._dtype, self._devices[0], self.temporary_bytes
      )
    return self._fitting[padded]

  def extra(self, name: str, *args: Any) -> Any:
    """Calls a further function of the method; its first argument is [..., B, H, W, C]."""
    *_, examples, height, width, _ = jnp.shape(args[0])
    compute = self._compute((height, width), examples)
    return programs.extra(self._config_json, compute, name)(self._params[1], *args)

  def run(
    self,
    sources: Sequence[Mapping[str, np.ndarray]],
    keys: Array,
    batch_size: int | None = None,
    on_done: Callable[[int], None] | None = None,
    tile: int | str = "off",
  ) -> list[dict[str, np.ndarray]]:
    """Computes the outputs of examples of any sizes.

    Where the memory is full, fewer parts and then fewer examples run at a time from then on. Tiles
    are batched as examples are, and their results added up in their order, so that a picture does
    not depend on the batch.

    Args:
      sources: of each example its pictures [*space, C] in [-1, 1], all of one size, and vectors.
      keys: PRNG keys [B], one per example.
      batch_size: examples at a time over all devices, see `batch_size`.
      on_done: told how many examples are done, after each batch.
      tile: see `tiles.choose_side`.

    Returns:
      Each example's outputs, pictures cropped to its size (times the method's `scale`).

    Raises:
      UserError: a single example does not fit the memory.
    """
    pieces = [piece for i in range(len(sources)) for piece in self._cut(i, sources[i], tile)]
    groups: dict[tuple[Size, bool], list[int]] = {}
    for i, piece in enumerate(pieces):
      groups.setdefault((piece.padded, piece.tile is not None), []).append(i)
    left = collections.Counter(piece.example for piece in pieces)

    def tell(done: Sequence[int]) -> None:
      before = sum(map(bool, left.values()))
      left.subtract(pieces[i].example for i in done)
      finished = before - sum(map(bool, left.values()))
      if on_done is not None and finished:
        on_done(finished)
      if self._on_step is not None and len(pieces) > len(sources):
        self._on_step(len(pieces) - left.total(), len(pieces))

    results: list[dict[str, np.ndarray]] = [{} for _ in sources]
    of_pieces = [piece.source for piece in pieces]
    keys = keys[np.array([piece.example for piece in pieces])]
    for (padded, _), group in groups.items():
      for i, outputs in self._run_group(padded, group, of_pieces, keys, batch_size, tell):
        piece = pieces[i]
        size, result = self.size(sources[piece.example]), results[piece.example]
        if piece.tile is None:
          result.update(self._crop(outputs, size))
        else:
          piece.tile.add(result, outputs, size, self.method.scale(self.config))
    return [self._finish(result) for result in results]

  def _cut(self, i: int, source: Mapping[str, np.ndarray], tile: int | str) -> list[tiles.Piece]:
    """An example as it is, or its tiles where it is large."""
    size = self.size(source)
    padded, side = self.padded(size), self.tile_side(size, tile)
    if side is None:
      return [tiles.Piece(i, source, padded)]
    parts = tiles.plan(size, side, self._tile_step())
    return [
      tiles.Piece(i, part.take(source, padded), self.padded(part.full), part) for part in parts
    ]

  def _run_group(self, padded, group, sources, keys, batch_size, on_done):
    """Yields the index and the padded outputs of examples of one padded size."""
    done = 0
    while done < len(group):
      try:
        for chosen, outputs in self._run_batches(padded, group[done:], sources, keys, batch_size):
          for row, i in enumerate(chosen):
            yield i, {name: value[row] for name, value in outputs.items()}
          done += len(chosen)
          on_done(chosen)
      except (MemoryError, RuntimeError) as error:
        if not memory.is_out_of_memory(error):
          raise
        self._take_less(padded, error)

  def _run_batches(self, padded, group, sources, keys, batch_size):
    """Yields what each batch computed: the indices of its examples, and the outputs."""
    limit = self.batch_size(padded, batch_size)
    size, devices = self._choose_size(padded, len(group), limit)
    compute = self._compute(padded, size // devices)
    if size == 1 and (devices := self._share(padded)) > 1:
      mesh = programs.mesh(self._devices[:devices])
      parts = max(compute.parts_per_step, devices)
      compute = compute._replace(parts_per_step=parts, mesh=mesh)
    program = programs.program(self._config_json, compute, self._devices[:devices])
    running: collections.deque[tuple[list[int], Images]] = collections.deque()
    for start in range(0, len(group), size):
      chosen = group[start : start + size]
      filled = np.array(chosen + chosen[-1:] * (size - len(chosen)))
      batch = {
        field.name: np.stack([self._pad(sources[i][field.name], padded) for i in filled])
        for field in self.method.sources
      }
      if WINDOW in sources[chosen[0]]:
        batch[WINDOW] = np.stack([sources[i][WINDOW] for i in filled])
      running.append((chosen, program(self._params_on(devices), batch, keys[filled])))
      # The next batch is on its way while this one computes; more would only fill the memory.
      if len(running) > 1:
        yield _on_host(*running.popleft())
    yield _on_host(*running.popleft())

  def _choose_size(self, padded: Size, count: int, limit: int) -> tuple[int, int]:
    """How many examples to compute at a time, with repeats to fill up, and on how many devices."""
    devices = max(n for n in memory.divisors(limit) if n <= min(len(self._devices), count))
    size = min(limit, -(-count // devices) * devices)
    # Compiling takes long for each size: a few repeats are cheaper.
    compiled = self._compiled.setdefault(padded, {})
    for known in sorted(compiled):
      if size <= known <= min(limit, 2 * size):
        size, devices = known, compiled[known]
        break
    compiled[size] = devices
    self._running[padded] = size
    return size, devices

  def _share(self, padded: Size) -> int:
    """How many devices share a single example: as many of a CPU's as divide its parts and rows."""
    if self._devices[0].platform != "cpu" or self._parts_per_step is not None:
      return 1
    common = math.gcd(self.method.parts(self.config), padded[0])
    divided = max(n for n in memory.divisors(common) if n <= len(self._devices))
    return self._sharing.setdefault(padded, divided)

  def _take_less(self, padded: Size, error: Exception) -> None:
    """Lowers the parts at a time for a padded size, or else the examples.

    Raises:
      UserError: it is one of either already.
    """
    if self._running[padded] == 1 and self._sharing.get(padded, 1) > 1:
      self._sharing[padded] = 1
      return
    chosen = {key: n for key, n in self._parts.items() if key[0] == padded}
    if self._parts_per_step is None and max(chosen.values(), default=1) > 1:
      for key, parts in chosen.items():
        fewer = [n for n in memory.divisors(self.method.parts(self.config)) if n < parts]
        self._parts[key] = max(fewer, default=1)
      return
    examples = self._running[padded]
    if examples == 1:
      shape = " x ".join(map(str, padded))
      advice = "" if methods.in_tiles(self.method) == "no" else ": fuse it in smaller tiles"
      raise UserError(f"a picture of {shape} does not fit the memory{advice}") from error
    self._limits[padded] = examples // 2
    self._compiled.pop(padded)

  def temporary_bytes(self, size: Size, examples: int = 1) -> int:
    """The memory that XLA plans for the activations of a batch on one device, in bytes.

    It compiles the program. The parameters and the pictures come on top.

    Args:
      size: of the pictures; padded as `run` pads them.
      examples: in the batch.
    """
    padded = self.padded(size)
    program = programs.program(
      self._config_json, self._compute(padded, examples), self._devices[:1]
    )
    batch = {
      field.name: jax.ShapeDtypeStruct(
        (examples, *(() if field.is_vector else padded), field.channels), jnp.float32
      )
      for field in self.method.sources
    }
    keys = jax.eval_shape(lambda: example_keys(0, [""] * examples))
    compiled = program.lower(self._params[1], batch, keys).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)

  def size(self, example: Mapping[str, np.ndarray]) -> Size:
    """The size of an example's pictures."""
    field = next(field for field in self.method.sources if not field.is_vector)
    return example[field.name].shape[:-1]

  def _pad(self, source: np.ndarray, padded: Size) -> np.ndarray:
    """Reflects on the host: NumPy does so as often as a small picture's margin needs."""
    if source.ndim == 1:
      return source
    margins = [(0, want - side) for want, side in zip(padded, source.shape, strict=False)]
    return np.pad(source, [*margins, (0, 0)], mode="reflect")

  def _crop(self, outputs: Mapping[str, np.ndarray], size: Size) -> dict[str, np.ndarray]:
    scale = self.method.scale(self.config)
    window = tuple(slice(scale * side) for side in size)
    vectors = {field.name for field in self.method.outputs if field.is_vector}
    return {k: v if k in vectors else v[window] for k, v in outputs.items()}

  def _finish(self, cropped: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Does what the method does after the crop."""
    if (finish := programs.after_crop(self._config_json)) is None:
      return dict(cropped)
    finished = finish({k: v[None] for k, v in cropped.items()})
    return {k: np.asarray(v[0]) for k, v in finished.items()}

  def _compute(self, padded: Size, examples: int) -> Compute:
    parts = self._parts_per_step or self._parts.get((padded, examples))
    if parts is None:
      # Once: the free memory changes from call to call, and another choice is another program.
      parts = memory.choose_parts(
        self.method, self.config, padded, examples, self._dtype, self._devices[0]
      )
      self._parts[padded, examples] = parts
    return Compute(self._dtype, parts, on_step=self._on_step)

  def _params_on(self, devices: int) -> Any:
    """The parameters on so many devices, copied there when they are first needed.

    The first device holds them once: JAX shares what is there already.
    """
    if devices not in self._params:
      replicated = NamedSharding(programs.mesh(self._devices[:devices]), P())
      self._params[devices] = jax.device_put(self._params[1], replicated)
    return self._params[devices]


def _on_host(chosen: list[int], outputs: Images) -> tuple[list[int], dict[str, np.ndarray]]:
  return chosen, {name: np.asarray(value) for name, value in outputs.items()}
