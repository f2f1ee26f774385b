"""Orthogonal wavelet transforms of feature maps, NHWC: half the sides, four times the channels.

Nothing is lost: the transform is a rotation, its inverse is its transpose. Names of bands disagree
in the literature; here they say what a band answers to.
"""

import math

import jax
import jax.numpy as jnp

Array = jax.Array

BANDS = ("LL", "horizontal", "vertical", "diagonal")
"""The order of the bands: the smooth one, horizontal edges (differences between rows), vertical
edges (differences between columns), both."""

_ROOT2, _ROOT3 = math.sqrt(2), math.sqrt(3)
# The low-pass filters of the analysis (Daubechies 1988, of one and of two vanishing moments).
_LOW = {
  "haar": (1 / _ROOT2, 1 / _ROOT2),
  "db2": tuple(x / (4 * _ROOT2) for x in (1 - _ROOT3, 3 - _ROOT3, 3 + _ROOT3, 1 + _ROOT3)),
}
WAVELETS = tuple(_LOW)


def decompose(x: Array, wavelet: str = "haar") -> Array:
  """One level of the transform, each channel by itself.

  Borders are periodic, which Haar's windows of two pixels never see. Of an odd side the last row or
  column is repeated first.

  Args:
    x: [B, H, W, C].
    wavelet: one of `WAVELETS`.

  Returns:
    [B, ceil(H / 2), ceil(W / 2), 4 C]: all channels of a band, then the next band's, by `BANDS`.
  """
  x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), mode="edge")
  smooth, between_rows = _split(x, 1, wavelet)
  low, vertical = _split(smooth, 2, wavelet)
  horizontal, diagonal = _split(between_rows, 2, wavelet)
  return jnp.concatenate([low, horizontal, vertical, diagonal], axis=-1)


def compose(bands: Array, wavelet: str = "haar") -> Array:
  """The inverse of `decompose`: [B, H, W, 4 C] to [B, 2 H, 2 W, C]."""
  low, horizontal, vertical, diagonal = jnp.split(bands, 4, axis=-1)
  smooth = _join(low, vertical, 2, wavelet)
  between_rows = _join(horizontal, diagonal, 2, wavelet)
  return _join(smooth, between_rows, 1, wavelet)


def _taps(wavelet: str) -> list[tuple[float, float, int, int]]:
  """Low-pass and high-pass weight of each tap, and what it meets: phase 0 or 1 of which pair."""
  low = _LOW[wavelet]
  # The quadrature mirror filter.
  high = [(-1) ** (j + 1) * x for j, x in enumerate(reversed(low))]
  places = (divmod(len(low) // 2 - j, 2) for j in range(len(low)))
  return [(a, b, phase, pair) for a, b, (pair, phase) in zip(low, high, places, strict=True)]


def _split(x: Array, axis: int, wavelet: str) -> tuple[Array, Array]:
  """Halves an axis into its smooth part and its differences."""
  shape = list(x.shape)
  shape[axis : axis + 1] = [shape[axis] // 2, 2]
  pairs = x.reshape(shape)
  phases = [jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(2)]
  low = high = jnp.zeros_like(phases[0])
  for a, b, phase, pair in _taps(wavelet):
    tap = jnp.roll(phases[phase], -pair, axis) if pair else phases[phase]
    low, high = low + a * tap, high + b * tap
  return low, high


def _join(low: Array, high: Array, axis: int, wavelet: str) -> Array:
  """The transpose of `_split`."""
  phases = [jnp.zeros_like(low), jnp.zeros_like(low)]
  for a, b, phase, pair in _taps(wavelet):
    tap = a * low + b * high
    phases[phase] = phases[phase] + (jnp.roll(tap, pair, axis) if pair else tap)
  shape = list(low.shape)
  shape[axis] *= 2
  return jnp.stack(phases, axis + 1).reshape(shape)
