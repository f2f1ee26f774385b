"""From two clean images to the fused one: noise, UNet features, fusion head (SPEC, Stage II).

Images are NHWC float32 in [-1, 1]. T timesteps and two sources make 2 T passes of the UNet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import NoiseSchedule, sample_noise_level
from dmfnet_jax.diffusion.window import normal_window
from dmfnet_jax.methods.dmfnet.fusion_head import FusionHead
from dmfnet_jax.methods.dmfnet.unet import UNet
from dmfnet_jax.methods.method import Compute

Array = jax.Array

_ONE_DEVICE = Compute()


def noise_sources(
  schedule: NoiseSchedule,
  timesteps: Sequence[int],
  a: Array,
  b: Array,
  keys: Array,
  *,
  noise: bool = True,
  window: Array | None = None,
) -> tuple[Array, Array, Array]:
  """Noises both sources [B, H, W, 1] at every timestep.

  Args:
    schedule: Stage II's noise schedule (linear in the paper).
    timesteps: steps in 1..T_max, ascending.
    a: the MRI.
    b: the other modality's luma.
    keys: [B] PRNG keys, one a pair: the noise belongs to the pair, not to the batch.
    noise: whether noise is added; without (an ablation) nothing is drawn, and the images are only
      scaled to the levels G[t].
    window: where a and b lie in their pictures, see `method.WINDOW`; None: they are whole.

  Returns:
    noisy_a and noisy_b [T, B, H, W, 1], and the noise levels [T, B], drawn per pair and shared by
    its two sources.
  """

  def noise_pair(
    key: Array, a: Array, b: Array, window: Array | None
  ) -> tuple[Array, Array, Array]:
    level_key, a_key, b_key = jax.random.split(key, 3)
    t = jnp.asarray(timesteps)
    levels = sample_noise_level(schedule, level_key, t) if noise else schedule.noise_levels[t]

    def noised(key: Array, x: Array) -> Array:
      shape = (len(timesteps), *x.shape)
      if not noise:
        drawn = jnp.zeros(shape)
      elif window is None:
        drawn = jax.random.normal(key, shape)
      else:
        drawn = normal_window(key, shape, window)
      return gaussian.q_sample(x[None], levels, drawn)

    return noised(a_key, a), noised(b_key, b), levels

  in_axes = (0, 0, 0, None if window is None else 0)
  return jax.vmap(noise_pair, in_axes, out_axes=1)(keys, a, b, window)


def extract_features(
  unet: UNet,
  params: Mapping[str, Any],
  noisy_a: Array,
  noisy_b: Array,
  noise_levels: Array,
  *,
  source: str = "decoder",
  compute: Compute = _ONE_DEVICE,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
  """Runs the frozen UNet over all timesteps of both sources, as one batch; see `fuse_noisy`.

  Returns:
    The features of a and of b: a [T, B, h, w, c] array a level, coarse to fine.
  """
  timesteps = noisy_a.shape[0]
  images, levels = _passes(noisy_a, noisy_b, noise_levels)
  features = _run_unet(unet, params, images, levels, source, compute)
  return tuple(f[:timesteps] for f in features), tuple(f[timesteps:] for f in features)


def fuse_noisy(
  unet: UNet,
  head: FusionHead,
  params: Mapping[str, Any],
  noisy_a: Array,
  noisy_b: Array,
  noise_levels: Array,
  *,
  sources: tuple[Array, Array] | None = None,
  source: str = "decoder",
  passes_per_step: int | None = None,
  compute: Compute = _ONE_DEVICE,
) -> Array:
  """Fuses noised sources; no randomness.

  Args:
    unet: the UNet.
    head: the fusion head.
    params: {"unet", "fusion_head"}.
    noisy_a: [T, B, H, W, 1].
    noisy_b: [T, B, H, W, 1].
    noise_levels: [T] or [T, B].
    sources: the clean images [B, H, W, 1], for a head that blends them (see `FusionHead`); None:
      they are estimated as the least noisy ones, rescaled.
    source: "decoder" or "encoder" features.
    passes_per_step: how many of the 2 T passes run as one batch; must divide 2 T. None: all. With
      fewer, the passes follow one another, and of each only what it adds to the fusion of the
      timesteps is kept: the memory holds the activations of so many passes and one set of features
      a source, instead of T.
    compute: its devices share the passes of a step, and then the rows of their features.

  Returns:
    The fused image [B, H, W, 1], float32 in [-1, 1].

  Raises:
    ValueError: `passes_per_step` does not divide 2 T, or shapes do not fit the model.
  """
  timesteps = noisy_a.shape[0]
  passes = 2 * timesteps
  chunk = passes_per_step or passes
  if passes % chunk:
    raise ValueError(f"passes_per_step must divide {passes}, got {chunk}")
  variables = {"params": params["fusion_head"]}
  if sources is None:
    level = jnp.reshape(noise_levels, (timesteps, -1))[0][:, None, None, None]
    sources = noisy_a[0] / level, noisy_b[0] / level
  if chunk == passes:
    features = extract_features(
      unet, params["unet"], noisy_a, noisy_b, noise_levels, source=source, compute=compute
    )
    totals_a, totals_b = (head.apply(variables, f, method="total") for f in features)
    return _fuse_totals(head, variables, totals_a, totals_b, sources, compute)

  def share(features: Sequence[Array], timestep: Array) -> tuple[Array, ...]:
    return head.apply(variables, features, timestep, method="share")

  def shares(images: Array, levels: Array, timestep: Array) -> tuple[Array, ...]:
    """What each pass of a step adds to the sums: a [passes, B, h, w, c] array a level."""
    features = _run_unet(unet, params["unet"], images, levels, source, compute)
    head.check([timesteps] * len(features), features)
    return jax.vmap(share)(features, timestep)

  def step(totals: list[Array], inputs: tuple[Array, ...]) -> tuple[list[Array], None]:
    images, levels, indices = inputs
    of_step = shares(images, levels, indices // 2)
    if chunk % 2:  # passes of a and b alternate
      of_source = indices % 2
      for i in range(chunk):
        totals = [
          total.at[of_source[i]].add(x[i]) for total, x in zip(totals, of_step, strict=True)
        ]
    else:
      for i in range(0, chunk, 2):
        totals = [total + x[i : i + 2] for total, x in zip(totals, of_step, strict=True)]
    return totals, None

  def in_steps(x: Array) -> Array:
    alternating = x.reshape(2, timesteps, *x.shape[1:]).swapaxes(0, 1)
    return alternating.reshape(-1, chunk, *x.shape[1:])

  images, levels = _passes(noisy_a, noisy_b, noise_levels)
  inputs = (in_steps(images), in_steps(levels), jnp.arange(passes).reshape(-1, chunk))
  first = jax.eval_shape(shares, *(x[0] for x in inputs))
  totals = [jnp.zeros((2, *x.shape[1:]), x.dtype) for x in first]
  totals, _ = jax.lax.scan(step, totals, inputs)
  totals_a, totals_b = zip(*totals, strict=True)
  return _fuse_totals(head, variables, totals_a, totals_b, sources, compute)


def _fuse_totals(
  head: FusionHead,
  variables: Mapping[str, Any],
  totals_a: tuple[Array, ...],
  totals_b: tuple[Array, ...],
  sources: tuple[Array, Array],
  compute: Compute,
) -> Array:
  """`FusionHead.fuse`, by devices that share the rows."""
  if compute.mesh is None:
    return head.apply(variables, totals_a, totals_b, sources, method="fuse")
  if not head.can_divide([(x.shape[1], x.shape[2]) for x in totals_a], compute.mesh.size):
    # A hint: XLA divides what it can, with many more exchanges.
    totals_a, totals_b = (tuple(compute.divide(x, 1) for x in t) for t in (totals_a, totals_b))
    return head.apply(variables, totals_a, totals_b, sources, method="fuse")
  (axis,) = compute.mesh.axis_names
  divided, rows = head.clone(rows=axis), P(None, axis)
  return jax.shard_map(
    lambda *arguments: divided.apply(*arguments, method="fuse"),
    mesh=compute.mesh,
    in_specs=(P(), rows, rows, rows),
    out_specs=rows,
    check_vma=False,  # layers begin with zeros that belong to no device
  )(variables, totals_a, totals_b, sources)


def _passes(noisy_a: Array, noisy_b: Array, noise_levels: Array) -> tuple[Array, Array]:
  """The UNet's inputs: images [2 T, B, H, W, 1], those of a first, and their levels [2 T, B]."""
  timesteps, batch = noisy_a.shape[:2]
  levels = jnp.broadcast_to(jnp.reshape(noise_levels, (timesteps, -1)), (timesteps, batch))
  return jnp.concatenate([noisy_a, noisy_b]), jnp.concatenate([levels, levels])


def _run_unet(
  unet: UNet,
  params: Mapping[str, Any],
  images: Array,
  levels: Array,
  source: str,
  compute: Compute,
) -> tuple[Array, ...]:
  """Features [P, B, h, w, c], a level each, of images [P, B, H, W, 1] at levels [P, B]."""
  images, levels = compute.divide(images, 0), compute.divide(levels, 0)
  features = unet.apply(
    {"params": params},
    images.reshape(-1, *images.shape[2:]),
    levels.reshape(-1),
    source,
    method="fusion_features",
  )
  # Said of the features, too: XLA would divide the way up by what is asked for afterwards.
  return tuple(compute.divide(f.reshape(*images.shape[:2], *f.shape[1:]), 0) for f in features)
