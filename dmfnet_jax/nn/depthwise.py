"""3x3 convolutions of few inputs an output: depthwise ones, and those in small groups.

XLA's grouped convolution is slow on CPU, its kernel's gradient above all. Here they are shifted
multiply-adds, which every backend fuses into one pass over memory, and so is each of the two
gradients. Images are NHWC; sums are float32 whatever the dtype.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dmfnet_jax.nn import initializers

Array = jax.Array

PADDINGS = ("zero", "reflect")

_TAPS = tuple((i, j) for i in range(3) for j in range(3))


class GroupedConv(nn.Module):
  """A 3x3 convolution of stride 1, in groups with as many outputs as inputs; no bias.

  Channels n g .. n g + n - 1 of the result see the same channels of the input.

  Attributes:
    group: n, channels of a group; 1 is the depthwise convolution.
    padding: "zero" or "reflect", one pixel on every side.
    dtype: compute dtype; the sum over the window is float32.
  """

  group: int = 1
  padding: str = "zero"
  dtype: Any = jnp.float32

  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, C]."""
    (result,) = self.in_parts(x, 1)
    return result

  @nn.compact
  def in_parts(self, x: Array, parts: int) -> list[Array]:
    """Maps [B, H, W, C] to equal parts of the result's channels, each computed by itself.

    Where the parts go different ways, XLA would compute the sums over the window of all channels
    anew for each of them. A part has whole groups.
    """
    kernel = self.param("kernel", initializers.torch_kernel, (3, 3, self.group, x.shape[-1]))
    pairs = zip(*(jnp.split(y, parts, axis=-1) for y in (x, jnp.asarray(kernel))), strict=True)
    return [grouped_conv(x.astype(self.dtype), k, padding=self.padding) for x, k in pairs]


def grouped_conv(x: Array, kernel: Array, *, padding: str = "zero") -> Array:
  """Correlates each group of channels with its own 3x3 kernels.

  Args:
    x: [B, H, W, C] in any float dtype.
    kernel: [3, 3, n, C] float32, for each output channel the kernels of its group's n inputs: the
      layout of `lax.conv_general_dilated` with C / n groups.
    padding: "zero" or "reflect", one pixel on every side (reflection needs sides of two pixels).

  Returns:
    [B, H, W, C] of x's dtype.

  Raises:
    ValueError: the shapes do not belong together, or an unknown padding.
  """
  group, channels = kernel.shape[2:]
  if x.ndim != 4 or x.shape[-1] != channels or kernel.shape[:2] != (3, 3) or channels % group:
    raise ValueError(f"images of shape {x.shape} and a kernel of shape {kernel.shape} do not fit")
  if padding not in PADDINGS:
    raise ValueError(f"padding is one of {', '.join(PADDINGS)}, not {padding!r}")
  if padding == "reflect":
    x = _reflect(x)
  margin = int(padding == "zero")
  # Input r of a group reaches output c by a rotation within the group: n depthwise convolutions.
  total = None
  for rotation in range(group):
    of_rotated = [kernel[:, :, (c + rotation) % group, c::group] for c in range(group)]
    kernels = jnp.stack(of_rotated, axis=-1).reshape(3, 3, channels)
    part = _correlate(_rotate(x, group, rotation), kernels, margin)
    total = part if total is None else total + part
  return jnp.asarray(total).astype(x.dtype)


def _rotate(x: Array, group: int, by: int) -> Array:
  """Channel c of the result is channel (c + by) mod n of c's group of n."""
  if by == 0:
    return x
  grouped = x.reshape(*x.shape[:-1], -1, group)
  return jnp.roll(grouped, -by, axis=-1).reshape(x.shape)


@jax.custom_vjp
def _reflect(x: Array) -> Array:
  """Pads [B, H, W, C] by reflection, one pixel on every side.

  As `jnp.pad` does; but here the border alone is written, and in the gradient added to, while XLA
  would make the whole padded image anew for each tap that reads it.
  """
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  for axis in (1, 2):
    last = x.shape[axis] - 1
    x = _put(x, 0, axis, _line(x, 2, axis))
    x = _put(x, last, axis, _line(x, last - 2, axis))
  return x


def _reflect_backward(_: None, g: Array) -> tuple[Array]:
  for axis in (2, 1):
    last = g.shape[axis] - 1
    for border, inside in ((0, 2), (last, last - 2)):
      g = _put(g, inside, axis, _line(g, inside, axis) + _line(g, border, axis))
  return (g[:, 1:-1, 1:-1],)


_reflect.defvjp(lambda x: (_reflect(x), None), _reflect_backward)


def _line(x: Array, at: int, axis: int) -> Array:
  return lax.slice_in_dim(x, at, at + 1, axis=axis)


def _put(x: Array, at: int, axis: int, line: Array) -> Array:
  return lax.dynamic_update_slice_in_dim(x, line, at, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _correlate(x: Array, kernel: Array, margin: int) -> Array:
  """Correlates [B, H, W, C] with [3, 3, C], each channel by itself.

  The gradients are written out: of the kernel's, as JAX would derive it, XLA's CPU compiler makes
  nine passes over the images.

  Args:
    x: [B, H, W, C] in any float dtype.
    kernel: [3, 3, C] float32.
    margin: zeros around x: the result is 2 - 2 margin pixels smaller.

  Returns:
    [B, H - 2 + 2 margin, W - 2 + 2 margin, C] float32.
  """
  windows = _windows(x, margin)
  parts = [x * kernel[i, j][None, None, None] for (i, j), x in zip(_TAPS, windows, strict=True)]
  return functools.reduce(jnp.add, parts)


def _correlate_forward(x: Array, kernel: Array, margin: int) -> tuple[Array, tuple[Array, Array]]:
  return _correlate(x, kernel, margin), (x, kernel)


def _correlate_backward(
  margin: int, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
  x, kernel = residuals
  of_x = _correlate(g, kernel[::-1, ::-1], 2 - margin).astype(x.dtype)
  products = [window * g for window in _windows(x, margin)]
  sums = lax.platform_dependent(*products, cpu=_sums_in_one_pass, default=_sums)
  return of_x, jnp.stack(sums).reshape(kernel.shape)


_correlate.defvjp(_correlate_forward, _correlate_backward)


def _windows(x: Array, margin: int) -> list[Array]:
  """What each of the kernel's taps sees of [B, H, W, C], float32."""
  _, height, width, _ = x.shape
  height, width = (side - 2 + 2 * margin for side in (height, width))
  x = jnp.pad(x.astype(jnp.float32), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
  return [x[:, i : i + height, j : j + width] for i, j in _TAPS]


def _sums(*products: Array) -> Sequence[Array]:
  """The sums over all but the last axis."""
  return [jnp.sum(product, axis=(0, 1, 2)) for product in products]


def _sums_in_one_pass(*products: Array) -> Sequence[Array]:
  """The same where the compiler does not by itself join sums of one shape: over rows at first."""

  def add(left: Sequence[Array], right: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))

  zeros = tuple(jnp.zeros((), product.dtype) for product in products)
  return [jnp.sum(rows, axis=(0, 1)) for rows in lax.reduce(products, zeros, add, (2,))]
