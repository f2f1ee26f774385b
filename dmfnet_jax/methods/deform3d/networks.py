"""The network of DC2Fusion (arXiv 2310.06291, as its published program computes it).

Volumes are [B, D, H, W, C], float32 in [0, 1]. In every block each source asks the other through a
deformable sampling of it, with a convolution beside the attention. The weights are shared by both
sources everywhere, so a block is called twice: A asks B, then B asks what A has become.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmfnet_jax.nn import layers, volumes
from dmfnet_jax.nn.batch_norm import BatchNorm
from dmfnet_jax.nn.initializers import torch_bias, torch_kernel
from dmfnet_jax.nn.restormer import LayerNorm

Array = jax.Array

WINDOW = 2  # side of the attention's windows, in tokens
PATCH = 4  # side of a token, in voxels
NARROWER = 8  # so many channels of a gate's input are one inside of it

_gelu = functools.partial(nn.gelu, approximate=False)


def _dense(features: int, inputs: int, dtype: Any, name: str) -> nn.Dense:
  return nn.Dense(
    features,
    kernel_init=torch_kernel,
    bias_init=torch_bias(inputs),
    dtype=dtype,
    precision=layers.matmul_precision(dtype),
    name=name,
  )


class Deformation(nn.Module):
  """Says of each token where the other source's is to be looked for, from both.

  Attributes:
    dtype: compute dtype.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, both: Array) -> Array:
    """Maps tokens of both [B, D, H, W, 2 C] to offsets [B, D, H, W, 3], float32, of any size."""
    h = volumes.PatchConv(both.shape[-1], dtype=self.dtype, name="embed")(both)
    h = volumes.GroupedConv(3, dtype=self.dtype, name="depthwise")(h)
    h = _gelu(LayerNorm(self.dtype, name="norm")(h))
    offsets = volumes.PatchConv(3, use_bias=False, dtype=self.dtype, name="out")(h)
    return offsets.astype(jnp.float32)


class Gate(nn.Module):
  """A gate's logits from what it looks at, through few channels.

  Attributes:
    features: of the gate: one for a place's, as many as the input's for a channel's.
    dtype: compute dtype.
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, D, H, W, C] to [B, D, H, W, features]."""
    h = volumes.PatchConv(x.shape[-1] // NARROWER, dtype=self.dtype, name="conv1")(x)
    h = _gelu(LayerNorm(self.dtype, name="norm")(h))
    return volumes.PatchConv(self.features, dtype=self.dtype, name="conv2")(h)


class Block(nn.Module):
  """One source asks the other: deformable cross attention and a convolution of both, then an MLP.

  Attributes:
    heads: of the attention; must divide the channels.
    plain: as the paper describes it; see `Fuser`.
    dtype: compute dtype.
  """

  heads: int
  plain: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Array,
    other: Array,
    rate: float,
    keys: Array | None,
    train: bool,
    axis: str | None,
  ) -> Array:
    """Maps the asking source's tokens [B, D, H, W, C] to new ones.

    Args:
      x: the source's that asks.
      other: the other one's, of the same shape.
      rate: at which paths are dropped in training.
      keys: [B] PRNG keys to draw them; None where nothing is dropped.
      train: see `BatchNorm`.
      axis: see `BatchNorm`.
    """
    channels, sides = x.shape[-1], x.shape[1:4]
    norm1 = LayerNorm(self.dtype, name="norm1")
    windows = (min(WINDOW, sides[0]), min(WINDOW, sides[1]), min(WINDOW, sides[2]))
    asking = volumes.pad_to_multiple(norm1(x), windows)
    asked = volumes.pad_to_multiple(other, windows)

    # What the other source shows where the offsets lead.
    raw = Deformation(self.dtype, name="offset")(jnp.concatenate([asking, asked], axis=-1))
    self.sow("intermediates", "offset_raw", raw)
    size = np.array(asking.shape[1:4], np.float32)
    offsets = jnp.tanh(raw) * (2 / size)[None, None, None, None]
    places = jnp.asarray(reference_points(asking.shape[1:4], self.plain))[None] + offsets
    sampled = volumes.sample(asked, places)
    if not self.plain:
      # The program lays the samples out channel by channel, and then takes that memory for tokens.
      sampled = jnp.moveaxis(sampled, -1, 1).reshape(sampled.shape)
    self.sow("intermediates", "sampled", sampled)

    # The convolution's branch, of which the channels' gate is a mean.
    mixed = jnp.concatenate([asking, sampled], axis=-1)
    mixed = volumes.GroupedConv(7, 2, self.dtype, name="mix")(mixed)
    # The program gives the width in the epsilon's place.
    epsilon = 1e-5 if self.plain else float(channels)
    norm = BatchNorm(epsilon=epsilon, dtype=self.dtype, name="mix_norm")
    mixed = _gelu(norm(mixed, train, axis))
    self.sow("intermediates", "mixed", mixed)
    of_channels = Gate(channels, self.dtype, name="channel_gate")(
      jnp.mean(mixed, axis=(1, 2, 3), keepdims=True)
    )
    self.sow("intermediates", "of_channels", of_channels)
    mixed = volumes.PatchConv(channels, dtype=self.dtype, name="projection")(mixed)

    # Attention, whose values are the asking source's own.
    dense = functools.partial(_dense, channels, channels, self.dtype)
    query = dense("query")(asking) * (channels // self.heads) ** -0.5
    value = dense("value")(asking) * nn.sigmoid(of_channels)
    qkv = (query, dense("key")(sampled), value)
    attended = window_attention(*qkv, self.heads, windows, softmax=self.plain)
    of_places = Gate(1, self.dtype, name="spatial_gate")(attended)
    mixed = nn.sigmoid(of_places) * mixed

    attended = norm1(attended)
    z = _dense(channels, 2 * channels, self.dtype, "proj")(
      jnp.concatenate([mixed, attended], axis=-1)
    )
    z = z[:, : sides[0], : sides[1], : sides[2]]
    first, second = (None, None) if keys is None else _split(keys)
    x = x + _drop(z, rate, first)
    h = _gelu(_dense(4 * channels, channels, self.dtype, "fc1")(norm1(x)))
    return x + _drop(_dense(channels, 4 * channels, self.dtype, "fc2")(h), rate, second)


def _split(keys: Array) -> tuple[Array, Array]:
  both = jax.vmap(jax.random.split, out_axes=1)(keys)
  return both[0], both[1]


def _drop(x: Array, rate: float, keys: Array | None) -> Array:
  return x if keys is None else layers.drop_path(x, rate, keys)


def reference_points(sides: Sequence[int], plain: bool = False) -> np.ndarray:
  """Where tokens look without an offset: float32 [D, H, W, 3] along D, H and W, as `sample` reads.

  The program divides each axis by the side of the next one (along W by D), which is no matter in
  cubes; so far the plain ones differ. Both count from half a token on, which is no token's centre
  where corners are aligned.
  """
  depth, height, width = sides
  by = sides if plain else (height, width, depth)
  axes = [(np.arange(n) + 0.5) / d * 2 - 1 for n, d in zip(sides, by, strict=True)]
  return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)


