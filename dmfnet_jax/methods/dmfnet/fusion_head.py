"""The fusion head of Stage II (SPEC, Stage II): two sources' UNet features to one image.

Levels run coarse to fine, features are NHWC.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.methods import parts
from dmfnet_jax.methods.dmfnet.attention import MeanAttention, TripleAttention
from dmfnet_jax.nn import layers

Array = jax.Array

OUTPUTS = ("tanh", "blend")

ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
  "triple": TripleAttention,
  "mean": MeanAttention,
}


class ConvBlock(nn.Module):
  """1x1 convolution, ReLU, 3x3 convolution, ReLU."""

  features: int
  dtype: Any = jnp.float32
  rows: str | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [B, H, W, C] to [B, H, W, features]."""
    x = nn.relu(layers.conv(self.features, 1, dtype=self.dtype, name="conv1")(x))
    return nn.relu(layers.conv(self.features, 3, dtype=self.dtype, rows=self.rows, name="conv2")(x))


class TimestepFusion(nn.Module):
  """Merges the features of all timesteps: 1x1 convolution, ReLU, 3x3 convolution, ReLU.

  The first convolution reads all timesteps at once but is linear: it may be added up, in float32,
  one timestep after the other, so that no more than one timestep's features need to be in memory.
  """

  features: int
  num_timesteps: int
  dtype: Any = jnp.float32
  rows: str | None = None

  def setup(self):
    self.conv1 = _PointwiseOverTimesteps(self.features, self.num_timesteps, self.dtype)
    self.conv2 = layers.conv(self.features, 3, dtype=self.dtype, rows=self.rows)

  def share(self, x: Array, timestep: Array | int) -> Array:
    """What the features [B, H, W, C] of one timestep add to the sum: [B, H, W, C] float32."""
    return self.conv1(x, timestep)

  def merge(self, total: Array) -> Array:
    """Maps the sum of all timesteps' shares [B, H, W, C] to the merged features [B, H, W, C]."""
    hidden = nn.relu(self.conv1.add_bias(total)).astype(self.dtype)
    return nn.relu(self.conv2(hidden))


class _PointwiseOverTimesteps(nn.Module):
  """The 1x1 convolution over T concatenated features, with one slice of its kernel a timestep."""

  features: int
  num_timesteps: int
  dtype: Any = jnp.float32

  def setup(self):
    shape = (1, 1, self.num_timesteps * self.features, self.features)
    self.kernel = self.param("kernel", layers.orthogonal, shape)
    self.bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))

  def __call__(self, x: Array, timestep: Array | int) -> Array:
    kernels = jnp.asarray(self.kernel).reshape(self.num_timesteps, self.features, self.features)
    return jnp.einsum(
      "bhwc,cf->bhwf",
      x.astype(self.dtype),
      kernels[timestep].astype(self.dtype),
      precision=layers.matmul_precision(self.dtype),
      preferred_element_type=jnp.float32,
    )

  def add_bias(self, total: Array) -> Array:
    return total + self.bias[None, None, None]


