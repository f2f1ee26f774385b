"""CoCoNet's losses, as its published program computes them.

Pictures are [B, H, W, 1] float32 in [-1, 1]. `first` is the visible picture, `second` the infrared
one.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from dmfnet_jax import losses

Array = jax.Array
Mean = Callable[[Array], Array]

_PER_IMAGE = (1, 2, 3)
# Of VGG's levels, fine to coarse.
_LEVEL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)


def histograms(image: Array) -> Array:
  """How many pixels have each of 256 grey levels, float32 [B, 256]."""
  found = grey_levels(image).astype(jnp.int32).reshape(len(image), -1)
  return jax.vmap(lambda x: jnp.zeros(256, jnp.float32).at[x].add(1.0))(found)


def grey_levels(image: Array) -> Array:
  """0..255 in float32, rounded down."""
  # Every level of an 8-bit picture is met from above, in spite of the rounding.
  return jnp.clip(jnp.floor(127.5 * image + (127.5 + 1e-4)), 0, 255)


def entropy(image: Array, cumulative: bool = False) -> Array:
  """Entropy of the grey levels, bits, [B].

  Args:
    image: the pictures.
    cumulative: as the published program has it, which does not clear its histogram: of all
      pictures of the batch up to this one, and its constant once for each of them.
  """
  counts = histograms(image)
  if cumulative:
    counts = jnp.cumsum(counts, axis=0)
  share = counts / jnp.sum(counts, axis=-1, keepdims=True)
  bits = -jnp.sum(
    jnp.where(share > 0, share * jnp.log2(jnp.where(share > 0, share, 1)), 0), axis=-1
  )
  return bits + 1e-4 * (len(image) if cumulative else 1)


def edges(image: Array) -> Array:
  """Mean |Sobel_x| + |Sobel_y|, [B]."""
  return jnp.mean(losses.sobel_gradient(image), axis=_PER_IMAGE) + 1e-5


def weigh(first: Array, second: Array, sharpness: float) -> tuple[Array, Array]:
  """The weights of two sources, [B] each: the softmax of their shares over a constant."""
  total = sharpness * (first + second)
  weights = jax.nn.softmax(jnp.stack([first / total, second / total]), axis=0)
  return weights[0], weights[1]


def ssim(first: Array, fused: Array) -> Array:
  """Mean SSIM over zero-padded borders, [B]."""
  return jnp.mean(losses.ssim_map(first / 2 + 0.5, fused / 2 + 0.5), axis=_PER_IMAGE)


def main_loss(
  fused: Array,
  first: Array,
  second: Array,
  *,
  ssim_weight: float = 20.0,
  ssim_sharpness: float = 0.5,
  mse_sharpness: float = 0.75,
  cumulative: bool = False,
  mean: Mean | None = None,
) -> tuple[Array, dict[str, Array]]:
  """SSIM weighed by the sources' edges, and squared error weighed by their entropies.

  Args:
    fused: the result.
    first: the visible picture.
    second: the infrared picture.
    ssim_weight: of the first term.
    ssim_sharpness: the smaller, the more the source of stronger edges counts.
    mse_sharpness: the same of the source of higher entropy.
    cumulative: see `entropy`.
    mean: from [B] to the mean of all the batch, whose SSIM is one number in the published program;
      None for each picture's own.

  Returns:
    The loss [B] and its unweighted terms [B].
  """
  losses.check_same_shape(fused, first, second)
  ssims = [ssim(source, fused) for source in (first, second)]
  if mean is not None:
    ssims = [mean(value) for value in ssims]
  by_edges = weigh(edges(first), edges(second), ssim_sharpness)
  of_ssim = by_edges[0] * (1 - ssims[0]) + by_edges[1] * (1 - ssims[1])
  by_entropy = weigh(entropy(first, cumulative), entropy(second, cumulative), mse_sharpness)
  errors = [jnp.mean((fused - source) ** 2, axis=_PER_IMAGE) for source in (first, second)]
  of_mse = by_entropy[0] * errors[0] + by_entropy[1] * errors[1]
  return ssim_weight * of_ssim + of_mse, {"ssim": of_ssim, "mse": of_mse}


def contrast(
  anchor: Sequence[Array],
  positive: Sequence[Array],
  negatives: Sequence[Sequence[Array]],
  mean: Mean | None = None,
) -> Array:
  """How much nearer the anchor is to the positive than to the negatives, over VGG's levels.

  Args:
    anchor: its features, fine to coarse, [B, h, w, C] each.
    positive: the same of what it should be like.
    negatives: of those that it should be unlike.
    mean: as in `main_loss`: the published program divides the batch's mean distances.

  Returns:
    [B] without `mean`, else [].
  """

  def distance(x: Array, y: Array) -> Array:
    apart = jnp.mean(losses.absolute(x - y).astype(jnp.float32), axis=_PER_IMAGE)
    return apart if mean is None else mean(apart)

  total = jnp.zeros(())
  for level, weight in enumerate(_LEVEL_WEIGHTS):
    near = distance(anchor[level], positive[level])
    far = sum((distance(anchor[level], n[level]) for n in negatives), jnp.zeros(()))
    # An empty mask, or a full one, leaves nothing to compare; the published program divides by it.
    total = total + weight * jnp.where(far > 0, near / jnp.where(far > 0, far, 1), 0)
  return total


def salient(image: Array) -> Array:
  """What of a picture is bright, by Otsu's threshold (1979): 1.0 or 0.0, [B, H, W, 1].

  The published masks are not; a flat picture has nothing that is salient.
  """
  counts = histograms(image)
  levels = jnp.arange(256, dtype=jnp.float32)[None]
  below = jnp.cumsum(counts, axis=-1)
  sums = jnp.cumsum(counts * levels, axis=-1)
  above, rest = below[:, -1:] - below, sums[:, -1:] - sums
  means = sums / jnp.maximum(below, 1), rest / jnp.maximum(above, 1)
  between = below * above * (means[0] - means[1]) ** 2
  lowest = jnp.where(jnp.max(between, axis=-1) > 0, jnp.argmax(between, axis=-1) + 1, 256)
  threshold = lowest.reshape(-1, 1, 1, 1)
  return (grey_levels(image) >= threshold.astype(jnp.float32)).astype(jnp.float32)
