"""The wavelet transform's goldens, of PyWavelets; the network has none. Arrays are NCHW."""

import numpy as np
from golden_check import Computed
from golden_weights import nchw, nhwc

from dmfnet_jax.nn import wavelet

TOLERANCE = 1e-6  # float32


def named(name, bands):
  """Bands by their names, NCHW."""
  parts = np.split(np.asarray(bands), 4, axis=-1)
  return {
    f"{name}_{band}": Computed(nchw(part), TOLERANCE)
    for band, part in zip(wavelet.BANDS, parts, strict=True)
  }


def compute(arrays, draw):
  """See `golden_check`."""
  del draw  # there are no weights
  found = {key: Computed(arrays[key], 0.0) for key in ("even", "odd", "scales", "tiny")}
  even, odd = (nhwc(arrays[key]).astype(np.float32) for key in ("even", "odd"))
  bands = wavelet.decompose(even)
  found |= named("even_haar", bands)
  found |= named("even_haar_level2", wavelet.decompose(bands[..., : even.shape[-1]]))
  scales = np.repeat(arrays["scales"], even.shape[-1]).astype(np.float32)
  scaled = wavelet.compose(np.asarray(bands) * scales)
  found["even_haar_inverse_of_scaled"] = Computed(nchw(scaled), TOLERANCE)
  found |= named("odd_haar_symmetric", wavelet.decompose(odd))
  found |= named("even_db2_periodization", wavelet.decompose(even, "db2"))
  square = arrays["tiny"].astype(np.float32)[None, ..., None]
  tiny = np.asarray(wavelet.decompose(square)).ravel()
  found["tiny_LL_horizontal_vertical_diagonal"] = Computed(tiny, TOLERANCE)
  return found
