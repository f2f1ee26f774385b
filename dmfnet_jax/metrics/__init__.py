"""The measures of a fused picture, in JAX: batched, jitted, float32.

The twelve of `METRIC_NAMES` are those that papers of this field give. Some of them (Qabf, AG, SF)
reward edges that neither source has. The three of `READER_NAMES` show what a reader of images would
object to: structure that is made up, brightness that is lost, and uptake out of its order.

Every function takes grey pictures [B, H, W] of one size, 0..255, in any real type, and returns [B]
float32, one value per pair. F is the fused picture, A and B are its sources. The definitions are
the ones by which the programs of this field are compared; where two readings exist, the one that
gives published values was taken. Higher is better, except for the MSE.

No picture gives NaN. Where a definition is 0/0: correlations with a constant picture (CC, SCD) are
0, Qabf is 0 where both sources are black (other constants have an edge at the border), VIF is 1 for
a constant source. PSNR is +inf where F equals both sources, else -inf where F is all black. Lost
brightness is 0 where nothing is bright, tracer order where there is no tracer or but one value.

The three of `SYNTHESIS_NAMES` compare a picture that was made with the true one, see
`compare_volumes`.

Float32 is enough because means are taken out before anything is squared, local ones included: on
real pictures the values are within 1e-5 of float64, relatively.
"""

from dmfnet_jax.metrics.published import (
  METRIC_NAMES,
  MIN_SIDE,
  average_gradient,
  compute_metrics,
  correlation,
  difference_correlation,
  entropy,
  mse,
  mutual_information,
  psnr,
  qabf,
  spatial_frequency,
  ssim,
  standard_deviation,
  viff,
)
from dmfnet_jax.metrics.reader import (
  READER_NAMES,
  compute_reader_metrics,
  invention,
  lost_brightness,
  tracer_order,
)
from dmfnet_jax.metrics.synthesis import SYNTHESIS_NAMES, compare_volumes

__all__ = [
  "METRIC_NAMES",
  "MIN_SIDE",
  "READER_NAMES",
  "SYNTHESIS_NAMES",
  "average_gradient",
  "compare_volumes",
  "compute_metrics",
  "compute_reader_metrics",
  "correlation",
  "difference_correlation",
  "entropy",
  "invention",
  "lost_brightness",
  "mse",
  "mutual_information",
  "psnr",
  "qabf",
  "spatial_frequency",
  "ssim",
  "standard_deviation",
  "tracer_order",
  "viff",
]
