"""DDFM's rectification: one EM step on the luma (arXiv 2303.06840, section 3.2).

Written as the published program computes it; where that differs from the paper's algorithm 1, the
paper's form is an option. Pictures are [B, H, W, 1] float32, each by itself.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

RULES = ("code", "paper")

# The program's guards. Without the floor the second's square could be 0.
_EPSILON, _TINY, _FLOOR = 1e-6, 1e-10, 1e-30


class State(NamedTuple):
  """What a step hands to the next.

  Attributes:
    tau_a: [B, 1, 1, 1] scale of the difference to the second source.
    tau_b: [B, 1, 1, 1] scale of the difference to the first one.
    f1: [B, H, W, 1] the smoothed differences along the width.
    f2: [B, H, W, 1] those along the height.
  """

  tau_a: Array
  tau_b: Array
  f1: Array
  f2: Array


def begin(luma: Array) -> State:
  """The state before the first step, for pictures of this shape."""
  one, zero = jnp.ones((luma.shape[0], 1, 1, 1), jnp.float32), jnp.zeros_like(luma)
  return State(one, one, zero, zero)


def otf(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Transfer functions of the differences to the next pixel: [1, W] along it, and [H, 1]."""
  along = [np.exp(2j * np.pi * np.arange(n) / n).astype(np.complex64) - 1 for n in (width, height)]
  return along[0][None, :], along[1][:, None]


def step(
  luma: Array, first: Array, second: Array, state: State, options: Mapping[str, Any]
) -> tuple[Array, State, dict[str, Array]]:
  """One EM iteration.

  With w = C / (C + D) the result is about (1 - w) first + w second: of each pixel a mixture of the
  sources. The luma of the prior acts through w alone.

  Args:
    luma: f, the prior's.
    first: I, the source that the result is told by.
    second: V.
    state: of the last step.
    options: "lambda" and "rho" of the smoothing; "rule": "code", by which D is at most 2 C and the
      result is I - X, or "paper", without the bound and with V + X.

  Returns:
    The new luma, the new state, and the inner quantities C, D, H and X.
  """
  rho = options["rho"]
  y, x = first - second, luma - second
  # E step: expected precisions of both differences.
  d = jnp.sqrt(2 / state.tau_b / (x**2 + _EPSILON))
  c = jnp.sqrt(2 / state.tau_a / jnp.maximum((y - x + _EPSILON) ** 2, _FLOOR))
  if options["rule"] == "code":
    d = jnp.minimum(d, 2 * c)

  def mean(x: Array) -> Array:
    return jnp.mean(x, axis=(1, 2, 3), keepdims=True)

  tau_b = mean(1 / (d + _TINY) + state.tau_b / 2)
  tau_a = mean(1 / (c + _TINY) + state.tau_a / 2)
  # M step: the smoothed picture H of the rest, its differences, and X.
  k1, k2 = (k[None] for k in otf(*luma.shape[1:3]))
  numerator = _fft(y - x) + k1.conj() * _fft(state.f1) + k2.conj() * _fft(state.f2)
  denominator = (1 + np.abs(k1) ** 2 + np.abs(k2) ** 2).astype(np.complex64)
  h = jnp.fft.ifft2(numerator / denominator, axes=(1, 2)).real[..., None]
  share = rho / (2 * options["lambda"] + rho)
  f1, f2 = (share * _difference(h, axis) for axis in (2, 1))
  x = (2 * c * y + rho * (y - h)) / (2 * c + 2 * d + rho)
  result = first - x if options["rule"] == "code" else second + x
  return result, State(tau_a, tau_b, f1, f2), {"C": c, "D": d, "H": h, "X": x}


def _fft(x: Array) -> Array:
  """Of [B, H, W, 1] over height and width, [B, H, W]."""
  return jnp.fft.fft2(x[..., 0], axes=(1, 2))


def _difference(h: Array, axis: int) -> Array:
  """h less its next pixel; beyond the border there is 0."""
  margins = [(0, 0)] * h.ndim
  margins[axis] = (0, 1)
  following = jax.lax.slice_in_dim(jnp.pad(h, margins), 1, h.shape[axis] + 1, axis=axis)
  return h - following
