"""Tracer first: a fused luma whose coarse scale follows the functional source.

A fused picture keeps the edges of both sources, so where anatomy and uptake are both bright, the
brightest place need not be that of most uptake. Here the coarse scale of the luma is replaced by
the tracer's, where there is tracer, and the detail of the fused picture stays:

    F' = F + m (blur(T) - blur(F)) + m s (F - blur'(F)),   T = lift + gain B

- m goes from 0 to 1 where B rises above the level at which it shows something.
- T is B within a narrower range, which leaves room below and above for the anatomy's detail; the
  order of uptake is that of B.
- The blur is Gaussian and as wide as B's own structure: its deviation over the size of its slope,
  both where it has signal. So it fits pictures of any size and tracers of any resolution.
- The last term gives back a little of the edge strength that the first one takes.
"""

import numpy as np
from scipy import ndimage

EMPHASES = ("tracer",)

_SIGNAL = 20 / 127.5  # 20 grey levels, as the measure `tracer_order` has it
_LIFT, _GAIN = 40 / 127.5, 0.84
_WIDTH = 0.9  # sigma over B's own width
_WIDEST = 1 / 8  # of the shorter side: where B hardly has a slope
_SHARPENING = 0.2
_RIM = 1.5  # pixels: the rim of the signal fades


def follow_tracer(fused: np.ndarray, tracer: np.ndarray) -> np.ndarray:
  """Makes a fused luma brighter where there is more uptake.

  Args:
    fused: float32 [H, W] in [-1, 1].
    tracer: the functional source's luma, float32 [H, W] in [-1, 1].

  Returns:
    float32 [H, W] in [-1, 1]; `fused` itself where the tracer shows nothing.
  """
  f, b = fused + 1.0, tracer + 1.0
  signal = b > _SIGNAL
  if not signal.any():
    return fused
  width = _own_width(b, signal)
  share = np.clip(b / _SIGNAL, 0, 1)
  mask = share * ndimage.gaussian_filter(signal.astype(np.float32), _RIM, mode="nearest")
  target = _LIFT * share + _GAIN * b
  coarse = ndimage.gaussian_filter(target - f, _WIDTH * width, mode="nearest")
  fine = f - ndimage.gaussian_filter(f, width / 2, mode="nearest")
  return np.clip(f + mask * (coarse + _SHARPENING * fine) - 1, -1, 1).astype(np.float32)


def _own_width(b: np.ndarray, signal: np.ndarray) -> float:
  """Over how many pixels a picture [H, W] changes by its own deviation, where it has signal."""
  slope = np.sqrt(sum(np.square(g)[signal].mean() for g in np.gradient(b)))
  widest = min(b.shape) * _WIDEST
  deviation = b[signal].std()
  return float(np.clip(deviation / slope, 1, widest)) if slope > 0 and deviation > 0 else widest
