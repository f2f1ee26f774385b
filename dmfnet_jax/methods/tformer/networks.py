"""The networks of TFormer (arXiv 2211.11393, as its published program computes them).

Pictures are NHWC in [0, 1], blue, green, red. One backbone, `nn.swin`, sees both of them. What its
features are fused to runs beside it: the backbone never sees that.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax.nn import layers, swin
from dmfnet_jax.nn.batch_norm import BatchNorm
from dmfnet_jax.nn.initializers import torch_bias, torch_kernel
from dmfnet_jax.nn.swin import attend, layer_norm

Array = jax.Array

BACKBONE, CLASSIFIER = "backbone", "classifier"
STAGES = 4
# Layers of the fusion block behind each stage.
_FUSION_LAYERS = (1, 1, 2, 1)
_POST_HEADS = 8
_META_DROPOUT = 0.3


def dense(x: Array, features: int, *, dtype: Any, name: str, use_bias: bool = True) -> Array:
  """A dense layer with PyTorch's default initialisation."""
  layer = nn.Dense(
    features,
    use_bias=use_bias,
    kernel_init=torch_kernel,
    bias_init=torch_bias(x.shape[-1]),
    dtype=dtype,
    precision=layers.matmul_precision(dtype),
    name=name,
  )
  return layer(x)


class CrossBlock(nn.Module):
  """One picture's tokens ask both pictures', window by window.

  Attributes:
    heads: of the attention.
    window: its side; windows are never shifted.
    dtype: compute dtype.
  """

  heads: int
  window: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, y: Array) -> Array:
    """Maps [B, H, W, C] each to what becomes of the first."""
    height, width, channels = x.shape[1:]
    norm = layer_norm(self.dtype, "norm1")
    own, other = (swin.to_windows(norm(tokens), self.window) for tokens in (x, y))
    query = swin.dense(channels, dtype=self.dtype, name="to_q")(own)
    both = jnp.concatenate([own, other], axis=-2)
    keys_and_values = swin.dense(2 * channels, dtype=self.dtype, name="to_kv")(both)
    bias = swin.PositionBias(self.window, self.heads, name="position")()
    # A place has the same bias in both pictures.
    bias = jnp.concatenate([bias, bias], axis=-1)
    keys, values = jnp.split(keys_and_values, 2, axis=-1)
    path = attend(query, keys, values, heads=self.heads, bias=bias)
    path = swin.dense(channels, dtype=self.dtype, name="proj")(path)
    x = x + swin.from_windows(path, self.window, height, width)
    path = layer_norm(self.dtype, "norm2")(x)
    return x + swin.Mlp(4 * channels, self.dtype, name="mlp")(path)


class FusionBlock(nn.Module):
  """Hierarchical fusion: either picture asks both, the second one after the first has.

  Attributes:
    depth: layers.
    heads: of their attentions.
    window: their side.
    dtype: compute dtype.
    remat: recompute the blocks' activations in the backward pass.
  """

  depth: int
  heads: int
  window: int
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array, y: Array) -> tuple[Array, Array]:
    """Maps [B, H, W, C] each to the same shapes."""
    block = nn.remat(CrossBlock) if self.remat else CrossBlock
    mode = (self.heads, self.window, self.dtype)
    for i in range(self.depth):
      # The blocks have shortcuts of their own: the input counts twice.
      x = block(*mode, name=f"first{i}")(x, y) + x
      y = block(*mode, name=f"second{i}")(y, x) + y
    return x, y


class MetaBranch(nn.Module):
  """What is known of the patient, as features.

  Attributes:
    width: of both layers.
    dropout: rate behind them.
    dtype: compute dtype.
  """

  width: int
  dropout: float = _META_DROPOUT
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Array, keys: Array | None = None, train: bool = False, axis: str | None = None
  ) -> Array:
    """Maps [B, facts] to [B, width]; see `Classifier` for the others."""
    for i in range(2):
      x = dense(x, self.width, dtype=self.dtype, name=f"dense{i}")
      x = nn.relu(BatchNorm(dtype=self.dtype, name=f"norm{i}")(x, train, axis))
    return x if keys is None else layers.dropout(x, self.dropout, keys)


