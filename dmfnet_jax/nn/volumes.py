"""Layers of volumes, [B, D, H, W, C], in forms that XLA compiles well on CPUs too.

Its convolutions over three axes are slow there, those in groups most of all. Here a convolution
whose windows do not overlap is one matrix product, one of few outputs is a product and shifted
sums; one in groups is shifted multiply-adds, or of a large kernel a product of spectra. Parameters
are float32.
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

  What each tap gives at every voxel is one matrix product for the taps of a plane; shifted, these
  are added up. Plane by plane: all taps' results would take more memory than the volumes do.

  Args:
    x: [B, D, H, W, C].
    kernel: [k, k, k, C, few], k odd.

  Returns:
    [B, D, H, W, few].
  """
  size, features = kernel.shape[0], kernel.shape[-1]
  depth, precision = x.shape[1], matmul_precision(x.dtype)
  margins = (size // 2, size // 2)

  def add_plane(i: Array, total: Array) -> Array:
    taps = _by_taps(lax.dynamic_index_in_dim(kernel, i, keepdims=False))
    products = jnp.einsum("bdhwc,ctf->tfbdhw", x, taps, precision=precision)
    padded = jnp.pad(products, [(0, 0)] * 3 + [margins] * 3)
    padded = lax.dynamic_slice_in_dim(padded, i, depth, axis=3)
    windows = _windows(size, 2, x.shape[2:4])
    return total + sum(padded[t, :, :, :, *window] for t, window in enumerate(windows))

  total = jnp.zeros((features, *x.shape[:4]), x.dtype)
  return jnp.moveaxis(lax.fori_loop(0, size, add_plane, total), 0, -1)


def _narrow_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return narrow_conv(x, kernel), (x, kernel)


def _narrow_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  """What every tap has contributed to is `g`, shifted back."""
  x, kernel = residuals
  size, precision = kernel.shape[0], matmul_precision(x.dtype)
  margins = (size // 2, size // 2)
  padded = jnp.pad(jnp.moveaxis(g, -1, 0), [(0, 0)] * 2 + [margins] * 3)
  windows = list(reversed(_windows(size, 3, x.shape[1:4])))
  shifted = jnp.stack([padded[:, :, *window] for window in windows])
  taps = _by_taps(kernel)
  of_x = jnp.einsum("tfbdhw,ctf->bdhwc", shifted, taps, precision=precision)
  of_taps = jnp.einsum("bdhwc,tfbdhw->tcf", x, shifted, precision=precision)
  return of_x, of_taps.reshape(kernel.shape)


narrow_conv.defvjp(_narrow_forward, _narrow_backward)


def _by_taps(kernel: Array) -> Array:
  """[*k, C, F] to [C, taps, F]."""
  return jnp.swapaxes(kernel.reshape(-1, *kernel.shape[-2:]), 0, 1)


def _windows(size: int, rank: int, sides: tuple[int, ...]) -> list[tuple[slice, ...]]:
  """Where along so many axes of padded volumes the taps of a kernel see them."""
  return [
    tuple(slice(i, i + side) for i, side in zip(tap, sides, strict=True))
    for tap in itertools.product(range(size), repeat=rank)
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
    y = grouped_conv(x.astype(self.dtype), kernel) + jnp.asarray(bias)[None, None, None, None]
    return y.astype(self.dtype)


def grouped_conv(x: Array, kernel: Array) -> Array:
  """Correlates each group of channels with its own kernel; zeros around them, the same size.

  Args:
    x: [B, D, H, W, n C] in any float dtype.
    kernel: [k, k, k, n, C] float32, k odd: output c sees inputs n c .. n c + n - 1.

  Returns:
    [B, D, H, W, C] float32.

  Raises:
    ValueError: the shapes do not belong together.
  """
  side, group = kernel.shape[0], kernel.shape[3]
  channels = group * kernel.shape[4]
  if x.ndim != 5 or kernel.shape[:3] != (side,) * 3 or x.shape[-1] != channels or side % 2 == 0:
    raise ValueError(f"volumes of shape {x.shape} and a kernel of shape {kernel.shape} do not fit")
  # Taps that see nothing but zeros, of volumes smaller than the kernel, are left out.
  cut = [min(side // 2, n - 1) for n in x.shape[1:4]]
  kernel = kernel[tuple(slice(side // 2 - r, side // 2 + r + 1) for r in cut)]
  x = x.astype(jnp.float32)
  if side > _MOST_TAPS:
    return _correlate_by_spectra(x, kernel)
  parts = [_correlate(x[..., i::group], kernel[..., i, :]) for i in range(group)]
  return functools.reduce(jnp.add, parts)


# From this side on spectra are as fast as shifted sums, and compile in no time.
_MOST_TAPS = 3


def _correlate_by_spectra(x: Array, kernel: Array) -> Array:
  """`grouped_conv` of [B, D, H, W, n C] with [kd, kh, kw, n, C]: products of Fourier transforms."""
  batch, *sides, _ = x.shape
  group, features = kernel.shape[3:]
  # Beyond the volume as many zeros as its windows see: there what is periodic lands.
  padded = tuple(n + k - 1 for n, k in zip(sides, kernel.shape, strict=False))
  axes = (-3, -2, -1)
  volumes = jnp.moveaxis(x.reshape(batch, *sides, features, group), (-2, -1), (1, 2))
  kernels = jnp.moveaxis(kernel[::-1, ::-1, ::-1], (4, 3), (0, 1))
  spectrum = jnp.fft.rfftn(volumes, padded, axes) * jnp.fft.rfftn(kernels, padded, axes)[None]
  y = jnp.fft.irfftn(jnp.sum(spectrum, axis=2), padded, axes)
  window = tuple(slice(k // 2, k // 2 + n) for n, k in zip(sides, kernel.shape, strict=False))
  return jnp.moveaxis(y[:, :, *window], 1, -1)


@jax.custom_vjp
def _correlate(x: Array, kernel: Array) -> Array:
  """Correlates [B, D, H, W, C] with [kd, kh, kw, C], sides odd; zeros around; float32.

  All taps are one fused sum. The gradients are written out, in the same manner: derived ones would
  be a pass for each tap.
  """
  parts = [
    window * kernel[tap][None, None, None, None] for tap, window in _taps(x, kernel.shape[:3])
  ]
  return functools.reduce(jnp.add, parts)


def _correlate_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return _correlate(x, kernel), (x, kernel)


def _correlate_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  x, kernel = residuals
  of_x = _correlate(g, kernel[::-1, ::-1, ::-1])
  products = [window * g for _, window in _taps(x, kernel.shape[:3])]
  zeros = [jnp.zeros((), jnp.float32)] * len(products)
  # The compiler does not join sums by itself; over lines at first, which it takes in vectors.
  sums = lax.reduce(products, zeros, lambda a, b: jax.tree.map(jnp.add, a, b), (3,))
  of_kernel = jnp.stack([jnp.sum(of_lines, axis=(0, 1, 2)) for of_lines in sums])
  return of_x, of_kernel.reshape(kernel.shape)


_correlate.defvjp(_correlate_forward, _correlate_backward)


def _taps(x: Array, kernel: tuple[int, ...]) -> list[tuple[tuple[int, ...], Array]]:
  """A kernel's taps, and what each sees of volumes with zeros around."""
  padded = jnp.pad(x, [(0, 0), *((side // 2, side // 2) for side in kernel), (0, 0)])
  found = []
  for tap in itertools.product(*map(range, kernel)):
    window = tuple(slice(i, i + side) for i, side in zip(tap, x.shape[1:4], strict=True))
    found.append((tap, padded[:, *window]))
  return found


@jax.jit  # traced once a shape: networks call it dozens of times
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
