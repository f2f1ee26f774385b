"""Layers on pictures whose rows are divided over devices: the values of the whole picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmfnet_jax.methods.dmfnet.fusion_head import FusionHead
from dmfnet_jax.nn import layers
from dmfnet_jax.nn import rows as divided_rows

COUNT = 4


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_rows(function, *arrays):
  """What devices make of [B, H, W, C] arrays, a quarter of the rows each; here one does for all."""
  run = jax.vmap(functools.partial(function, rows="rows"), axis_name="rows")
  given = jax.tree.map(lambda x: np.stack(np.split(x, COUNT, axis=1)), arrays)
  return np.concatenate(jax.jit(run)(*given), axis=1)


@pytest.mark.parametrize("n", [1, 3])
def test_reflected_margins(n):
  """Each device's own rows with n more at both sides are a window of the padded picture."""
  x = draw(2, 16, 5, 3)
  padded = np.pad(x, ((0, 0), (n, n), (n, n), (0, 0)), mode="reflect")
  np.testing.assert_array_equal(jax.jit(lambda x: divided_rows.pad_reflect(x, n))(x), padded)
  windows = [padded[:, i * 4 : i * 4 + 4 + 2 * n] for i in range(COUNT)]
  divided = by_rows(lambda x, rows: divided_rows.pad_reflect(x, n, rows), x)
  np.testing.assert_array_equal(divided, np.concatenate(windows, axis=1))


@pytest.mark.parametrize("shape", [(1, 2, 3, 2), (1, 3, 2, 2), (1, 1, 4, 2)])
def test_margins_wider_than_the_picture(shape):
  x = draw(*shape)
  padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
  np.testing.assert_array_equal(divided_rows.pad_reflect(x, 3), padded)


def test_upsampling():
  x = draw(2, 8, 6, 3)
  whole = jax.jit(layers.upsample_bilinear)(x)
  np.testing.assert_allclose(by_rows(layers.upsample_bilinear, x), whole, rtol=1e-6, atol=1e-6)


def test_convolutions():
  x = draw(2, 8, 6, 3)
  conv = functools.partial(layers.conv, 4, 3, dtype=jnp.float32)
  variables = conv().init(jax.random.key(0), x)
  whole = jax.jit(conv().apply)(variables, x)
  divided = by_rows(lambda x, rows: conv(rows=rows).apply(variables, x), x)
  np.testing.assert_allclose(divided, whole, rtol=1e-5, atol=1e-6)


def test_mean():
  x = draw(2, 8, 6, 3)
  divided = by_rows(lambda x, rows: jnp.broadcast_to(divided_rows.mean(x, rows), x.shape), x)
  expected = x.mean((1, 2), keepdims=True)
  np.testing.assert_allclose(divided, np.broadcast_to(expected, x.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", ["triple", "mean"])
def test_the_fusion_head(attention):
  """Of features of two levels; all its layers together."""
  head = FusionHead((16, 8), 1, attention=attention)
  a, b = ([draw(1, 32 * i, 24 * i, 16 // i, seed=s + i) for i in (1, 2)] for s in (0, 2))
  sources = draw(1, 64, 48, 1, seed=5), draw(1, 64, 48, 1, seed=6)
  variables = head.init(jax.random.key(0), [x[None] for x in a], [x[None] for x in b], sources)
  fuse = functools.partial(head.apply, variables, method="fuse")
  assert head.can_divide([(32, 24), (64, 48)], COUNT)
  assert not head.can_divide([(8, 24), (16, 48)], COUNT)
  assert not head.can_divide([(32, 3), (64, 6)], COUNT)

  def divided(a, b, sources, rows):
    return head.clone(rows=rows).apply(variables, a, b, sources, method="fuse")

  np.testing.assert_allclose(
    by_rows(divided, a, b, sources), jax.jit(fuse)(a, b, sources), rtol=1e-4, atol=1e-5
  )


def test_a_convolution_over_parts_is_one_over_their_concatenation():
  """With and without a group of the norm that reaches over two parts; one size for each kernel."""
  x = draw(2, 6, 5, 12)
  parts = x[..., :5], x[..., 5:]
  for size in (1, 3):
    joined = layers.conv(4, size, dtype=jnp.float32)
    over_parts = layers.ConvOverParts(4, size)
    variables = over_parts.init(jax.random.key(0), parts)
    jax.tree.map(np.testing.assert_array_equal, variables, joined.init(jax.random.key(0), x))
    np.testing.assert_allclose(
      over_parts.apply(variables, parts), joined.apply(variables, x), rtol=1e-5, atol=1e-5
    )
  norm = layers.GroupNorm(4)  # the second group has channels 3 to 5
  variables = {"params": {"scale": draw(12, seed=1), "bias": draw(12, seed=2)}}
  np.testing.assert_allclose(
    np.concatenate(norm.apply(variables, parts, method="over_parts"), axis=-1),
    norm.apply(variables, x),
    rtol=1e-5,
    atol=1e-6,
  )
