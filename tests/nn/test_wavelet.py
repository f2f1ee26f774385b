"""Wavelet transforms: rotations that nothing is lost in. Values: `methods/goldens/waveae.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmfnet_jax.nn import wavelet


@pytest.mark.parametrize("name", wavelet.WAVELETS)
def test_the_inverse_gives_back_and_energy_is_kept(name):
  x = np.random.default_rng(0).standard_normal((2, 8, 12, 3)).astype(np.float32)
  bands = wavelet.decompose(x, name)
  assert bands.shape == (2, 4, 6, 12)
  np.testing.assert_allclose(wavelet.compose(bands, name), x, atol=1e-5)
  np.testing.assert_allclose(np.sum(bands**2), np.sum(x**2), rtol=1e-5)
  # The gradient is the inverse of what comes in, as of every rotation.
  _, backward = jax.vjp(lambda x: wavelet.decompose(x, name), x)
  np.testing.assert_allclose(backward(bands)[0], x, atol=1e-5)


@pytest.mark.parametrize("name", wavelet.WAVELETS)
def test_a_flat_picture_has_no_details(name):
  low, *details = jnp.split(wavelet.decompose(jnp.ones((1, 6, 4, 1)), name), 4, axis=-1)
  np.testing.assert_allclose(low, 2.0, rtol=1e-6)
  assert max(np.abs(x).max() for x in details) < 1e-6


def test_bands_answer_to_what_their_names_say():
  rows = np.tile(np.array([1.0, -1.0], np.float32)[None, :, None, None], (1, 3, 4, 1))
  _, horizontal, vertical, diagonal = jnp.split(wavelet.decompose(rows), 4, axis=-1)
  assert (np.abs(horizontal) > 1.9).all()
  assert not np.any(vertical)
  assert not np.any(diagonal)