class FusionHead(nn.Module):
  """Timestep fusion, attention and multi-scale fusion at each level, then the output convolutions.

  `__call__` takes the features of all timesteps. Where these do not fit the memory together,
  `share` takes them one timestep at a time, and `fuse` the sums of what it returned.

  Attributes:
    level_widths: channels of the levels' features, coarse to fine.
    num_timesteps: timesteps T whose features come in; with one, timestep fusion is left out.
    attention: a name in `ATTENTIONS`, or "module:attribute" of a user's own (see `methods.parts`).
    multi_scale_reach: how many coarser levels feed a level: 2 (the paper), 1, or 0 (the finest
      level alone makes the image).
    output: "tanh" (the paper): F = tanh(h) is made of the features alone. "blend": F = w A +
      (1 - w) B + r, cut to [-1, 1], with a weight w in (0, 1) and a rest r for each pixel from the
      features. It begins as the mean of the sources, and need not learn to copy them.
    dtype: compute dtype; parameters and the output stay float32.
    rows: see `nn.rows`: only for `fuse`, and an attention of `ATTENTIONS`.
  """

  level_widths: Sequence[int] = (256, 128, 128, 128, 128)
  num_timesteps: int = 3
  attention: str = "triple"
  multi_scale_reach: int = 2
  output: str = "tanh"
  dtype: Any = jnp.float32
  rows: str | None = None

  def setup(self):
    widths = tuple(self.level_widths)
    attention = parts.find("fusion_head.attention", self.attention, ATTENTIONS)
    own = {} if self.rows is None else {"rows": self.rows}  # a user's own knows of no rows
    conv = functools.partial(layers.conv, dtype=self.dtype, rows=self.rows)
    for level in self._levels:
      if self.num_timesteps > 1:
        merging = TimestepFusion(widths[level], self.num_timesteps, self.dtype, self.rows)
        setattr(self, f"timestep_fusion_{level}", merging)
      setattr(self, f"attention_{level}", attention(dtype=self.dtype, **own))
      if self.multi_scale_reach >= 2 and level >= 2:
        setattr(self, f"skip_{level}", ConvBlock(widths[level], self.dtype, self.rows))
      next_width = widths[min(level + 1, len(widths) - 1)]
      setattr(self, f"block_{level}", ConvBlock(next_width, self.dtype, self.rows))
    self.out1 = conv(widths[-1] // 2, 3)
    if self.output == "tanh":
      self.out2 = conv(1, 3)
    else:
      self.out2 = conv(2, 3, kernel_init=nn.initializers.zeros_init())

  @property
  def _levels(self) -> range:
    """The levels that take part in the image."""
    count = len(self.level_widths)
    return range(0 if self.multi_scale_reach else count - 1, count)

  def __call__(
    self,
    features_a: Sequence[Array],
    features_b: Sequence[Array],
    sources: tuple[Array, Array] | None = None,
  ) -> Array:
    """Fuses the features of two sources.

    Args:
      features_a: a [T, B, h, w, c] array a level, coarse to fine, timesteps ascending; of the MRI.
      features_b: the same of the other modality.
      sources: the images themselves, [B, H, W, 1] in [-1, 1]; only "blend" uses them.

    Returns:
      The fused image [B, H, W, 1], float32 in [-1, 1].

    Raises:
      ValueError: the features' levels or timesteps are not the configured ones.
    """
    return self.fuse(self.total(features_a), self.total(features_b), sources)

  def total(self, features: Sequence[Array]) -> tuple[Array, ...]:
    """The sums of `share` over the timesteps of one source's features, see `__call__`."""
    self.check([f.shape[0] for f in features], features)
    shares = [self.share([f[t] for f in features], t) for t in range(self.num_timesteps)]
    return tuple(sum(level[1:], start=level[0]) for level in zip(*shares, strict=True))

  def check(self, timesteps: Sequence[int], features: Sequence[Array]) -> None:
    """Refuses, by a ValueError, other levels [..., c] or numbers of timesteps than configured."""
    widths = tuple(self.level_widths)
    got = tuple((t, f.shape[-1]) for t, f in zip(timesteps, features, strict=True))
    if got != tuple((self.num_timesteps, width) for width in widths):
      raise ValueError(
        f"the head is built for {self.num_timesteps} timesteps of widths {widths}, "
        f"got (timesteps, width) {got}"
      )

  def can_divide(self, sizes: Sequence[tuple[int, int]], devices: int) -> bool:
    """Whether levels of such heights and widths can be divided by `rows` over so many devices."""
    # The spatial attention reflects three rows and columns.
    fit = all(h % devices == 0 and h // devices > 3 and w > 3 for h, w in sizes)
    return fit and self.attention in ATTENTIONS

  def share(self, features: Sequence[Array], timestep: Array | int) -> tuple[Array, ...]:
    """What one timestep's features of one source add to the sums that `fuse` takes.

    Features and shares are a [B, h, w, c] array a level, coarse to fine: the shares of the levels
    that take part in the image, float32, or with one timestep the features themselves.
    """
    used = [(level, features[level]) for level in self._levels]
    if self.num_timesteps == 1:
      return tuple(f.astype(self.dtype) for _, f in used)
    return tuple(getattr(self, f"timestep_fusion_{level}").share(f, timestep) for level, f in used)

  def fuse(
    self,
    totals_a: Sequence[Array],
    totals_b: Sequence[Array],
    sources: tuple[Array, Array] | None = None,
  ) -> Array:
    """Fuses two sources, given the sums of `share` over the timesteps; returns [B, H, W, 1]."""
    outputs: list[Array] = []
    for level, a, b in zip(self._levels, totals_a, totals_b, strict=True):
      if self.num_timesteps > 1:
        merging = getattr(self, f"timestep_fusion_{level}")
        a, b = merging.merge(a), merging.merge(b)
      fused = getattr(self, f"attention_{level}")(a, b)
      if self.multi_scale_reach >= 1 and level >= 1:
        coarser = outputs[-1]
        if self.multi_scale_reach >= 2 and level >= 2:
          skip = getattr(self, f"skip_{level}")
          coarser += skip(layers.upsample_bilinear(outputs[-2], self.rows))
        fused += layers.upsample_bilinear(coarser, self.rows)  # one for both: it is linear
      outputs.append(getattr(self, f"block_{level}")(fused))
    h = nn.leaky_relu(self.out1(outputs[-1]), 0.2)
    h = self.out2(h).astype(jnp.float32)
    if self.output == "tanh":
      return jnp.tanh(h)
    if sources is None:
      raise ValueError("a head that blends the sources needs them")
    a, b = sources
    gate, rest = jnp.split(h, 2, axis=-1)
    weight = nn.sigmoid(gate)
    return jnp.clip(weight * a + (1 - weight) * b + rest, -1, 1)
