"""What the one stage of DFVO trains, and how it is judged."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax.methods.dfvo import dark, objectives
from dmfnet_jax.methods.dfvo.networks import STRIDE, build
from dmfnet_jax.methods.method import (
  STATS,
  Array,
  Context,
  Field,
  Images,
  Loss,
  Params,
  Stage,
  Update,
  variables,
)

NETWORKS = ("fuser", "illumination", "enhancer", "infrared")


def run(
  width: int,
  params: Params,
  visible: Array,
  infrared: Array,
  *,
  dtype: Any,
  train: bool,
  axis: str | None = None,
  remat: bool = False,
) -> tuple[dict[str, dict[str, Array]], dict[str, Any]]:
  """All networks on two pictures [B, H, W, 1] in [0, 1].

  Returns:
    Each network's features with its "picture" in (0, 1), and its running statistics, new with
    `train`.
  """
  networks = build(width, dtype, train, axis)
  found, stats = {}, {}

  def apply(name: str, *inputs: Array) -> None:
    def forward(own: dict[str, Any], *inputs: Array) -> Any:
      return networks[name].apply(own, *inputs, mutable=["batch_stats"])

    forward = jax.checkpoint(forward) if remat else forward
    found[name], changed = forward(variables(params, name), *inputs)
    stats[name] = changed["batch_stats"]

  apply("fuser", visible, infrared)
  apply("illumination", visible)
  apply("enhancer", found["fuser"]["visible"])
  apply("infrared", found["fuser"]["infrared"])
  return found, stats


def terms_of(
  pictures: dict[str, Array],
  visible: Array,
  infrared: Array,
  chroma: Array,
  prior: Array,
  mean: objectives.Mean | None = None,
) -> dict[str, Array]:
  """The unweighted terms of the loss, [B] each.

  Args:
    pictures: what the networks made, by network.
    visible: the source.
    infrared: the source.
    chroma: the visible picture's Cr and Cb, [B, H, W, 2].
    prior: `dark.dark_prior` of it.
    mean: see `objectives.intensity_loss`.
  """
  light = pictures["illumination"]
  terms = {
    "infrared": objectives.l1(pictures["infrared"], infrared),
    "retinex": objectives.l1(pictures["enhancer"] * light, visible),
    "mutual_gradient": objectives.mutual_gradient(light),
    "smoothness": objectives.smoothness(light, visible),
  }
  # The fusion learns from what the other networks make, and does not teach them.
  enhanced, rebuilt = (jax.lax.stop_gradient(pictures[name]) for name in ("enhancer", "infrared"))
  bright = objectives.brightened(enhanced, rebuilt, prior)
  fused = pictures["fuser"]
  return terms | {
    "edges": objectives.edge_loss(fused, bright, rebuilt),
    "intensity": objectives.intensity_loss(fused, enhanced, bright, rebuilt, mean),
    "colour": objectives.colour_loss(fused, enhanced, chroma),
  }


def total_of(weights: Any, terms: dict[str, Array], epoch: Array) -> Array:
  """The loss [B] in an epoch, counted from 0: there the fusion is not trained at all."""
  separate = ("infrared", "retinex", "mutual_gradient", "smoothness")
  of_fusion = sum(weights[name] * terms[name] for name in terms if name not in separate)
  growth = weights["fusion_growth"] * epoch
  return sum(weights[name] * terms[name] for name in separate) + growth * of_fusion


def epoch_of(config: Any, context: Context) -> Array:
  """The epoch, float32; in evaluation the last one, so that losses can be compared."""
  if not context.train:
    return jnp.float32(config.loss.epochs - 1)
  # The exact step: a share of the run in float32 is not.
  step = jnp.round(context.progress * config.num_train_steps).astype(jnp.int32)
  return (step // -(-config.num_train_steps // config.loss.epochs)).astype(jnp.float32)


def training(config: Any) -> Stage:
  """The one stage: illumination, enhancement, the infrared picture, and the fusion of the two."""

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    ycrcb = dark.rgb_to_ycrcb(dark.to_bytes(batch["b"]))
    scaled = ycrcb.astype(jnp.float32) / 255
    visible, chroma, infrared = scaled[..., :1], scaled[..., 1:], batch["a"] / 2 + 0.5
    found, stats = run(
      config.network.width,
      params,
      visible,
      infrared,
      dtype=config.compute_dtype,
      train=context.train,
      axis=context.axis,
      remat=config.remat,
    )
    pictures = {name: features["picture"] for name, features in found.items()}
    mean = functools.partial(_mean, context.axis) if context.train else None
    terms = terms_of(pictures, visible, infrared, chroma, dark.dark_prior(ycrcb), mean)
    value = total_of(config.loss, terms, epoch_of(config, context))
    return Loss(value, terms, stats if context.train else {})

  return Stage(
    init=functools.partial(init, config.network.width, config.compute_dtype),
    updates=(Update(loss, NETWORKS),),
    targets=(Field("b", channels=3),),
  )


def _mean(axis: str | None, x: Array) -> Array:
  mean = jnp.mean(x)
  return mean if axis is None else jax.lax.pmean(mean, axis)


def init(width: int, dtype: Any, key: Array, names: Sequence[str] = NETWORKS) -> Params:
  """Initialises networks as PyTorch does by default; no forward pass is compiled."""
  picture = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 1), jnp.float32)
  features = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 8 * width), jnp.float32)
  inputs = {"fuser": (picture, picture), "illumination": (picture,)}
  params: Params = {STATS: {}}
  for i, name in enumerate(names):
    network = build(width, dtype)[name]
    made = network.lazy_init(jax.random.fold_in(key, i), *inputs.get(name, (features,)))
    params[name], params[STATS][name] = made["params"], made["batch_stats"]
  return params
