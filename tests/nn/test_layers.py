"""Layers against independent implementations: NumPy, SciPy, flax's own, XLA's grouped convolution.

(The whole networks are compared with the published program in the parity tests.)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import ndimage

from dmfnet_jax.methods.dmfnet import attention
from dmfnet_jax.nn import layers
from dmfnet_jax.nn.batch_norm import BatchNorm


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def keys(count, seed=0):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


@pytest.mark.parametrize("size", [(1, 2), (3, 8), (7, 5)])
def test_bilinear_upsampling_has_aligned_corners(size):
  """Output j of 2n samples input j (n - 1) / (2n - 1): the corners are the input's."""
  x = draw(2, *size, 3)
  expected = x.astype(np.float64)
  for axis in (1, 2):
    n = x.shape[axis]
    positions = np.linspace(0, n - 1, 2 * n)
    expected = np.apply_along_axis(
      lambda line, n=n, p=positions: np.interp(p, np.arange(n), line), axis, expected
    )
  np.testing.assert_allclose(jax.jit(layers.upsample_bilinear)(x), expected, atol=1e-6)


def test_nearest_upsampling_repeats():
  x = draw(2, 3, 5, 4)
  np.testing.assert_array_equal(layers.upsample_nearest(x), x.repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize("groups", [1, 4, 12])
def test_group_norm_is_flaxs(groups):
  """Values and the gradients of input, scale and bias, with torch's epsilon."""
  x, weights = 3 * draw(2, 5, 7, 12) + 1, draw(2, 5, 7, 12, seed=1)
  params = {"scale": draw(12, seed=2), "bias": draw(12, seed=3)}
  ours = layers.GroupNorm(groups)
  theirs = nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False)

  def value_and_grads(layer):
    def loss(params, x):
      y = layer.apply({"params": params}, x)
      return jnp.sum(weights * jnp.sin(y)), y

    grads, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    return y, grads

  jax.tree.map(
    lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-5),
    value_and_grads(ours),
    value_and_grads(theirs),
  )


def test_group_norm_has_torchs_epsilon():
  """On a nearly constant image the epsilon decides: 1e-5 and 1e-6 differ by a factor of three."""
  x = 1e-4 * draw(1, 8, 8, 4)
  params = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
  expected = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
  np.testing.assert_allclose(
    layers.GroupNorm(1).apply({"params": params}, x), expected, rtol=1e-4, atol=1e-6
  )


def test_group_norm_computes_in_float32():
  """A large common offset would drown the variance of bfloat16 statistics."""
  x = jnp.asarray(20 + draw(1, 16, 16, 8), jnp.bfloat16)
  layer = layers.GroupNorm(2, dtype=jnp.bfloat16)
  params = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
  y = layer.apply({"params": params}, x)
  assert y.dtype == jnp.bfloat16
  exact = np.asarray(x, np.float64).reshape(1, -1, 2, 4)
  exact = (exact - exact.mean((1, 3), keepdims=True)) / exact.std((1, 3), keepdims=True)
  np.testing.assert_allclose(np.asarray(y, np.float64).reshape(exact.shape), exact, atol=0.02)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_strided_convolution_pads_every_side(size):
  """Output (0, 0) sits on input (0, 0); SAME would put it on (1, 1) of an even image."""
  x, kernel = draw(1, *size, 1), draw(3, 3, 1, 1, seed=1)
  conv = layers.conv(1, 3, strides=2, use_bias=False, dtype=jnp.float32)
  expected = ndimage.correlate(x[0, ..., 0], kernel[..., 0, 0], mode="constant")[::2, ::2]
  computed = conv.apply({"params": {"kernel": kernel}}, x)
  np.testing.assert_allclose(computed[0, ..., 0], expected, atol=1e-5)


def test_pixel_attention_is_a_grouped_convolution():
  """Values and all gradients, against XLA's grouped convolution of the interleaved inputs."""
  b, h, w, c = 2, 5, 6, 3
  s, spatial, channel = draw(b, h, w, c), draw(b, h, w, 1, seed=1), draw(b, 1, 1, c, seed=2)
  params = {"kernel": draw(3, 3, 2, c, seed=3), "bias": draw(c, seed=4)}
  weights = draw(b, h, w, c, seed=5)

  def grouped(params, s, spatial, channel):
    p = jnp.broadcast_to(spatial + channel, s.shape)
    interleaved = jnp.stack([s, p], -1).reshape(b, h, w, 2 * c)  # s0 p0 s1 p1 ...
    padded = jnp.pad(interleaved, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    out = lax.conv_general_dilated(
      padded,
      params["kernel"],
      (1, 1),
      "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=c,
    )
    return nn.sigmoid(out + params["bias"][None, None, None])

  def ours(params, *inputs):
    return attention.PixelAttention().apply({"params": params}, *inputs)

  def value_and_grads(function):
    def loss(*arguments):
      q = function(*arguments)
      return jnp.sum(weights * q), q

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(params, s, spatial, channel)

  jax.tree.map(
    lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5),
    value_and_grads(ours),
    value_and_grads(grouped),
  )


def test_dropout_keeps_the_rate_and_the_mean():
  x = np.full((4, 51, 50, 8), 3.0, np.float32)
  y = np.asarray(layers.dropout(x, 0.2, keys(4)))
  np.testing.assert_allclose(y[y != 0], 3.0 / 0.8, rtol=1e-6)
  # 20,000 values an example: the share's standard deviation is 0.0028.
  np.testing.assert_allclose((y != 0).mean((1, 2, 3)), 0.8, atol=0.015)


