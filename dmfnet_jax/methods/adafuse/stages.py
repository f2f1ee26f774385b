"""What AdaFuse trains, and how it is judged: one stage, everything together."""

from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax import losses
from dmfnet_jax.methods.adafuse import objectives
from dmfnet_jax.methods.adafuse.networks import build
from dmfnet_jax.methods.method import (
  STATS,
  Array,
  Context,
  Images,
  Loss,
  Params,
  Stage,
  Update,
  variables,
)

NETWORK = "fuser"


def order(images: Images) -> tuple[Array, Array]:
  """The sources in [0, 1] as the program has them: CT, PET or SPECT first, then the MRI."""
  return (images["b"] + 1) / 2, (images["a"] + 1) / 2


def scale(image: Array, scaling: str, context: Context) -> Array:
  """Scales pictures [B, H, W, 1] to minimum 0 and maximum 1: none, each, or the batch as one.

  In evaluation each by itself, also where it is the batch in training.
  """
  if scaling == "none":
    return image
  low, high = (f(image, axis=(1, 2, 3), keepdims=True) for f in (jnp.min, jnp.max))
  if scaling == "batch" and context.train:
    low, high = jnp.min(low), jnp.max(high)
    if context.axis is not None:
      low, high = jax.lax.pmin(low, context.axis), jax.lax.pmax(high, context.axis)
    low, high = (x.reshape(1, 1, 1, 1) for x in (low, high))
  return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1.0), image)


def fusion_loss(
  fused: Array, a: Array, b: Array, weights: Any, context: Context
) -> tuple[Array, dict[str, Array]]:
  """The whole loss and its terms, [B]; the norms are of the whole batch in training, as published.

  Args:
    fused: [B, H, W, 1].
    a: [B, H, W, 1] in [0, 1].
    b: [B, H, W, 1] in [0, 1].
    weights: the config's `loss` section.
    context: of the step.
  """

  def total(squares: Array) -> Array:
    if not context.train:
      return squares
    of_batch = jnp.sum(squares)
    if context.axis is not None:
      of_batch = jax.lax.psum(of_batch, context.axis)
    return jnp.broadcast_to(of_batch, squares.shape)

  terms = {
    "content": objectives.content(fused, a, b, total),
    "structure": jnp.log1p(objectives.structure(fused, a, b, total)),
  }
  # In the published program SSIM adds to the value, and nothing to the gradient.
  judged = fused if weights.ssim_gradient else jax.lax.stop_gradient(fused)
  for name, source in (("a", a), ("b", b)):
    terms[f"ssim_{name}"] = jnp.mean(losses.ssim_map(judged, source), axis=(1, 2, 3))
  value = (
    weights.content * terms["content"]
    + weights.structure * terms["structure"]
    + weights.ssim * (2 - terms["ssim_a"] - terms["ssim_b"])
  )
  return value, terms


def fusion(config: Any) -> Stage:
  """The only stage: encoders, fusion and decoder from scratch."""
  network = build(config.network, config.compute_dtype, config.remat)
  picture = jax.ShapeDtypeStruct((1, *2 * (side(config.network),), 1), jnp.float32)

  def init(key: Array) -> Params:
    made = network.lazy_init(key, picture, picture)
    return {NETWORK: made["params"], STATS: {NETWORK: made["batch_stats"]}}

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    image1, image2 = (scale(x, config.loss.scaling, context) for x in order(batch))
    outputs, changed = network.apply(
      variables(params, NETWORK),
      image1,
      image2,
      context.train,
      context.axis,
      mutable=["batch_stats"],
    )
    value, terms = fusion_loss(outputs["fused"], image2, image1, config.loss, context)
    return Loss(value, terms, {NETWORK: changed["batch_stats"]})

  return Stage(init=init, updates=(Update(loss, (NETWORK,)),))


def side(network: Any) -> int:
  """What the sides of pictures must be multiples of: a patch of the coarsest level."""
  return network["patch"] * 2 ** (len(network["widths"]) - 1)
