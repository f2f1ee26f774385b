"""Layers of volumes, [B, D, H, W, C], in forms that XLA compiles well on CPUs too.

Its convolutions over three axes are slow there, those in groups most of all. Here a convolution
whose windows do not overlap is one matrix product, one of few outputs is a product and shifted
sums, and a depthwise one is shifted multiply-adds. Parameters are float32.
"""

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dmfnet_jax.nn.initializers import torch_bias, torch_kernel
from dmfnet_jax.nn.layers import matmul_precision

Array = jax.Array


def pad_to_multiple(x: Array, multiple: int | tuple[int, ...]) -> Array:
  """Adds zeros at the end of each axis of [B, D, H, W, C], so that it is a multiple."""
  multiples = (multiple,) * 3 if isinstance(multiple, int) else multiple
  margins = [(0, -side % m) for side, m in zip(x.shape[1:4], multiples, strict=True)]
  return jnp.pad(x, [(0, 0), *margins, (0, 0)])


class PatchConv(nn.Module):
  """A convolution of windows that do not overlap: of stride `size`, without padding.

  Attributes:
    features: channels of the result.
    size: side of the windows; 1 for a product at each voxel.
    use_bias: whether a bias is added.
    dtype: compute dtype.
  """

  features: int
  size: int = 1
  use_bias: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, D, H, W, C], sides multiples of `size`, to [B, D / size, ..., features]."""
    size, inputs = self.size, x.shape[-1]
    kernel = self.param("kernel", torch_kernel, (size, size, size, inputs, self.features))
    kernel = jnp.asarray(kernel).reshape(-1, self.features)
    x = _to_patches(x.astype(self.dtype), size)
    y = jnp.matmul(x, kernel.astype(self.dtype), precision=matmul_precision(self.dtype))
    if self.use_bias:
      bias = self.param("bias", torch_bias(size**3 * inputs), (self.features,))
      y = y + jnp.asarray(bias, self.dtype)[None, None, None, None]
    return y


class PatchConvTranspose(nn.Module):
  """The transposed convolution of windows that do not overlap: each voxel becomes `size`^3.

  Its kernel is [size, size, size, out, in], which torch's layout [in, out, ...] becomes as others
  do.

  Attributes:
    features: channels of the result.
    size: side of the windows.
    dtype: compute dtype.
  """

  features: int
  size: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, D, H, W, C] to [B, size D, size H, size W, features]."""
    size, features = self.size, self.features
    kernel = self.param("kernel", torch_kernel, (size, size, size, features, x.shape[-1]))
    # As torch counts the inputs of a transposed convolution, whose kernel it reads as another's.
    bias = self.param("bias", torch_bias(size**3 * features), (features,))
    kernel = jnp.asarray(kernel, self.dtype).reshape(-1, x.shape[-1])
    precision = matmul_precision(self.dtype)
    y = jnp.einsum("bdhwi,oi->bdhwo", x.astype(self.dtype), kernel, precision=precision)
    return _from_patches(y, size) + jnp.asarray(bias, self.dtype)[None, None, None, None]


