"""Swin transformer layers (arXiv 2103.14030). Tokens are NHWC; parameters are float32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmfnet_jax.nn import layers

Array = jax.Array

LEAST_LOGIT = -100.0  # added where a token must not see another


def dense(features: int, *, dtype: Any, **kwargs: Any) -> nn.Dense:
  """A dense layer that begins as Swin's: weights of deviation 0.02 and no biases."""
  kwargs.setdefault("kernel_init", nn.initializers.normal(0.02))
  return nn.Dense(features, dtype=dtype, precision=layers.matmul_precision(dtype), **kwargs)


def layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
  """A layer norm with torch's epsilon; its statistics are float32."""
  return nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)


def to_windows(x: Array, window: int) -> Array:
  """Cuts [B, H, W, C] into windows [B, H W / window^2, window^2, C], row by row."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // window, window, w // window, window, c)
  return x.swapaxes(2, 3).reshape(b, -1, window * window, c)


def from_windows(x: Array, window: int, height: int, width: int) -> Array:
  """The inverse of `to_windows`."""
  b, c = x.shape[0], x.shape[-1]
  x = x.reshape(b, height // window, width // window, window, window, c)
  return x.swapaxes(2, 3).reshape(b, height, width, c)


def relative_positions(window: int) -> np.ndarray:
  """Which entry of the table of biases belongs to a query and a key, [window^2, window^2]."""
  places = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij")).reshape(2, -1)
  down, right = places[:, :, None] - places[:, None] + window - 1
  return down * (2 * window - 1) + right


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
  """What is added to the logits of shifted windows: tokens from opposite borders are strangers.

  Returns:
    [windows, window^2, window^2], 0 or `LEAST_LOGIT`.
  """

  def bands(side: int) -> np.ndarray:
    return np.repeat([0, 1, 2], [side - window, window - shift, shift])

  regions = 3 * bands(height)[:, None] + bands(width)
  in_windows = np.asarray(
    regions.reshape(height // window, window, width // window, window).swapaxes(1, 2)
  ).reshape(-1, window * window)
  apart = in_windows[:, :, None] != in_windows[:, None]
  return np.where(apart, LEAST_LOGIT, 0.0).astype(np.float32)


def attend(
  query: Array, key: Array, value: Array, *, heads: int, bias: Array | None = None
) -> Array:
  """Attention of several heads; logits and softmax are float32.

  Args:
    query: [..., N, C].
    key: [..., M, C].
    value: as `key`.
    heads: they divide C, the first head's channels first.
    bias: added to the logits [..., heads, N, M].

  Returns:
    [..., N, C].
  """
  size = query.shape[-1] // heads
  precision = layers.matmul_precision(query.dtype)
  query, key, value = (x.reshape(*x.shape[:-1], heads, size) for x in (query, key, value))
  logits = jnp.einsum(
    "...nhc,...mhc->...hnm",
    query * jnp.asarray(size**-0.5, query.dtype),
    key,
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  if bias is not None:
    logits = logits + jnp.expand_dims(bias, tuple(range(logits.ndim - bias.ndim)))
  weights = nn.softmax(logits, axis=-1).astype(value.dtype)
  found = jnp.einsum("...hnm,...mhc->...nhc", weights, value, precision=precision)
  return found.reshape(*found.shape[:-2], -1)


class PositionBias(nn.Module):
  """The learned bias of a key's place beside a query's, in a window; float32.

  Attributes:
    window: its side.
    heads: of the attention.
  """

  window: int
  heads: int

  @nn.compact
  def __call__(self) -> Array:
    """The biases [heads, window^2, window^2]."""
    shape = (self.heads, (2 * self.window - 1) ** 2)
    table = self.param("table", nn.initializers.normal(0.02), shape)
    return table[:, relative_positions(self.window)]


class Mlp(nn.Module):
  """Two dense layers with an exact GELU between.

  Attributes:
    hidden: channels between.
    dtype: compute dtype.
  """

  hidden: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [..., C] to the same shape."""
    channels = x.shape[-1]
    x = nn.gelu(dense(self.hidden, dtype=self.dtype, name="fc1")(x), approximate=False)
    return dense(channels, dtype=self.dtype, name="fc2")(x)


