"""The compiled, batched fuser: arrays in, arrays out.

Images are [B, H, W] float32 in [-1, 1]. The engine pads each image by reflection at the bottom and
the right to one of a few sizes, fuses, and crops. The padded size follows from the image's own size
alone: norms and attention see the whole padded image, and yet a fused picture never depends on what
else is fused with it. Programs are compiled once for each padded size and batch size.

The pairs of a batch are divided among the local devices, each of which runs the program of one
device on its share.
"""

import collections
import functools
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dmfnet_jax import models
from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import make_schedule
from dmfnet_jax.inference import features
from dmfnet_jax.inference.batches import choose_passes, is_out_of_memory, pairs_per_batch

Array = jax.Array
FuseFn = Callable[[Any, Array, Array, Array], Array]

_SIZES_PER_OCTAVE = 8  # a side grows by 12 % at most, by 4 % on average


def pair_keys(seed: int, names: Sequence[str], draw: int = 0) -> Array:
  """Returns one PRNG key a pair [B], folded from (seed, pair name, draw)."""
  codes = np.array([name_code(name) for name in names], np.uint32)
  return fold_keys(jnp.uint32(seed % 2**32), jnp.asarray(codes), draw)


def name_code(name: str) -> int:
  """The number, below 2^32, that stands for a pair's name in its noise."""
  return zlib.crc32(name.encode())


def fold_keys(seed: Array, codes: Array, draw: int = 0) -> Array:
  """`pair_keys` for traced numbers: a seed [] and the names' codes [B], uint32."""
  root = gaussian.make_key(seed)

  def fold(code: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(root, code), draw)

  return jax.vmap(fold)(codes)


