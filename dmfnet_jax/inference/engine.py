"""The compiled, batched fuser: arrays in, arrays out.

Images are [B, H, W] float32 in [-1, 1]. The engine pads each image to the next multiple of the
UNet's stride by reflection at the bottom and the right, fuses, and crops. The padded size follows
from the image's own size alone, so a fused picture never depends on what else is fused with it.
"""

import functools
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmfnet_jax import models
from dmfnet_jax.diffusion.schedule import make_schedule
from dmfnet_jax.inference import features
from dmfnet_jax.inference.batches import pairs_per_batch

Array = jax.Array


def pair_keys(seed: int, names: Sequence[str], draw: int = 0) -> Array:
  """Returns one PRNG key a pair [B], folded from (seed, pair name, draw)."""
  root = jax.random.key(seed)
  codes = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)

  def fold(code: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(root, code), draw)

  return jax.vmap(fold)(jnp.asarray(codes))


def padded_size(size: int, stride: int) -> int:
  """The next multiple of `stride`."""
  return -(-size // stride) * stride


class Engine:
  """A model's fusing graph, compiled once for each (padded size, batch size) that it meets.

  Args:
    params: {"unet", "fusion_head"} parameters, float32.
    config: the model config (`unet`, `fusion_head`, `features`).
    compute_dtype: "float32" or "bfloat16".
    passes_per_step: how many of the UNet's passes run as one batch; None: all.
  """

  def __init__(
    self,
    params: dict[str, Any],
    config: dict[str, Any],
    *,
    compute_dtype: str = "float32",
    passes_per_step: int | None = None,
  ):
    self.stride = 2 ** (len(config["unet"]["multipliers"]) - 1)
    self._params = jax.device_put(params)
    self._fuse_noisy, self._fuse = _compile(json.dumps(config), compute_dtype, passes_per_step)

  def fuse_noisy(self, noisy_a: Array, noisy_b: Array, noise_levels: Array) -> Array:
    """Fuses [T, B, H, W, 1] noised sources at [T] noise levels into [B, H, W, 1] float32.

    Raises:
      ValueError: H or W is not a multiple of the UNet's stride, or T is not the model's.
    """
    return self._fuse_noisy(
      self._params, jnp.asarray(noisy_a), jnp.asarray(noisy_b), jnp.asarray(noise_levels)
    )

  def fuse(
    self, a: np.ndarray, b: np.ndarray, keys: Array, batch_size: int | None = None
  ) -> np.ndarray:
    """Fuses [B, H, W] images with noise from keys [B]; returns [B, H, W] float32 in (-1, 1).

    Args:
      a: the MRIs.
      b: the other modality's lumas.
      keys: PRNG keys, one a pair.
      batch_size: pairs at a time, by default `batches.pairs_per_batch`; the last of several batches
        is filled up with repeats, so that nothing is compiled for it.
    """
    count, height, width = a.shape
    margin = (
      (0, 0),
      (0, padded_size(height, self.stride) - height),
      (0, padded_size(width, self.stride) - width),
    )
    # On the host: numpy reflects as often as needed where an image is smaller than its margin.
    a, b = (np.pad(x, margin, mode="reflect") for x in (a, b))
    size = min(count, batch_size or pairs_per_batch(height, width))
    results = []
    for start in range(0, count, size):
      chosen = np.minimum(np.arange(start, start + size), count - 1)
      results.append(self._fuse(self._params, a[chosen], b[chosen], keys[chosen]))
    # Nothing was waited for so far: the next batch was prepared while the one before computed.
    return np.concatenate([np.asarray(x) for x in results])[:count, :height, :width]


@functools.lru_cache
def _compile(
  config_json: str, compute_dtype: str, passes_per_step: int | None
) -> tuple[Callable[..., Array], Callable[..., Array]]:
  """Builds the jitted functions; models of one config share what is compiled for them."""
  config = json.loads(config_json)
  timesteps = tuple(config["features"]["timesteps"])
  schedule = make_schedule(**config["features"]["schedule"])
  noise = config["features"].get("noise", True)  # the first model files have no such field
  unet = models.build_unet(config["unet"], compute_dtype)
  head = models.build_fusion_head(
    config["fusion_head"], config["unet"], len(timesteps), compute_dtype
  )

  def fuse_noisy(params: Any, noisy_a: Array, noisy_b: Array, noise_levels: Array) -> Array:
    return features.fuse_noisy(
      unet,
      head,
      params,
      noisy_a,
      noisy_b,
      noise_levels,
      source=config["features"]["source"],
      passes_per_step=passes_per_step,
    )

  def fuse(params: Any, a: Array, b: Array, keys: Array) -> Array:
    a, b = a[..., None], b[..., None]
    noisy = features.noise_sources(schedule, timesteps, a, b, keys, noise=noise)
    return fuse_noisy(params, *noisy)[..., 0]

  return jax.jit(fuse_noisy), jax.jit(fuse)
