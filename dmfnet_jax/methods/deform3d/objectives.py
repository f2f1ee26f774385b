"""DC2Fusion's losses, as MONAI computes them. Volumes are [B, D, H, W, 1] float32 in [0, 1]."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dmfnet_jax.losses import absolute

Array = jax.Array

_OF_ONE = (1, 2, 3, 4)
LEAST_SIDE = 11  # the window of SSIM has to lie within the volume


def correlate(x: Array, weights: Sequence[float] | np.ndarray, *, pad: bool) -> Array:
  """Correlates [B, D, H, W, C] along all three axes with an odd number of weights.

  Args:
    x: the volumes.
    weights: [N].
    pad: zeros lie around, and the size stays; otherwise only whole windows count.
  """
  reach = len(weights) // 2
  for axis, product in ((1, "ij,bjhwc->bihwc"), (2, "ij,bdjwc->bdiwc"), (3, "ij,bdhjc->bdhic")):
    side = x.shape[axis]
    # A product with a banded matrix, as `losses.correlate`.
    band = sum(w * np.eye(side, k=offset - reach) for offset, w in enumerate(weights))
    rows = np.asarray(band, np.float32)[slice(None) if pad else slice(reach, side - reach)]
    x = jnp.einsum(product, jnp.asarray(rows), x, precision=lax.Precision.HIGHEST)
  return x


def lncc(fused: Array, source: Array) -> Array:
  """One minus... the negative mean of the squared local correlation, [B]: -1 is the best.

  The windows are boxes of three voxels a side, with zeros around the volume; variances are summed
  over them, and are at least 1e-5.
  """
  box = np.ones(3)
  stacked = jnp.concatenate([fused, source, fused**2, source**2, fused * source], axis=-1)
  sums = correlate(stacked, box, pad=True)
  f, s, ff, ss, fs = (sums[..., i] for i in range(5))
  count = 27.0
  cross = fs - f * s / count
  var_f = jnp.maximum(ff - f * f / count, 1e-5)
  var_s = jnp.maximum(ss - s * s / count, 1e-5)
  return -jnp.mean(cross**2 / (var_f * var_s), axis=(1, 2, 3))


def ssim(fused: Array, source: Array) -> Array:
  """SSIM (Wang et al. 2004) of volumes whose range is 1, [B].

  The window is Gaussian, 11 voxels a side (sigma 1.5), and lies within the volume; moments are
  biased.
  """
  offsets = np.arange(11) - 5
  weights = np.exp(-(offsets**2) / (2 * 1.5**2))
  weights /= weights.sum()
  c1, c2 = 0.01**2, 0.03**2
  stacked = jnp.concatenate([fused, source, fused**2, source**2, fused * source], axis=-1)
  means = correlate(stacked, weights, pad=False)
  f, s, ff, ss, fs = (means[..., i] for i in range(5))
  luminance = (2 * f * s + c1) / (f * f + s * s + c1)
  structure = (2 * (fs - f * s) + c2) / ((ff - f * f) + (ss - s * s) + c2)
  return jnp.mean(luminance * structure, axis=(1, 2, 3))


def fusion_loss(
  fused: Array, a: Array, b: Array, *, weight_a: float, weight_b: float
) -> tuple[Array, dict[str, Array]]:
  """The whole loss: of each source LNCC, 1 - SSIM and the mean absolute difference.

  Args:
    fused: [B, D, H, W, 1].
    a: the MRI, like `fused`, sides of at least 11.
    b: the PET.
    weight_a: of A's terms.
    weight_b: of B's.

  Returns:
    The loss [B], and its terms [B], not weighted; "ssim" is 1 - SSIM.
  """
  terms: dict[str, Array] = {}
  total = jnp.zeros(fused.shape[0], jnp.float32)
  for name, source, weight in (("a", a, weight_a), ("b", b, weight_b)):
    of_source = {
      f"lncc_{name}": lncc(fused, source),
      f"ssim_{name}": 1 - ssim(fused, source),
      f"l1_{name}": jnp.mean(absolute(fused - source), axis=_OF_ONE),
    }
    total = total + weight * sum(of_source.values())
    terms |= of_source
  return total, terms