def padded_size(size: int, stride: int) -> int:
  """The size to which a side is padded: one of few, so that mixed sizes need few programs.

  Up to 16 strides (256 pixels at the paper's depth) the next multiple of the stride; above that
  every octave has eight sizes: 288, 320, ..., 512, 576, 640, ...
  """
  step = max(stride, 2 ** (size.bit_length() - 1) // _SIZES_PER_OCTAVE)
  if step % stride:
    step = stride  # a depth whose stride is no power of two has no octaves
  return -(-size // step) * step


class Engine:
  """A model's fusing program, compiled once for each (padded size, batch size) that it meets.

  Args:
    params: {"unet", "fusion_head"} parameters, float32.
    config: the model config (`unet`, `fusion_head`, `features`).
    compute_dtype: "float32" or "bfloat16".
    passes_per_step: how many of the UNet's 2 T passes run as one batch; by default what
      `batches.choose_passes` says for the device. It changes the rounding only.
  """

  def __init__(
    self,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    compute_dtype: str = "float32",
    passes_per_step: int | None = None,
  ):
    self.config = config
    self.compute_dtype = compute_dtype
    self.passes_per_step = passes_per_step
    self.stride = 2 ** (len(config["unet"]["multipliers"]) - 1)
    self._config_json = json.dumps(config)
    self._devices = tuple(jax.local_devices())
    self._params = {1: jax.device_put(params, self._devices[0])}  # by the number of devices
    self._passes: dict[tuple[tuple[int, int], int], int] = {}  # as first chosen

  def fuse_noisy(self, noisy_a: Array, noisy_b: Array, noise_levels: Array) -> Array:
    """Fuses [T, B, H, W, 1] noised sources at [T] noise levels into [B, H, W, 1] float32.

    Raises:
      ValueError: H or W is not a multiple of the UNet's stride, or T is not the model's.
    """
    noisy_a, noisy_b = jnp.asarray(noisy_a), jnp.asarray(noisy_b)
    _, pairs, height, width, _ = noisy_a.shape
    program = _fuse_noisy(*self._key((height, width), pairs))
    return program(self._params[1], noisy_a, noisy_b, jnp.asarray(noise_levels))

  def fuse(
    self,
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    keys: Array,
    batch_size: int | None = None,
  ) -> list[np.ndarray]:
    """Fuses pictures of one padded size; returns each one's [H, W] float32 in [-1, 1].

    Where the memory is full and the number of passes was left to the engine, fewer of them run at a
    time from then on.

    Args:
      a: the MRIs, [H, W] each; their sizes may differ where `padded` is the same.
      b: the other modality's lumas, of the same sizes.
      keys: PRNG keys [B], one a pair.
      batch_size: pairs at a time on a device, by default `batches.pairs_per_batch`; the last of
        several batches is filled up with repeats, so that nothing is compiled for it.
    """
    sizes = [x.shape for x in a]
    padded = self.padded(*sizes[0])
    # On the host: numpy reflects as often as needed where an image is smaller than its margin.
    padded_a, padded_b = (np.stack([_reflect(x, padded) for x in group]) for group in (a, b))
    while True:
      try:
        fused = self._fuse_padded(padded_a, padded_b, keys, batch_size)
      except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or not self._take_fewer_passes(padded):
          raise
      else:
        return [x[:height, :width] for x, (height, width) in zip(fused, sizes, strict=False)]

  def _fuse_padded(
    self, a: np.ndarray, b: np.ndarray, keys: Array, batch_size: int | None
  ) -> list[np.ndarray]:
    """Fuses [B, H, W] batch by batch; the result's last pictures may be repeats."""
    count, height, width = a.shape
    devices = 1 if count == 1 else len(self._devices)
    share = min(batch_size or pairs_per_batch(height, width), -(-count // devices))
    size = share * devices
    program = _fuse(*self._key((height, width), share), self._devices[:devices])
    params = self._params_on(devices)
    fused: list[np.ndarray] = []
    running: collections.deque[Array] = collections.deque()
    for start in range(0, count, size):
      chosen = np.minimum(np.arange(start, start + size), count - 1)
      running.append(program(params, a[chosen], b[chosen], keys[chosen]))
      # The next batch is on its way while this one computes; more would only fill the memory.
      if len(running) > 1:
        fused.extend(np.asarray(running.popleft()))
    return [*fused, *np.asarray(running.popleft())]

  def temporary_bytes(self, height: int, width: int, pairs: int = 1) -> int:
    """The memory that XLA plans for the activations of a batch on one device, in bytes.

    It compiles the program. The parameters and the pictures come on top.

    Args:
      height: of the pictures; padded as `fuse` pads them.
      width: of the pictures.
      pairs: in the batch.
    """
    padded = self.padded(height, width)
    program = _fuse(*self._key(padded, pairs), self._devices[:1])
    image = jax.ShapeDtypeStruct((pairs, *padded), jnp.float32)
    keys = jax.eval_shape(lambda: pair_keys(0, [""] * pairs))
    compiled = program.lower(self._params[1], image, image, keys).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)

  def padded(self, height: int, width: int) -> tuple[int, int]:
    """The size to which a picture is padded, which follows from its own."""
    return padded_size(height, self.stride), padded_size(width, self.stride)

  def _key(self, padded: tuple[int, int], pairs: int) -> tuple[str, str, int]:
    """What distinguishes programs besides the shapes of their arguments."""
    passes = self.passes_per_step or self._passes.get((padded, pairs))
    if passes is None:
      # Once: the free memory changes from call to call, and another choice is another program.
      passes = choose_passes(self.config, padded, pairs, self.compute_dtype)
      self._passes[padded, pairs] = passes
    return self._config_json, self.compute_dtype, passes

  def _take_fewer_passes(self, padded: tuple[int, int]) -> bool:
    """Lowers the passes at a time for a padded size; False where they are one already."""
    chosen = {key: passes for key, passes in self._passes.items() if key[0] == padded}
    if max(chosen.values(), default=1) == 1:
      return False
    total = 2 * len(self.config["features"]["timesteps"])
    for key, passes in chosen.items():
      fewer = [n for n in range(1, passes) if total % n == 0]
      self._passes[key] = max(fewer, default=1)
    return True

  def _params_on(self, devices: int) -> Any:
    """The parameters on so many devices, copied there when they are first needed.

    The first device holds them once: JAX shares what is there already.
    """
    if devices not in self._params:
      replicated = NamedSharding(_mesh(self._devices[:devices]), P())
      self._params[devices] = jax.device_put(self._params[1], replicated)
    return self._params[devices]


def _reflect(picture: np.ndarray, padded: tuple[int, int]) -> np.ndarray:
  height, width = picture.shape
  return np.pad(picture, ((0, padded[0] - height), (0, padded[1] - width)), mode="reflect")


def fuse_function(config: Mapping[str, Any], compute_dtype: str, passes_per_step: int) -> FuseFn:
  """Returns the whole computation of padded pictures, not compiled.

  The function maps (params, a [B, H, W], b [B, H, W], keys [B]) to the fused [B, H, W].
  """
  timesteps = tuple(config["features"]["timesteps"])
  schedule = make_schedule(**config["features"]["schedule"])
  noise = config["features"].get("noise", True)  # the first model files have no such field
  fuse_noisy = _fuse_noisy_function(config, compute_dtype, passes_per_step)

  def fuse(params: Any, a: Array, b: Array, keys: Array) -> Array:
    sources = a[..., None], b[..., None]
    noisy = features.noise_sources(schedule, timesteps, *sources, keys, noise=noise)
    return fuse_noisy(params, *noisy, sources)[..., 0]

  return fuse


def divide_among(fuse: FuseFn, devices: Sequence[jax.Device]) -> FuseFn:
  """Compiles `fuse` for several devices, each of which computes its share of the pairs.

  Not a plain jit over divided batches: the passes of the UNet join pairs, modalities and timesteps
  in one axis, through which XLA follows no division. It would let every device compute everything.
  """
  pairs = P("pairs")
  divided = jax.shard_map(
    fuse,
    mesh=_mesh(devices),
    in_specs=(P(), pairs, pairs, pairs),
    out_specs=pairs,
    check_vma=False,  # nothing is exchanged; sums begin with zeros that belong to no device
  )
  return jax.jit(divided)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
  return Mesh(np.array(devices), ("pairs",))


def _fuse_noisy_function(
  config: Mapping[str, Any], compute_dtype: str, passes_per_step: int
) -> Callable[..., Array]:
  unet = models.build_unet(config["unet"], compute_dtype)
  num_timesteps = len(config["features"]["timesteps"])
  head = models.build_fusion_head(
    config["fusion_head"], config["unet"], num_timesteps, compute_dtype
  )

  def fuse_noisy(
    params: Any,
    noisy_a: Array,
    noisy_b: Array,
    noise_levels: Array,
    sources: tuple[Array, Array] | None = None,
  ) -> Array:
    return features.fuse_noisy(
      unet,
      head,
      params,
      noisy_a,
      noisy_b,
      noise_levels,
      sources=sources,
      source=config["features"]["source"],
      passes_per_step=passes_per_step,
    )

  return fuse_noisy


# Models of one config share what is compiled for them.


@functools.lru_cache
def _fuse_noisy(config_json: str, compute_dtype: str, passes_per_step: int) -> Any:
  return jax.jit(_fuse_noisy_function(json.loads(config_json), compute_dtype, passes_per_step))


@functools.lru_cache
def _fuse(
  config_json: str, compute_dtype: str, passes_per_step: int, devices: tuple[jax.Device, ...]
) -> Any:
  fuse = fuse_function(json.loads(config_json), compute_dtype, passes_per_step)
  return jax.jit(fuse) if len(devices) == 1 else divide_among(fuse, devices)