class Block(nn.Module):
  """A Swin block: attention in windows, which may be shifted, and an MLP, each beside a shortcut.

  Attributes:
    heads: of the attention.
    window: its side; the grid is a multiple of it.
    shifted: by half a window; a grid of one window is not.
    drop_path: rate at which an example's paths are dropped.
    dtype: compute dtype.
  """

  heads: int
  window: int
  shifted: bool = False
  drop_path: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, keys: Array | None = None) -> Array:
    """Maps [B, H, W, C] to the same shape; `keys` [B] drop paths, None drops nothing."""
    height, width, channels = x.shape[1:]
    shift = self.window // 2 if self.shifted and min(height, width) > self.window else 0

    def beside(x: Array, path: Array, number: int) -> Array:
      if keys is None:
        return x + path
      own = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
      return x + layers.drop_path(path, self.drop_path, own)

    path = jnp.roll(layer_norm(self.dtype, "norm1")(x), (-shift, -shift), (1, 2))
    windows = to_windows(path, self.window)
    qkv = dense(3 * channels, dtype=self.dtype, name="qkv")(windows)
    bias = PositionBias(self.window, self.heads, name="position")()
    if shift:
      bias = bias[None] + shift_mask(height, width, self.window, shift)[:, None]
    path = attend(*jnp.split(qkv, 3, axis=-1), heads=self.heads, bias=bias)
    path = dense(channels, dtype=self.dtype, name="proj")(path)
    path = from_windows(path, self.window, height, width)
    x = beside(x, jnp.roll(path, (shift, shift), (1, 2)), 0)
    path = layer_norm(self.dtype, "norm2")(x)
    return beside(x, Mlp(4 * channels, self.dtype, name="mlp")(path), 1)


class Merging(nn.Module):
  """Halves the grid: four neighbours become one token.

  Attributes:
    features: channels of the result.
    dtype: compute dtype.
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H / 2, W / 2, features]."""
    b, h, w, c = x.shape
    # (row, column): (even, even), (odd, even), (even, odd), (odd, odd).
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
    x = layer_norm(self.dtype, "norm")(x.reshape(b, h // 2, w // 2, 4 * c))
    return dense(self.features, use_bias=False, dtype=self.dtype, name="reduction")(x)


class Stage(nn.Module):
  """Blocks of one grid, every second one shifted, and the merging behind them.

  Attributes:
    rates: each block's `drop_path`.
    heads: as the blocks'.
    window: as the blocks'.
    merges: whether the grid is halved and the channels doubled at the end.
    dtype: compute dtype.
    remat: recompute the blocks' activations in the backward pass.
  """

  rates: tuple[float, ...]
  heads: int
  window: int
  merges: bool = True
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array, keys: Array | None = None) -> Array:
    """Maps [B, H, W, C] to [B, H / 2, W / 2, 2 C]; without the merging to the same shape."""
    block = nn.remat(Block) if self.remat else Block
    for i, rate in enumerate(self.rates):
      own = None if keys is None else jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys)
      made = block(self.heads, self.window, bool(i % 2), rate, self.dtype, name=f"block{i}")
      x = made(x, own)
    if self.merges:
      x = Merging(2 * x.shape[-1], self.dtype, name="merge")(x)
    return x


class Swin(nn.Module):
  """The backbone: patches of 4 x 4 pixels, then stages.

  Attributes:
    width: channels of the first stage.
    depths: blocks of each stage.
    heads: of each stage's attention.
    window: side of the attentions' windows.
    drop_path: the last block's rate; the others' rise to it from 0.
    dtype: compute dtype.
    remat: recompute the blocks' activations in the backward pass.
  """

  width: int = 96
  depths: tuple[int, ...] = (2, 2, 6, 2)
  heads: tuple[int, ...] = (3, 6, 12, 24)
  window: int = 7
  drop_path: float = 0.2
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array, keys: Array | None = None) -> list[Array]:
    """Maps pictures to the features behind each stage, the last ones normed.

    Args:
      x: [B, H, W, C]; the sides are multiples of 4 window 2^(stages - 1).
      keys: [B] for dropped paths; None drops nothing.

    Returns:
      [B, H / 8, W / 8, 2 width], and so on; behind the last stage there is no further halving.
    """
    patches = nn.Conv(
      self.width,
      (4, 4),
      (4, 4),
      padding="VALID",
      kernel_init=nn.initializers.normal(0.02),
      dtype=self.dtype,
      precision=layers.matmul_precision(self.dtype),
      name="embed",
    )
    x = layer_norm(self.dtype, "embed_norm")(patches(x.astype(self.dtype)))
    blocks = sum(self.depths)
    rates = [self.drop_path * i / max(blocks - 1, 1) for i in range(blocks)]
    found = []
    for i, depth in enumerate(self.depths):
      first, last = sum(self.depths[:i]), i == len(self.depths) - 1
      own = None if keys is None else jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys)
      stage = Stage(
        tuple(rates[first : first + depth]),
        self.heads[i],
        self.window,
        not last,
        self.dtype,
        self.remat,
        name=f"stage{i}",
      )
      x = stage(x, own)
      found.append(layer_norm(self.dtype, "norm")(x) if last else x)
    return found
