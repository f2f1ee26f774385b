"""From two clean images to the fused one: noise, UNet features, fusion head (SPEC, Stage II).

Images are NHWC float32 in [-1, 1]. T timesteps and two sources make 2 T passes of the UNet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import NoiseSchedule, sample_noise_level
from dmfnet_jax.models import FusionHead, UNet

Array = jax.Array


def noise_sources(
  schedule: NoiseSchedule,
  timesteps: Sequence[int],
  a: Array,
  b: Array,
  keys: Array,
  *,
  noise: bool = True,
) -> tuple[Array, Array, Array]:
  """Noises both sources at every timestep.

  Args:
    schedule: Stage II's noise schedule (linear in the paper).
    timesteps: steps in 1..T_max, ascending.
    a: [B, H, W, 1] the MRI.
    b: [B, H, W, 1] the other modality's luma.
    keys: [B] PRNG keys, one a pair: the noise belongs to the pair, not to the batch.
    noise: whether noise is added; without (an ablation) the images are only scaled.

  Returns:
    noisy_a and noisy_b [T, B, H, W, 1], and the noise levels [T, B], drawn per pair and shared by
    its two sources.
  """

  def noise_pair(key: Array, a: Array, b: Array) -> tuple[Array, Array, Array]:
    level_key, a_key, b_key = jax.random.split(key, 3)
    levels = sample_noise_level(schedule, level_key, jnp.asarray(timesteps))

    def noised(key: Array, x: Array) -> Array:
      shape = (len(timesteps), *x.shape)
      return gaussian.q_sample(
        x, levels, jax.random.normal(key, shape) if noise else jnp.zeros(shape)
      )

    return noised(a_key, a), noised(b_key, b), levels

  return jax.vmap(noise_pair, out_axes=1)(keys, a, b)


def extract_features(
  unet: UNet,
  params: Mapping[str, Any],
  noisy_a: Array,
  noisy_b: Array,
  noise_levels: Array,
  *,
  source: str = "decoder",
  passes_per_step: int | None = None,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
  """Runs the frozen UNet over all timesteps of both sources.

  Args:
    unet: the UNet.
    params: its parameters.
    noisy_a: [T, B, H, W, 1].
    noisy_b: [T, B, H, W, 1].
    noise_levels: [T] or [T, B].
    source: "decoder" or "encoder" features.
    passes_per_step: how many of the 2 T passes run as one batch; must divide 2 T. Fewer take less
      memory. None: all.

  Returns:
    The features of a and of b: a [T, B, h, w, c] array a level, coarse to fine.
  """
  timesteps, batch = noisy_a.shape[:2]
  noise_levels = jnp.broadcast_to(jnp.reshape(noise_levels, (timesteps, -1)), (timesteps, batch))
  images = jnp.concatenate([noisy_a, noisy_b])  # [2 T, B, H, W, 1]
  levels = jnp.concatenate([noise_levels, noise_levels])
  passes = 2 * timesteps
  chunk = passes_per_step or passes
  if passes % chunk:
    raise ValueError(f"passes_per_step must divide {passes}, got {chunk}")

  def run(chunk_inputs: tuple[Array, Array]) -> tuple[Array, ...]:
    images, levels = chunk_inputs
    features = unet.apply(
      {"params": params},
      images.reshape(-1, *images.shape[2:]),
      levels.reshape(-1),
      source,
      method="fusion_features",
    )
    return tuple(f.reshape(chunk, batch, *f.shape[1:]) for f in features)

  if chunk == passes:
    features = run((images, levels))
  else:
    split = (images.reshape(-1, chunk, *images.shape[1:]), levels.reshape(-1, chunk, batch))
    features = tuple(f.reshape(passes, *f.shape[2:]) for f in jax.lax.map(run, split))
  return tuple(f[:timesteps] for f in features), tuple(f[timesteps:] for f in features)


def fuse_noisy(
  unet: UNet,
  head: FusionHead,
  params: Mapping[str, Any],
  noisy_a: Array,
  noisy_b: Array,
  noise_levels: Array,
  *,
  source: str = "decoder",
  passes_per_step: int | None = None,
) -> Array:
  """Fuses noised sources; no randomness.

  Args and errors are those of `extract_features`, with `params` = {"unet", "fusion_head"}.

  Returns:
    The fused image [B, H, W, 1], float32 in (-1, 1).
  """
  features_a, features_b = extract_features(
    unet,
    params["unet"],
    noisy_a,
    noisy_b,
    noise_levels,
    source=source,
    passes_per_step=passes_per_step,
  )
  return head.apply({"params": params["fusion_head"]}, features_a, features_b)
