"""DFVO's networks (arXiv 2505.04526, as its published program computes them).

Pictures are NHWC, float32 in [0, 1], one channel (luma), with sides of multiples of 4. `visible` is
the dark picture, `infrared` the other. Nothing but the cross attention changes the resolution.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmfnet_jax import losses
from dmfnet_jax.nn import layers
from dmfnet_jax.nn.batch_norm import BatchNorm
from dmfnet_jax.nn.coupling import CouplingNode
from dmfnet_jax.nn.initializers import torch_bias, torch_kernel

Array = jax.Array

STRIDE = 4
_NODES = 3
_SOBEL = np.array([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])


def max_pool(x: Array) -> Array:
  """The maxima of 3x3 pixels at every pixel."""
  return nn.max_pool(x, (3, 3), (1, 1), "SAME")


class Block(nn.Module):
  """A 3x3 convolution, batch norm and leaky ReLU.

  Attributes:
    features: channels of the result.
    transposed: whether the published layer is a transposed convolution, which at stride 1 is an
      ordinary one but begins otherwise.
    train: batch norms take the batch's statistics.
    axis: over which devices share a batch.
    dtype: compute dtype; norms are float32.
  """

  features: int
  transposed: bool = False
  train: bool = False
  axis: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, features]."""
    if self.transposed:  # PyTorch takes its outputs for its inputs
      init = {
        "kernel_init": nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"),
        "bias_init": torch_bias(9 * self.features),
      }
      conv = layers.conv(self.features, 3, dtype=self.dtype, name="conv", **init)
    else:
      conv = layers.torch_conv(x.shape[-1], self.features, 3, dtype=self.dtype, name="conv")
    # A new batch is nine tenths of the running statistics.
    norm = BatchNorm(momentum=0.1, dtype=self.dtype, name="norm")
    return nn.leaky_relu(norm(conv(x), self.train, self.axis), 0.2)


class Encoder(nn.Module):
  """A picture's features; attributes as `Block`'s, and the channels of the layers."""

  widths: Sequence[int]
  train: bool = False
  axis: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Maps [B, H, W, 1] to [B, H, W, widths[-1]]."""
    x = image.astype(self.dtype)
    for i, width in enumerate(self.widths, 1):
      x = Block(width, False, self.train, self.axis, self.dtype, name=f"encode{i}")(x)
    return x


class Decoder(nn.Module):
  """Makes a picture of features; attributes as `Encoder`'s."""

  widths: Sequence[int]
  train: bool = False
  axis: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> dict[str, Array]:
    """Maps [B, H, W, C] to the layers' results and "picture", [B, H, W, 1] float32 in (0, 1)."""
    found = {}
    for i, width in enumerate(self.widths, 1):
      x = Block(width, True, self.train, self.axis, self.dtype, name=f"decode{i}")(x)
      found[f"decode{i}"] = x
    last = layers.torch_conv(x.shape[-1], 1, 3, dtype=self.dtype, name="last")
    return {**found, "picture": nn.sigmoid(last(x).astype(jnp.float32))}


class Illumination(nn.Module):
  """Estimates how the visible picture is lit; for training only. Attributes as `Fuser`'s."""

  width: int = 16
  train: bool = False
  axis: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, visible: Array) -> dict[str, Array]:
    """Maps [B, H, W, 1] to `Decoder`'s result and "pooled", what it decodes."""
    x = visible.astype(self.dtype)
    for i in (1, 2, 3):
      x = Block(2**i * self.width, False, self.train, self.axis, self.dtype, name=f"encode{i}")(x)
      x = x if i == 2 else max_pool(x)
    widths = [4 * self.width, 2 * self.width, self.width]
    decoder = Decoder(widths, self.train, self.axis, self.dtype, name="decoder")
    return {**decoder(x), "pooled": x}