def _to_patches(x: Array, size: int) -> Array:
  """[B, D, H, W, C] to [B, D / size, H / size, W / size, size^3 C]."""
  if size == 1:
    return x
  b, d, h, w, c = x.shape
  x = x.reshape(b, d // size, size, h // size, size, w // size, size, c)
  return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, d // size, h // size, w // size, -1)


def _from_patches(x: Array, size: int) -> Array:
  """The inverse of `_to_patches`."""
  b, d, h, w, _ = x.shape
  x = x.reshape(b, d, h, w, size, size, size, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
  return x.reshape(b, d * size, h * size, w * size, -1)


class NarrowConv(nn.Module):
  """A convolution of odd side to few channels, padded with zeros to the same size, with a bias.

  Attributes:
    features: channels of the result, a few.
    size: side of the kernel.
    dtype: compute dtype.
  """

  features: int
  size: int = 3
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, D, H, W, C] to [B, D, H, W, features]."""
    shape = (self.size,) * 3 + (x.shape[-1], self.features)
    kernel = jnp.asarray(self.param("kernel", torch_kernel, shape))
    bias = self.param("bias", torch_bias(math.prod(shape[:-1])), (self.features,))
    y = narrow_conv(x.astype(self.dtype), kernel.astype(self.dtype))
    return y + jnp.asarray(bias, self.dtype)[None, None, None, None]


@jax.custom_vjp
def narrow_conv(x: Array, kernel: Array) -> Array:
  """Correlates volumes with a kernel of few outputs; zeros around them, the same size.

  What each tap gives at every voxel is one matrix product; shifted, these are added up.

  Args:
    x: [B, D, H, W, C].
    kernel: [k, k, k, C, few], k odd.

  Returns:
    [B, D, H, W, few].
  """
  size, features = kernel.shape[0], kernel.shape[-1]
  taps = _by_taps(kernel)
  products = jnp.einsum("bdhwc,ctf->tfbdhw", x, taps, precision=matmul_precision(x.dtype))
  padded = jnp.pad(products, [(0, 0)] * 3 + [(size // 2,) * 2] * 3)
  windows = _windows(size, x.shape[1:4])
  total = sum(padded[t, :, :, *window] for t, window in enumerate(windows))
  return jnp.moveaxis(jnp.asarray(total).reshape(features, *x.shape[:4]), 0, -1)


def _narrow_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return narrow_conv(x, kernel), (x, kernel)


def _narrow_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  """What every tap has contributed to is `g`, shifted back."""
  x, kernel = residuals
  size, precision = kernel.shape[0], matmul_precision(x.dtype)
  padded = jnp.pad(jnp.moveaxis(g, -1, 0), [(0, 0)] * 2 + [(size // 2,) * 2] * 3)
  windows = reversed(_windows(size, x.shape[1:4]))
  shifted = jnp.stack([padded[:, :, *window] for window in windows])
  of_x = jnp.einsum("tfbdhw,ctf->bdhwc", shifted, _by_taps(kernel), precision=precision)
  of_taps = jnp.einsum("bdhwc,tfbdhw->tcf", x, shifted, precision=precision)
  return of_x, of_taps.reshape(kernel.shape)


narrow_conv.defvjp(_narrow_forward, _narrow_backward)


def _by_taps(kernel: Array) -> Array:
  """[k, k, k, C, F] to [C, k^3, F]."""
  return jnp.swapaxes(kernel.reshape(-1, *kernel.shape[3:]), 0, 1)


def _windows(size: int, sides: tuple[int, ...]) -> list[tuple[slice, ...]]:
  """Where in padded volumes of so many voxels the taps of a kernel see them."""
  return [
    tuple(slice(i, i + side) for i, side in zip(tap, sides, strict=True))
    for tap in itertools.product(range(size), repeat=3)
  ]


class GroupedConv(nn.Module):
  """A convolution of odd side and stride 1 in groups of one output each, zero-padded; a bias.

  Attributes:
    size: side of the kernel.
    group: inputs of each output: output c sees inputs n c .. n c + n - 1.
    dtype: compute dtype; sums over the window are float32.
  """

  size: int
  group: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, D, H, W, n C] to [B, D, H, W, C]."""
    features = x.shape[-1] // self.group
    shape = (self.size,) * 3 + (self.group, features)
    kernel = jnp.asarray(self.param("kernel", torch_kernel, shape))
    bias = self.param("bias", torch_bias(math.prod(shape[:-1])), (features,))
    x = x.astype(self.dtype)
    parts = [depthwise_conv(x[..., i :: self.group], kernel[..., i, :]) for i in range(self.group)]
    y = functools.reduce(jnp.add, parts) + jnp.asarray(bias)[None, None, None, None]
    return y.astype(self.dtype)


def depthwise_conv(x: Array, kernel: Array) -> Array:
  """Correlates each channel of volumes with its own kernel; zeros around them, the same size.

  Args:
    x: [B, D, H, W, C] in any float dtype.
    kernel: [k, k, k, C] float32, k odd.

  Returns:
    [B, D, H, W, C] float32.

  Raises:
    ValueError: the shapes do not belong together.
  """
  side = kernel.shape[0]
  if x.ndim != 5 or kernel.shape != (side,) * 3 + x.shape[-1:] or side % 2 == 0:
    raise ValueError(f"volumes of shape {x.shape} and a kernel of shape {kernel.shape} do not fit")
  # Taps that see nothing but zeros, of volumes smaller than the kernel, are left out.
  cut = [min(side // 2, n - 1) for n in x.shape[1:4]]
  window = tuple(slice(side // 2 - r, side // 2 + r + 1) for r in cut)
  return _correlate(x, kernel[window])


@jax.custom_vjp
def _correlate(x: Array, kernel: Array) -> Array:
  """Correlates [B, D, H, W, C] with [kd, kh, kw, C], sides odd: float32, zeros around.

  Planes of the kernel follow one another, the taps of a plane are one fused sum. The gradients are
  written out, in the same manner: derived ones would be a pass for each tap.
  """
  padded, (_, height, width) = _pad_for(x, kernel.shape), x.shape[1:4]
  rows, columns = kernel.shape[1:3]

  def add_plane(i: Array, total: Array) -> Array:
    plane = lax.dynamic_slice_in_dim(padded, i, x.shape[1], axis=1).astype(jnp.float32)
    weights = lax.dynamic_index_in_dim(kernel, i, keepdims=False)
    for y, z in itertools.product(range(rows), range(columns)):
      window = plane[:, :, y : y + height, z : z + width]
      total = total + window * weights[y, z][None, None, None, None]
    return total

  return lax.fori_loop(0, kernel.shape[0], add_plane, jnp.zeros(x.shape, jnp.float32))


def _correlate_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return _correlate(x, kernel), (x, kernel)


def _correlate_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  x, kernel = residuals
  of_x = _correlate(g, kernel[::-1, ::-1, ::-1]).astype(x.dtype)
  padded, shape = _pad_for(x, kernel.shape), kernel.shape
  depth, height, width = x.shape[1:4]
  across = shape[2]

  def of_row(row: Array) -> Array:
    """The gradient of a row of taps, [kw, C]: sums over all voxels, in one pass."""
    corner = (0, row // shape[1], row % shape[1], 0, 0)
    size = (x.shape[0], depth, height, width + across - 1, x.shape[-1])
    lines = lax.dynamic_slice(padded, corner, size).astype(jnp.float32)
    products = [lines[:, :, :, i : i + width] * g for i in range(across)]
    zeros = [jnp.zeros((), jnp.float32)] * across
    # The compiler does not join sums by itself; over lines at first, which it takes in vectors.
    sums = lax.reduce(products, zeros, lambda a, b: jax.tree.map(jnp.add, a, b), (3,))
    return jnp.stack([jnp.sum(of_lines, axis=(0, 1, 2)) for of_lines in sums])

  rows = lax.map(of_row, jnp.arange(shape[0] * shape[1], dtype=jnp.int32))
  return of_x, rows.reshape(shape)


_correlate.defvjp(_correlate_forward, _correlate_backward)


def _pad_for(x: Array, kernel: tuple[int, ...]) -> Array:
  margins = [(side // 2, side // 2) for side in kernel[:3]]
  return jnp.pad(x, [(0, 0), *margins, (0, 0)])


def sample(x: Array, places: Array) -> Array:
  """Reads volumes between their voxels, trilinearly; zeros lie around them.

  As torch's `grid_sample` with aligned corners, but for the order of the coordinates.

  Args:
    x: [B, D, H, W, C].
    places: [B, *any, 3] along D, H and W: -1 is the first voxel's centre, 1 the last one's.

  Returns:
    [B, *any, C] of x's dtype; the weights are float32.
  """
  batch, *sides, channels = x.shape
  lines = x.reshape(batch, -1, channels)
  last = np.array(sides, np.float32) - 1
  at = (places.astype(jnp.float32) + 1) * (last.reshape((1,) * (places.ndim - 1) + (3,)) / 2)
  first = jnp.floor(at)
  strides = (sides[1] * sides[2], sides[2], 1)
  total = jnp.zeros((*places.shape[:-1], channels), x.dtype)
  for corner in itertools.product((0, 1), repeat=3):
    index = jnp.zeros(places.shape[:-1], jnp.int32)
    weight = jnp.ones(places.shape[:-1], jnp.float32)
    for axis, step in enumerate(corner):
      here = first[..., axis] + step
      beyond = at[..., axis] - first[..., axis]
      share = beyond if step else 1 - beyond
      inside = (here >= 0) & (here <= sides[axis] - 1)
      weight = weight * jnp.where(inside, share, 0)
      # In range before it is an integer: far places have none.
      here = jnp.clip(here, 0, sides[axis] - 1).astype(jnp.int32)
      index = index + here * strides[axis]
    values = jax.vmap(lambda of_one, at: of_one[at])(lines, index)
    total = total + values * weight[..., None].astype(x.dtype)
  return total


def resize_aligned(x: Array, sides: tuple[int, ...]) -> Array:
  """Resizes [B, D, H, W, C] to other sides, trilinearly with aligned corners."""
  for axis, (old, new) in enumerate(zip(x.shape[1:4], sides, strict=True), start=1):
    if old == new:
      continue
    at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    # A product with a matrix of two weights a row: there is nothing to gather.
    matrix = np.maximum(1 - np.abs(at[:, None] - np.arange(old)), 0).astype(np.float32)
    product = {1: "ni,bihwc->bnhwc", 2: "ni,bdiwc->bdnwc", 3: "ni,bdhic->bdhnc"}[axis]
    weights = jnp.asarray(matrix, x.dtype)
    x = jnp.einsum(product, weights, x, precision=matmul_precision(x.dtype))
  return x
