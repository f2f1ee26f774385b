"""How near a picture that was made is to the true one: PSNR, SSIM and NMSE, NumPy, float64.

As the papers on the synthesis of MR contrasts take them: of a whole volume at once, where slices
that show nothing do no harm, and without the background, which is easy.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

SYNTHESIS_NAMES = ("PSNR", "SSIM", "NMSE")
MIN_SYNTHESIS_SIDE = 7
"""The window of SSIM."""

_RANGE = 2  # of SSIM's constants, as published, although the values have a range of 1


def compare_volumes(truth: ArrayLike, made: ArrayLike) -> dict[str, float]:
  """Compares what was made with the truth.

  Where the truth is 0, what was made counts as 0. With t and p for the values:

  - PSNR: 10 log10(r^2 / mean (p - t)^2), r the range of both together; infinite where they are the
    same. Higher is better.
  - SSIM: the mean over uniform windows of 7 x 7 x 7 that lie inside, with the samples' covariance
    and constants for a range of 2; with fewer than 7 slices of 7 x 7 in each. Higher is better.
  - NMSE: sum (p - t)^2 / sum t^2. Lower is better.

  Args:
    truth: [S, H, W] in [0, 1], S slices.
    made: the same.

  Raises:
    ValueError: other shapes, slices smaller than 7 x 7, or a truth that is 0 everywhere.
  """
  t, p = (np.asarray(x, np.float64) for x in (truth, made))
  if t.ndim != 3 or t.shape != p.shape or min(t.shape[1:], default=0) < MIN_SYNTHESIS_SIDE:
    raise ValueError(
      f"want two volumes [S, H, W] of one shape, 7 x 7 at least: {t.shape}, {p.shape}"
    )
  energy = np.sum(t**2)
  if not energy:
    raise ValueError("the truth is 0 everywhere")
  p = np.where(t == 0, 0, p)
  squared = np.sum((p - t) ** 2)
  extent = max(p.max(), t.max()) - min(p.min(), t.min())
  psnr = 10 * math.log10(extent**2 * t.size / squared) if squared else math.inf
  return {"PSNR": psnr, "SSIM": _ssim(t, p), "NMSE": float(squared / energy)}


def _ssim(x: np.ndarray, y: np.ndarray) -> float:
  """SSIM as scikit-image has it, of windows that lie inside."""
  side = MIN_SYNTHESIS_SIDE
  window = [side if n >= side else 1 for n in x.shape]
  inside = tuple(slice(w // 2, n - w // 2) for w, n in zip(window, x.shape, strict=True))
  count = math.prod(window)

  def mean(values: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(values, window)[inside]

  mean_x, mean_y = mean(x), mean(y)
  of_sample = count / (count - 1)
  var_x, var_y = (of_sample * (mean(v * v) - m * m) for v, m in ((x, mean_x), (y, mean_y)))
  covariance = of_sample * (mean(x * y) - mean_x * mean_y)
  c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
  similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
  return float(np.mean(similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))