class SobelConv(nn.Module):
  """Edges of all channels, by convolutions that begin as Sobel's filters; then 1x1."""

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, features]."""
    total = jnp.zeros((), self.dtype)
    for name, kernel in (("convx", _SOBEL), ("convy", _SOBEL.T)):
      init = lambda key, shape, dtype, kernel=kernel: jnp.broadcast_to(  # noqa: E731
        jnp.asarray(kernel[:, :, None, None], dtype), shape
      )
      conv = layers.conv(
        x.shape[-1], 3, dtype=self.dtype, use_bias=False, kernel_init=init, name=name
      )
      total = total + losses.absolute(conv(x))
    return layers.torch_conv(x.shape[-1], self.features, 1, dtype=self.dtype, name="mix")(total)


class UpConv(nn.Module):
  """The transposed 3x3 convolution of stride 4 whose taps lie two pixels apart.

  Output row 4k - 1 + 2t gets input row k by the kernel's row t, and even rows get the bias alone:
  so each tap is a product of the coarse features, put to its place.
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, 4 H, 4 W, features]."""
    shape = (3, 3, x.shape[-1], self.features)
    init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
    kernel = jnp.asarray(self.param("kernel", init, shape), self.dtype)
    bias = self.param("bias", torch_bias(9 * self.features), (self.features,))
    precision = layers.matmul_precision(self.dtype)
    taps = jnp.einsum("bhwi,rcio->rcbhwo", x, kernel, precision=precision)
    rows = [_spread([taps[r, c] for r in range(3)], axis=1) for c in range(3)]
    return _spread(rows, axis=2) + jnp.asarray(bias, self.dtype)[None, None, None]


def _spread(taps: Sequence[Array], axis: int) -> Array:
  """Interleaves three taps [B, H, W, C]: nothing, the middle, nothing, the last and next first."""
  first, middle, last = taps
  size = first.shape[axis]
  end = [(0, 0)] * 4
  end[axis] = (0, 1)
  following = jnp.pad(jax.lax.slice_in_dim(first, 1, size, axis=axis), end)
  zero = jnp.zeros_like(middle)
  stacked = jnp.stack([zero, middle, zero, last + following], axis=axis + 1)
  shape = list(middle.shape)
  shape[axis] *= 4
  return stacked.reshape(shape)


class CrossAttention(nn.Module):
  """Each source's values by the *other* one's attention, over all positions.

  Attributes:
    channels: of queries and keys.
    dtype: of the convolutions and the result; the softmax is float32.
  """

  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, visible: Array, infrared: Array) -> tuple[Array, Array, Array]:
    """Maps two [B, H, W, C] to the attended ones and the query [B, H, W, channels]."""
    b, h, w, c = visible.shape
    both = jnp.concatenate([visible, infrared], axis=-1)
    query = SobelConv(self.channels, self.dtype, name="query")(both)
    precision = layers.matmul_precision(self.dtype)

    def flat(x: Array) -> Array:
      return x.reshape(b, h * w, -1)

    def attention(source: Array, name: str) -> Array:
      key = SobelConv(self.channels, self.dtype, name=f"{name}_key")(source)
      wide = [flat(x).astype(jnp.float32) for x in (query, key)]
      scores = jnp.einsum("bqc,bkc->bqk", *wide, precision="highest")
      return nn.softmax(scores, axis=-1).astype(self.dtype)

    def value(source: Array, name: str) -> Array:
      return flat(layers.torch_conv(c, c, 1, dtype=self.dtype, name=f"{name}_value")(source))

    of_visible, of_infrared = attention(visible, "vi"), attention(infrared, "ir")
    attended = (
      jnp.einsum("bqk,bkc->bqc", weights, values, precision=precision).reshape(b, h, w, c)
      for weights, values in (
        (of_infrared, value(visible, "vi")),
        (of_visible, value(infrared, "ir")),
      )
    )
    return (*attended, query)


class Fuser(nn.Module):
  """All that fusing needs: encoders, cross attention, details, and the decoder of the result.

  Attributes:
    width: channels of the first layer.
    train: batch norms take the batch's statistics.
    axis: over which devices share a batch.
    dtype: compute dtype; norms and softmax are float32.
  """

  width: int = 16
  train: bool = False
  axis: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, visible: Array, infrared: Array) -> dict[str, Array]:
    """Fuses two pictures [B, H, W, 1].

    Returns:
      Features by their names, of which "visible" and "infrared" [B, H, W, 8 width] are decoded in
      training, and "picture" [B, H, W, 1], float32 in (0, 1).
    """
    width, found = self.width, {}
    mode = {"train": self.train, "axis": self.axis, "dtype": self.dtype}
    encoded, coarse = {}, {}
    for name, image in (("vi", visible), ("ir", infrared)):
      x = Encoder([width, 2 * width, 4 * width, 8 * width], **mode, name=f"{name}_encoder")(image)
      encoded[name] = found[f"{name}_encoded"] = x
      init: dict[str, Any] = {"kernel_init": torch_kernel, "bias_init": torch_bias(72 * width)}
      down = layers.conv(
        16 * width,
        3,
        dtype=self.dtype,
        strides=(4, 4),
        name=f"{name}_down",
        **init,
      )
      coarse[name] = found[f"{name}_coarse"] = max_pool(down(x))
    attention = CrossAttention(2 * width, self.dtype, name="attention")
    *attended, found["query"] = attention(coarse["vi"], coarse["ir"])
    # The published program uses the visible picture's convolution for both.
    last = layers.torch_conv(8 * width, 8 * width, 3, dtype=self.dtype, name="detail_conv")
    bases, details = [], []
    for (name, x), crossed in zip(encoded.items(), attended, strict=True):
      found[f"{name}_attended"] = crossed
      found[f"{name}_up"] = UpConv(8 * width, self.dtype, name=f"{name}_up")(crossed)
      bases.append(x + found[f"{name}_up"])
      for i in range(_NODES):
        x = CouplingNode(self.dtype, name=f"{name}_detail{i}")(x)
        found[f"{name}_detail{i}"] = x
      details.append(last(x))
    found["visible"], found["infrared"] = (b + d for b, d in zip(bases, details, strict=True))
    widths = [8 * width, 4 * width, 2 * width, width]
    decoder = Decoder(widths, **mode, name="decoder")
    return {**found, **decoder(jnp.concatenate([sum(bases), sum(details)], axis=-1))}


def build(width: int, dtype: Any, train: bool = False, axis: str | None = None) -> dict[str, Any]:
  """The networks by name; all but the fuser are for training only."""
  mode = {"train": train, "axis": axis, "dtype": dtype}
  decoder = Decoder([4 * width, 2 * width, width], **mode)
  return {
    "fuser": Fuser(width, **mode),
    "illumination": Illumination(width, **mode),
    "enhancer": decoder,
    "infrared": decoder,
  }
