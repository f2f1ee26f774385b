"""What a reader of images would object to: invention, lost brightness, tracer order."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from dmfnet_jax.filters import mean, outside_envelope, weighted_mean
from dmfnet_jax.metrics.pictures import of_pictures

READER_NAMES = ("invention", "lost_brightness", "tracer_order")

_LOST_LEVELS = 40  # a pixel so far below the brighter source has lost it
_SIGNAL = 20  # sources above it show something; the level of noise and of JPEG's rims is below
_ORDER_SIGMA = 3  # pixels


@of_pictures
def invention(a: Array, b: Array, fused: Array) -> Array:
  """Mean distance of F outside of the sources' local envelope, in grey levels, from 0.

  See `filters.outside_envelope`. What lies outside is a ring, a line or a halo that neither source
  has. Lower is better.
  """
  return mean(outside_envelope(fused, a, b))


@of_pictures
def lost_brightness(a: Array, b: Array, fused: Array) -> Array:
  """Share of bright pixels that are lost: more than 40 levels below the brighter source, 0..1.

  Pixels count where the brighter source is above 20. Lower is better.
  """
  brighter = jnp.maximum(a, b)
  bright = brighter > _SIGNAL
  lost = bright & (fused < brighter - _LOST_LEVELS)
  count = functools.partial(jnp.sum, axis=(1, 2), dtype=jnp.float32)
  return count(lost) / jnp.maximum(count(bright), 1)


@of_pictures
def tracer_order(b: Array, fused: Array) -> Array:
  """Whether more uptake is brighter: Spearman's correlation of F with B, -1..1.

  Over the pixels where B is above 20, both smoothed by a Gaussian of sigma 3 pixels: the coarse
  order of the tracer, and not the detail that A gives. For a B that shows function (PET, SPECT).
  """
  return _spearman(_smooth(b), _smooth(fused), b > _SIGNAL)


def _smooth(image: Array) -> Array:
  """A Gaussian of `_ORDER_SIGMA`, cut at four sigma; edges are repeated."""
  offset = np.arange(-4 * _ORDER_SIGMA, 4 * _ORDER_SIGMA + 1)
  weights = np.exp(-0.5 * (offset / _ORDER_SIGMA) ** 2)
  reach = len(offset) // 2
  padded = jnp.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")
  return weighted_mean(padded, weights / weights.sum())


def _spearman(x: Array, y: Array, counted: Array) -> Array:
  """Rank correlation of pictures over the pixels that count, [B]; equals share their mean rank."""

  def one(x, y, counted):
    ranks = jnp.stack([_ranks(jnp.where(counted, values, jnp.inf)) for values in (x, y)])
    number = jnp.maximum(counted.sum(dtype=jnp.float32), 1)
    deviations = jnp.where(counted, ranks - (number - 1) / 2, 0) / number
    spread = jnp.sqrt((deviations**2).sum(axis=1))
    product = spread[0] * spread[1]
    return deviations[0] @ deviations[1] / jnp.where(product > 0, product, jnp.inf)

  return lax.map(lambda triple: one(*(v.ravel() for v in triple)), (x, y, counted))


def _ranks(values: Array) -> Array:
  """Rank of each value, from 0; float32 [N]."""
  place = jnp.arange(len(values))
  ordered, index = lax.sort_key_val(values, place)
  new = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
  first = lax.cummax(jnp.where(new, place, 0))
  last = lax.cummin(jnp.where(jnp.roll(new, -1), place, len(values)), reverse=True)
  return jnp.zeros(len(values)).at[index].set((first + last).astype(jnp.float32) / 2)


def compute_reader_metrics(a: ArrayLike, b: ArrayLike, fused: ArrayLike) -> dict[str, Array]:
  """The three that a reader would object to, of pictures [B, H, W].

  Returns:
    A dict from each of `READER_NAMES`, in that order, to [B] float32.

  Raises:
    ValueError: the shapes differ or are not [B, H, W].
  """
  values = (invention(a, b, fused), lost_brightness(a, b, fused), tracer_order(b, fused))
  return dict(zip(READER_NAMES, values, strict=True))