class PostFusion(nn.Module):
  """The facts ask themselves and the pictures; each is a single token.

  Attributes:
    dtype: compute dtype.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, facts: Array, pictures: Array) -> Array:
    """Maps [B, C] and [B, 2 C] to [B, C]."""
    channels = pictures.shape[-1]
    a = dense(facts, channels, dtype=self.dtype, name="project_in")
    a = layer_norm(self.dtype, "x_norm1")(a)
    b = layer_norm(self.dtype, "c_norm1")(pictures)
    both = jnp.stack([a, b], axis=1)
    query = dense(a[:, None], channels, use_bias=False, dtype=self.dtype, name="to_q")
    keys_and_values = dense(both, 2 * channels, use_bias=False, dtype=self.dtype, name="to_kv")
    keys, values = jnp.split(keys_and_values, 2, axis=-1)
    found = attend(query, keys, values, heads=_POST_HEADS)[:, 0]
    # What goes on is normed, and the shortcut lies before the projection, too.
    a = a + dense(found + a, channels, dtype=self.dtype, name="proj")
    hidden = dense(layer_norm(self.dtype, "x_norm2")(a), channels, dtype=self.dtype, name="fc1")
    hidden = nn.gelu(hidden, approximate=False)
    a = a + dense(hidden, channels, dtype=self.dtype, name="fc2")
    return dense(a, facts.shape[-1], dtype=self.dtype, name="project_out") + facts


class Classifier(nn.Module):
  """Fuses both pictures' features with each other and with the facts, and judges.

  Attributes:
    classes: each head's name and how many classes it has.
    heads: of the fusion blocks' attentions, by stage.
    window: side of their windows.
    features: of each picture, and of the facts, before they are joined.
    dtype: compute dtype.
    remat: recompute the blocks' activations in the backward pass.
  """

  classes: tuple[tuple[str, int], ...]
  heads: tuple[int, ...] = (6, 6, 6, 12)
  window: int = 7
  features: int = 128
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    clinical: Sequence[Array],
    dermoscopic: Sequence[Array],
    facts: Array,
    keys: Array | None = None,
    train: bool = False,
    axis: str | None = None,
  ) -> dict[str, Array]:
    """Judges.

    Args:
      clinical: the backbone's features of the clinical pictures, [B, h, w, C] of each stage.
      dermoscopic: those of the dermoscopic ones.
      facts: [B, facts].
      keys: [B] for dropout; None drops nothing.
      train: by the batch's statistics, which enter the running ones; else by those.
      axis: over which devices share a batch in training.

    Returns:
      Logits [B, classes], float32, by the heads' names.
    """

    def fuse(stage: int, x: Array, y: Array) -> tuple[Array, Array]:
      mode = (_FUSION_LAYERS[stage], self.heads[stage], self.window, self.dtype, self.remat)
      return FusionBlock(*mode, name=f"fuse{stage}")(x, y)

    def halve(stage: int, side: str, x: Array) -> Array:
      return swin.Merging(2 * x.shape[-1], self.dtype, name=f"merge{stage}_{side}")(x)

    c, d = fuse(0, clinical[0], dermoscopic[0])
    c, d = halve(0, "clinical", c), halve(0, "dermoscopic", d)
    c, d = fuse(1, clinical[1] + c, dermoscopic[1] + d)
    c, d = halve(1, "clinical", c), halve(1, "dermoscopic", d)
    # From here on the dermoscopic picture comes first.
    d, c = fuse(2, dermoscopic[2] + d, clinical[2] + c)
    d, c = fuse(3, dermoscopic[3] + d, clinical[3] + c)
    c, d = (
      nn.relu(dense(jnp.mean(x, axis=(1, 2)), self.features, dtype=self.dtype, name=f"pooled_{n}"))
      for n, x in (("clinical", c), ("dermoscopic", d))
    )
    known = MetaBranch(self.features, dtype=self.dtype, name="meta")(facts, keys, train, axis)
    joined = PostFusion(self.dtype, name="post")(known, jnp.concatenate([c, d], axis=-1))
    # The clinical picture is seen through the post-fusion only.
    z = jnp.concatenate([d, joined], axis=-1)
    return {
      name: dense(z, count, dtype=self.dtype, name=name).astype(jnp.float32)
      for name, count in self.classes
    }
