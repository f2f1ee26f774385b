"""What DC2Fusion trains, how it puts its maps together, and how volumes are varied."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax.methods.deform3d import objectives
from dmfnet_jax.methods.deform3d.networks import PATCH, build
from dmfnet_jax.methods.deform3d.published import NETWORK
from dmfnet_jax.methods.method import (
  STATS,
  Array,
  Context,
  Images,
  Loss,
  Params,
  Stage,
  Update,
  variables,
)
from dmfnet_jax.nn import volumes

WEIGHTS = ("sum", "mean")

_ANGLE = 0.2  # radians, the largest to either side
_LEAST_GAMMA, _LARGEST_GAMMA = 0.1, 2.0
_LARGEST_NOISE = 0.1


def fusion(config: Any) -> Stage:
  """Stage 1, the only one: nothing but the sources themselves says what is wanted."""
  network = build(config.network, config.compute_dtype, config.remat)

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    a, b = ((batch[name] + 1) / 2 for name in "ab")
    keys = None
    if context.train:
      of_augmentation, keys = jax.vmap(jax.random.split, out_axes=1)(context.keys)
      a, b = augment(of_augmentation, a, b, **config.augment)
    maps, changed = network.apply(
      variables(params, NETWORK), a, b, keys, context.train, context.axis, mutable=["batch_stats"]
    )
    fused = combine(maps, is_shown(a, b), config.fusion.weights)
    value, terms = objectives.fusion_loss(fused, a, b, **config.loss)
    return Loss(value, terms, {NETWORK: changed["batch_stats"]})

  return Stage(init=functools.partial(init, config), updates=(Update(loss, (NETWORK,)),))


def init(config: Any, key: Array) -> Params:
  """Initialises the network as PyTorch does by default; no forward pass is compiled."""
  volume = jax.ShapeDtypeStruct((1, PATCH, PATCH, PATCH, 1), jnp.float32)
  made = build(config.network).lazy_init(key, volume, volume)
  return {NETWORK: made["params"], STATS: {NETWORK: made["batch_stats"]}}


def is_shown(a: Array, b: Array) -> Array:
  """1 where a source in [0, 1] is not black, else 0; float32."""
  return (jnp.maximum(a, b) > 0).astype(jnp.float32)


def combine(maps: Array, shown: Array, weights: str) -> Array:
  """The fused volume in about [0, 1] of both maps, each weighted by its own size.

  Args:
    maps: [B, D, H, W, 2].
    shown: [B, D, H, W, 1], how much a voxel counts for a mean.
    weights: "sum", of the absolute values over all voxels, as published: the larger the volume, the
      brighter the result; or "mean", over what is shown.

  Returns:
    [B, D, H, W, 1].
  """
  space = (1, 2, 3)
  sizes = jnp.sum(jnp.abs(maps) * (shown if weights == "mean" else 1), axis=space, keepdims=True)
  if weights == "mean":
    sizes = sizes / jnp.maximum(jnp.sum(shown, axis=space, keepdims=True), 1)
  return jnp.sum(sizes * maps, axis=-1, keepdims=True)


def augment(
  keys: Array, a: Array, b: Array, *, rotate: float, gamma: float, noise: float
) -> tuple[Array, Array]:
  """Rotates both volumes, and gives the MRI another contrast and noise, each by chance.

  The published noise has a mean of a half, which the scaling to [0, 1] that follows takes away.

  Args:
    keys: [B] PRNG keys, one an example.
    a: the MRI, [B, D, H, W, 1] in [0, 1].
    b: the PET.
    rotate: the probability of a rotation about each of the axes, by up to 0.2 radians.
    gamma: that of a gamma between 0.1 and 2, of the MRI alone.
    noise: that of Gaussian noise of a deviation up to 0.1, of the MRI alone.
  """

  def of_one(key: Array, a: Array, b: Array) -> tuple[Array, Array]:
    of_angles, of_gamma, of_noise = jax.random.split(key, 3)
    if rotate:
      angles = _by_chance(of_angles, rotate, 0.0, -_ANGLE, _ANGLE, (3,))
      both = turn(jnp.concatenate([a, b], axis=-1), angles)
      a, b = both[..., :1], both[..., 1:]
    if gamma:
      power = _by_chance(of_gamma, gamma, 1.0, _LEAST_GAMMA, _LARGEST_GAMMA)
      a = jnp.where(a > 0, jnp.maximum(a, 1e-6) ** power, 0.0)
    if noise:
      deviation = _by_chance(of_noise, noise, 0.0, 0.0, _LARGEST_NOISE)
      noisy = a + deviation * jax.random.normal(jax.random.fold_in(of_noise, 1), a.shape)
      low, high = jnp.min(noisy), jnp.max(noisy)
      scaled = (noisy - low) / jnp.maximum(high - low, 1e-6)
      a = jnp.where(deviation > 0, scaled, a)
    return a, b

  return jax.vmap(of_one)(keys, a, b)


def _by_chance(
  key: Array, probability: float, else_: float, low: float, high: float, shape: Any = ()
) -> Array:
  """Uniform numbers in [low, high), each with a probability, and otherwise `else_`."""
  of_chance, of_value = jax.random.split(key)
  drawn = jax.random.uniform(of_value, shape, minval=low, maxval=high)
  return jnp.where(jax.random.bernoulli(of_chance, probability, shape), drawn, else_)


def turn(volume: Array, angles: Array) -> Array:
  """Rotates a volume [D, H, W, C] about its middle, by radians [3] about D, H and W in turn."""
  sides = volume.shape[:3]
  matrix = jnp.eye(3)
  for axis, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
    cosine, sine = jnp.cos(angles[axis]), jnp.sin(angles[axis])
    about = jnp.eye(3).at[i, i].set(cosine).at[j, j].set(cosine)
    matrix = matrix @ about.at[i, j].set(-sine).at[j, i].set(sine)
  axes = [jnp.arange(side, dtype=jnp.float32) - (side - 1) / 2 for side in sides]
  places = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
  halves = jnp.array([max(side - 1, 1) / 2 for side in sides], jnp.float32)
  turned = jnp.einsum("dhwi,ij->dhwj", places, matrix) / halves[None, None, None]
  return volumes.sample(volume[None], turned[None])[0]
