"""The twelve fusion metrics of one picture in float64 NumPy, SciPy and scikit-image.

The tests' oracle and the yardstick of `tests/benchmarks/bench_metrics.py`: one pair at a time, one
definition after the other, written for plainness. Images are [H, W], 0..255.
"""

import numpy as np
from scipy import ndimage, stats
from skimage.metrics import structural_similarity


def _levels(image):
  """The integer grey value of each pixel; halves go to the even neighbour."""
  return np.clip(np.rint(image), 0, 255).astype(np.uint8).ravel()


def entropy(f):
  """Entropy of the grey values in bits."""
  return stats.entropy(np.bincount(_levels(f), minlength=256), base=2)


def mutual_information(x, f):
  """Mutual information of two pictures' grey values in nats."""
  joint = np.bincount(_levels(x) * np.intp(256) + _levels(f), minlength=65536) / x.size
  joint = joint.reshape(256, 256)
  independent = np.outer(joint.sum(1), joint.sum(0))
  seen = joint > 0
  return np.sum(joint[seen] * np.log(joint[seen] / independent[seen]))


def _blur(image, window):
  """Separable correlation without padding: [H, W] to [H - N + 1, W - N + 1]."""
  n = len(window)
  for axis in (0, 1):
    image = ndimage.correlate1d(image, window, axis=axis, mode="constant")
  return image[n // 2 : image.shape[0] - n // 2, n // 2 : image.shape[1] - n // 2]


def vif(x, f):
  """Pixel-domain visual information fidelity of f with reference x."""
  preserved = present = 0.0
  for n in (17, 9, 5, 3):
    offset = np.arange(n) - n // 2
    window = np.exp(-(offset**2) / (2 * (n / 5) ** 2))
    window /= window.sum()
    if n < 17:
      x, f = _blur(x, window)[::2, ::2], _blur(f, window)[::2, ::2]
    mean_x, mean_f = _blur(x, window), _blur(f, window)
    var_x = np.maximum(_blur(x * x, window) - mean_x**2, 0)
    var_f = np.maximum(_blur(f * f, window) - mean_f**2, 0)
    cov = _blur(x * f, window) - mean_x * mean_f
    gain = cov / (var_x + 1e-10)
    residual = var_f - gain * cov
    flat = var_x < 1e-10
    gain[flat], residual[flat], var_x[flat] = 0, var_f[flat], 0
    flat = var_f < 1e-10
    gain[flat], residual[flat] = 0, 0
    opposed = gain < 0
    gain[opposed], residual[opposed] = 0, var_f[opposed]
    residual = np.maximum(residual, 1e-10)
    preserved += np.sum(np.log10(1 + gain**2 * var_x / (residual + 2)))
    present += np.sum(np.log10(1 + var_x / 2))
  return preserved / present if present > 0 else 1.0


def _edges(image):
  """Sobel edge strength and orientation, -pi/2 to pi/2, y upwards; zeros beyond the border."""
  gx = ndimage.sobel(image, axis=1, mode="constant")
  gy = -ndimage.sobel(image, axis=0, mode="constant")
  with np.errstate(divide="ignore", invalid="ignore"):
    angle = np.where(gx == 0, np.pi / 2, np.arctan(gy / gx))
  return np.sqrt(gx**2 + gy**2), angle


def _edges_kept(x, f):
  """How well each edge of x is kept in f, 0..1, and the edge strength of x."""
  (strength_x, angle_x), (strength_f, angle_f) = _edges(x), _edges(f)
  lower, upper = np.minimum(strength_x, strength_f), np.maximum(strength_x, strength_f)
  with np.errstate(invalid="ignore"):
    relative = np.where(lower == upper, strength_f, lower / upper)
  turned = 1 - np.abs(angle_x - angle_f) / (np.pi / 2)
  kept = 0.9994 / (1 + np.exp(-15 * (relative - 0.5)))
  kept = kept * 0.9879 / (1 + np.exp(-22 * (turned - 0.8)))
  return kept, strength_x


def edge_preservation(a, b, f):
  """Qabf of Xydeas and Petrovic."""
  (kept_a, weight_a), (kept_b, weight_b) = _edges_kept(a, f), _edges_kept(b, f)
  return np.sum(kept_a * weight_a + kept_b * weight_b) / np.sum(weight_a + weight_b)


def correlation(x, y):
  """Pearson correlation."""
  return np.corrcoef(x.ravel(), y.ravel())[0, 1]


def compute_metrics(a, b, f):
  """All twelve of one pair: [H, W] each, to a dict of floats."""
  a, b, f = (np.asarray(image, np.float64) for image in (a, b, f))
  mse = (np.mean((a - f) ** 2) + np.mean((b - f) ** 2)) / 2
  gy, gx = np.gradient(f)
  return {
    "EN": entropy(f),
    "MI": mutual_information(a, f) + mutual_information(b, f),
    "VIFF": vif(a, f) + vif(b, f),
    "Qabf": edge_preservation(a, b, f),
    "SSIM": sum(structural_similarity(f, x, data_range=255) for x in (a, b)),
    "PSNR": 10 * np.log10(f.max() ** 2 / mse),
    "CC": (correlation(a, f) + correlation(b, f)) / 2,
    "SCD": correlation(a, f - b) + correlation(b, f - a),
    "SD": np.std(f),
    "SF": np.sqrt(np.mean(np.diff(f, axis=1) ** 2) + np.mean(np.diff(f, axis=0) ** 2)),
    "AG": np.mean(np.sqrt((gx**2 + gy**2) / 2)),
    "MSE": mse,
  }


def compute_reader_metrics(a, b, f):
  """The three that a reader would object to, of one pair: [H, W] each, to a dict of floats."""
  a, b, f = (np.asarray(image, np.float64) for image in (a, b, f))
  brighter = np.maximum(a, b)
  upper = ndimage.maximum_filter(brighter, 3, mode="nearest")
  lower = ndimage.minimum_filter(np.minimum(a, b), 3, mode="nearest")
  outside = np.where(f > upper, f - upper, np.where(f < lower, lower - f, 0))
  tracer = b > 20
  smooth_b, smooth_f = (ndimage.gaussian_filter(image, 3)[tracer] for image in (b, f))
  return {
    "invention": outside.mean(),
    "lost_brightness": np.mean((brighter - f > 40)[brighter > 20]),
    "tracer_order": stats.spearmanr(smooth_b, smooth_f).statistic,
  }