def test_dropout_draws_each_value_by_itself():
  """Two values share a random word: no shift within the picture relates one to another."""
  kept = np.asarray(layers.dropout(np.ones((1, 40, 40, 16), np.float32), 0.2, keys(1)))[0] != 0
  kept = kept - kept.mean()
  spectrum = np.abs(np.fft.fftn(kept)) ** 2
  correlation = np.fft.ifftn(spectrum).real / (kept**2).sum()
  correlation[0, 0, 0] = 0
  # 25,600 values: the deviation of each of as many correlations is 1 / 160.
  assert np.abs(correlation).max() < 6 / 160


def test_dropout_mask_belongs_to_the_example():
  x = np.ones((4, 6, 6, 2), np.float32)
  masks = np.asarray(layers.dropout(x, 0.5, keys(4)))
  for i in range(4):
    for j in range(i):
      assert (masks[i] != masks[j]).any()
  # Elsewhere in a batch of another size, with other neighbours, the mask is the same.
  moved = np.asarray(layers.dropout(x[:3], 0.5, keys(8)[jnp.array([7, 2, 0])]))
  np.testing.assert_array_equal(moved[1], masks[2])
  np.testing.assert_array_equal(moved[2], masks[0])


def test_no_dropout_is_the_identity():
  x = draw(2, 3, 3, 4)
  np.testing.assert_array_equal(layers.dropout(x, 0.0, keys(2)), x)


def test_self_attention_is_the_textbooks():
  """softmax(q k^T / sqrt(C)) v over all positions, one head, plus the input; in float64."""
  b, h, w, c = 2, 3, 5, 8
  x = draw(b, h, w, c)
  params = {
    "norm": {"scale": draw(c, seed=1), "bias": draw(c, seed=2)},
    "qkv": {"kernel": draw(1, 1, c, 3 * c, seed=3) / 2},
    "out": {"kernel": draw(1, 1, c, c, seed=4), "bias": draw(c, seed=5)},
  }
  computed = jax.jit(attention.SelfAttention(norm_groups=4).apply)({"params": params}, x)

  groups = x.astype(np.float64).reshape(b, h * w, 4, 2)
  deviation = groups - groups.mean((1, 3), keepdims=True)
  normed = deviation / np.sqrt((deviation**2).mean((1, 3), keepdims=True) + 1e-5)
  normed = normed.reshape(b, h * w, c) * params["norm"]["scale"] + params["norm"]["bias"]
  query, key, value = np.split(normed @ params["qkv"]["kernel"][0, 0], 3, axis=-1)
  scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(c))
  attended = scores / scores.sum(-1, keepdims=True) @ value
  out = attended @ params["out"]["kernel"][0, 0] + params["out"]["bias"]
  np.testing.assert_allclose(computed, x + out.reshape(b, h, w, c), rtol=1e-4, atol=1e-4)


def test_batch_norm_is_torchs_on_any_number_of_devices():
  """The biased variance normalises, the unbiased one enters the running average."""
  x, layer = 3 * draw(4, 2, 3, 5) + 1, BatchNorm()
  stats = {"mean": draw(5, seed=1), "var": 1 + draw(5, seed=2) ** 2}
  params = {"scale": draw(5, seed=3), "bias": draw(5, seed=4)}

  def train(x):
    variables = {"params": params, "batch_stats": stats}
    return layer.apply(variables, x, True, "devices", mutable=["batch_stats"])

  y, changed = jax.vmap(train, axis_name="devices")(x.reshape(2, 2, 2, 3, 5))
  flat = x.reshape(-1, 5).astype(np.float64)
  expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * params["scale"] + params["bias"]
  np.testing.assert_allclose(y.reshape(x.shape), expected, atol=1e-5)
  for name, value in (("mean", flat.mean(0)), ("var", flat.var(0, ddof=1))):
    running = 0.9 * stats[name] + 0.1 * value
    for device in changed["batch_stats"][name]:
      np.testing.assert_allclose(device, running, rtol=1e-5)
  y = layer.apply({"params": params, "batch_stats": stats}, x, False)
  expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_transposed_convolution_is_the_gradient_of_a_strided_one():
  """As torch defines it: of a 4x4 convolution of stride 2 with one pixel of zeros around."""
  x, kernel = draw(1, 3, 5, 2), draw(4, 4, 6, 2, seed=1)

  def strided(y):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(y, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=dims)

  _, gradient = jax.vjp(strided, jnp.zeros((1, 6, 10, 6)))
  layer = layers.conv_transpose(6, dtype="float32", use_bias=False)
  y = layer.apply({"params": {"kernel": kernel}}, x)
  np.testing.assert_allclose(y, gradient(x)[0], atol=1e-5)


def test_levelled_pictures_are_about_mid_grey():
  x = np.clip(draw(2, 8, 6, 1) * 0.2 - [[[[0.3]]], [[[-0.5]]]], -1, 1).astype(np.float32)
  for row, picture in zip(layers.level(x, 1.5), x, strict=True):
    np.testing.assert_allclose(row, np.clip(1.5 * (picture - picture.mean()), -1, 1), atol=1e-6)
  assert layers.level(x, 10.0).min() == -1