def window_attention(
  query: Array, key: Array, value: Array, heads: int, window: Sequence[int], softmax: bool
) -> Array:
  """Attention within windows; (Q K^T) V where there is no softmax, as in the program.

  Args:
    query: [B, D, H, W, C], sides multiples of the window's.
    key: the same.
    value: the same.
    heads: each owns as many neighbouring channels.
    window: its sides.
    softmax: whether the weights of a token are normalised so; in float32.

  Returns:
    [B, D, H, W, C].
  """
  b, d, h, w, channels = query.shape
  a, e, f = window
  grid = (b, d // a, a, h // e, e, w // f, f, heads, channels // heads)
  tokens = a * e * f

  def cut(x: Array) -> Array:
    x = x.reshape(grid).transpose(0, 1, 3, 5, 7, 2, 4, 6, 8)
    return x.reshape(-1, heads, tokens, channels // heads)

  precision = layers.matmul_precision(query.dtype)
  query, key, value = cut(query), cut(key), cut(value)
  weights = jnp.einsum("nhqc,nhkc->nhqk", query, key, precision=precision)
  if softmax:
    weights = nn.softmax(weights.astype(jnp.float32), axis=-1).astype(value.dtype)
  y = jnp.einsum("nhqk,nhkc->nhqc", weights, value, precision=precision)
  y = y.reshape(b, d // a, h // e, w // f, heads, a, e, f, -1)
  return y.transpose(0, 1, 5, 2, 6, 3, 7, 4, 8).reshape(b, d, h, w, channels)


class Merging(nn.Module):
  """Halves the sides, of odd ones rounded up, and doubles the channels.

  Attributes:
    dtype: compute dtype.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, D, H, W, C] to [B, ceil(D / 2), ceil(H / 2), ceil(W / 2), 2 C]."""
    x = volumes.pad_to_multiple(x, 2)
    x = volumes.PatchConv(2 * x.shape[-1], 2, dtype=self.dtype, name="conv")(x)
    return LayerNorm(self.dtype, name="norm")(x)


class Expanding(nn.Module):
  """Doubles the sides and halves the channels.

  Attributes:
    dtype: compute dtype.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, D, H, W, C] to [B, 2 D, 2 H, 2 W, C / 2]."""
    x = volumes.PatchConvTranspose(x.shape[-1] // 2, 2, self.dtype, name="conv")(x)
    return LayerNorm(self.dtype, name="norm")(x)


class Fuser(nn.Module):
  """A U-shaped transformer over both volumes, and two maps of what it has seen.

  Attributes:
    width: channels of the tokens at the finest level; each coarser one has twice as many. Must be a
      multiple of 8 and of the heads.
    depths: blocks of each level, fine to coarse, on either way.
    heads: of the attentions of each level; must divide its channels.
    drop_path: rate at which the last block's paths are dropped in training; less before.
    plain: as the paper describes it. False, as the program has it: samples are taken for tokens
      though they are laid out by channels, reference points are divided by another axis' side,
      there is no softmax, and the batch norms' epsilon is the width.
    dtype: compute dtype.
    remat: recompute each block's activations in the backward pass.
  """

  width: int = 96
  depths: tuple[int, ...] = (2, 2, 6, 2)
  heads: tuple[int, ...] = (3, 6, 12, 24)
  drop_path: float = 0.2
  plain: bool = False
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    a: Array,
    b: Array,
    keys: Array | None = None,
    train: bool = False,
    axis: str | None = None,
  ) -> Array:
    """Maps A and B, [B, D, H, W, 1] in [0, 1], to two maps [B, D, H, W, 2], float32.

    Args:
      a: the MRI, of any size.
      b: the PET, of the same shape.
      keys: [B] PRNG keys, one an example, to drop paths in training.
      train: see `BatchNorm`.
      axis: see `BatchNorm`.
    """
    sides = a.shape[1:4]
    rates = np.linspace(0, self.drop_path, sum(self.depths))
    of_level = np.split(rates, np.cumsum(self.depths)[:-1])
    drawn = _keys_of_blocks(keys if train else None)
    block = nn.remat(Block, static_argnums=(3, 5, 6)) if self.remat else Block

    def run(name: str, level: int, pair: tuple[Array, Array]) -> tuple[Array, Array]:
      for i, rate in enumerate(of_level[level]):
        made = block(self.heads[level], self.plain, self.dtype, name=f"{name}_{level}_block_{i}")
        pair = exchange(made, pair, next(drawn), float(rate), train, axis)
      self.sow("intermediates", f"{name}_{level}", pair)
      return pair

    embed = volumes.PatchConv(self.width, PATCH, dtype=self.dtype, name="embed")
    x, y = (embed(volumes.pad_to_multiple(source, PATCH)) for source in (a, b))
    skips: list[tuple[Array, Array]] = []
    last = len(self.depths) - 1
    for level in range(last + 1):
      x, y = run("encoder", level, (x, y))
      if level < last:
        skips.append((x, y))
        merge = Merging(self.dtype, name=f"merge_{level}")
        x, y = merge(x), merge(y)
    norm = LayerNorm(self.dtype, name="norm")
    x, y = norm(x), norm(y)

    for level in range(last, -1, -1):
      if level < last:
        expand = Expanding(self.dtype, name=f"expand_{level + 1}")
        channels = self.width << level
        join = _dense(channels, 2 * channels, self.dtype, f"join_{level}")
        x, y = (
          join(jnp.concatenate([volumes.resize_aligned(expand(z), skip.shape[1:4]), skip], axis=-1))
          for z, skip in zip((x, y), skips.pop(), strict=True)
        )
      x, y = run("decoder", level, (x, y))
    h = LayerNorm(self.dtype, name="norm2")(jnp.concatenate([x, y], axis=-1))
    h = volumes.PatchConvTranspose(self.width // 2, PATCH, self.dtype, name="unembed")(h)
    maps = volumes.NarrowConv(2, dtype=self.dtype, name="out")(h)
    return maps[:, : sides[0], : sides[1], : sides[2]].astype(jnp.float32)


def exchange(
  block: nn.Module,
  pair: tuple[Array, Array],
  keys: Array | None,
  rate: float,
  train: bool,
  axis: str | None,
) -> tuple[Array, Array]:
  """The first source asks the second, and that one what the first has become; one block for both.

  Args:
    block: a `Block`.
    pair: both sources' tokens.
    keys: [2, B] PRNG keys; None where nothing is dropped.
    rate: see `Block`.
    train: see `Block`.
    axis: see `Block`.
  """

  def ask(
    block: nn.Module, pair: tuple[Array, Array], keys: Array | None
  ) -> tuple[tuple[Array, Array], None]:
    x, other = pair
    return (other, block(x, other, rate, keys, train, axis)), None

  if block.is_initializing():  # once is enough
    return ask(block, pair, None)[0]
  changes = block.is_mutable_collection("batch_stats")
  # A loop of two: half as much to compile.
  twice = nn.scan(
    ask,
    variable_broadcast=["params"] if changes else ["params", "batch_stats"],
    variable_carry="batch_stats" if changes else False,
    variable_axes={"intermediates": 0},
    split_rngs={"params": False},
    length=2,
  )
  return twice(block, pair, keys)[0]


def _keys_of_blocks(keys: Array | None) -> Iterator[Array | None]:
  """For both calls of each block keys of their own, [2, B]; None for ever where there are none."""
  for call in itertools.count(step=2):
    both = jnp.array([call, call + 1], jnp.int32)
    fold = jax.vmap(jax.random.fold_in, (0, None))
    yield None if keys is None else jax.vmap(fold, (None, 0))(keys, both)


def build(network: Mapping[str, Any], dtype: Any = "float32", remat: bool = False) -> Fuser:
  """The network that a config's `network` section describes."""
  depths, heads = tuple(network["depths"]), tuple(network["heads"])
  return Fuser(
    network["width"], depths, heads, network["drop_path"], network["plain"], dtype, remat
  )
