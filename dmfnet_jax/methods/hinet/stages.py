"""What Hi-Net trains: a generator against a discriminator, in one stage of two updates."""

from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax import losses
from dmfnet_jax.methods.hinet.networks import INPUTS, STRIDE, build
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
  join,
  variables,
)

TARGET = "target"
# What either update moves; the decoders of the inputs are for training only.
_FIRST, _SECOND = ("generator", "decoders"), ("discriminator",)


def training(config: Any) -> Stage:
  """The one stage: the generator's update, then the discriminator's on the same made slices."""

  def networks(context: Context) -> dict[str, Any]:
    return build(
      config.network.width, config.compute_dtype, context.train, context.axis, config.remat
    )

  def run(params: Params, name: str, context: Context, *inputs: Array) -> tuple[Any, Params]:
    """A network's result, and the parameters with the statistics that it leaves."""
    network = networks(context)[name]
    result, changed = network.apply(variables(params, name), *inputs, mutable=["batch_stats"])
    return result, join(params, {STATS: {name: changed["batch_stats"]}})

  def of_generator(params: Params, batch: Images, context: Context) -> Loss:
    inputs = [batch[name] for name in INPUTS]
    found, after = run(params, "generator", context, *inputs)
    rebuilt, after = run(after, "decoders", context, *(found[name] for name in INPUTS))
    verdict, after = run(after, "discriminator", context, found["made"])
    terms = {
      "adversarial": distance_to(1.0, verdict),
      "target": mean_absolute(found["made"] - batch[TARGET]),
    }
    for name, source, again in zip(INPUTS, inputs, rebuilt, strict=True):
      terms[f"rebuilt_{name}"] = mean_absolute(again - source)
    weights = config.loss
    value = weights.adversarial * terms["adversarial"] + weights.target * terms["target"]
    value += weights.rebuilt * (terms["rebuilt_a"] + terms["rebuilt_b"])
    return Loss(value, terms, after[STATS] if context.train else {})

  def of_discriminator(params: Params, batch: Images, context: Context) -> Loss:
    # The first update's pass once more; its statistics are kept there.
    found, _ = run(params, "generator", context, *(batch[name] for name in INPUTS))
    made = jax.lax.stop_gradient(found["made"])
    of_true, after = run(params, "discriminator", context, batch[TARGET])
    of_made, after = run(after, "discriminator", context, made)
    terms = {
      "discriminator_true": distance_to(1.0, of_true),
      "discriminator_made": distance_to(0.0, of_made),
    }
    value = (terms["discriminator_true"] + terms["discriminator_made"]) / 2
    return Loss(value, terms, after[STATS] if context.train else {})

  def draw(params: Params, images: Images, keys: Array) -> dict[str, Array]:
    del keys  # nothing is drawn
    generator = build(config.network.width, config.compute_dtype)["generator"]
    found = generator.apply(variables(params, "generator"), *(images[name] for name in INPUTS))
    columns = {config.contrasts[name]: images[name] for name in (*INPUTS, TARGET)}
    return columns | {"made": found["made"]}

  return Stage(
    init=lambda key: init(config, key),
    updates=(Update(of_generator, _FIRST), Update(of_discriminator, _SECOND)),
    continued=(*_FIRST, *_SECOND),
    targets=(Field(TARGET),),
    stored={name: config.contrasts[name] for name in (*INPUTS, TARGET)},
    draw=draw,
  )


def distance_to(wanted: float, verdict: Array) -> Array:
  """The least-squares adversarial loss [B] of the discriminator's map [B, h, w, 1]."""
  return jnp.mean(jnp.square(verdict - wanted), axis=(1, 2, 3))


def mean_absolute(difference: Array) -> Array:
  """The mean of a slice's absolute values, [B]."""
  return jnp.mean(losses.absolute(difference), axis=(1, 2, 3))


def init(config: Any, key: Array) -> Params:
  """Initialises all networks as published; no forward pass is compiled."""
  width = config["network"]["width"]
  whole = jax.ShapeDtypeStruct((1, 6 * STRIDE, 6 * STRIDE, 1), jnp.float32)
  coarse = jax.ShapeDtypeStruct((1, 6, 6, 4 * width), jnp.float32)
  inputs = {"generator": (whole, whole), "decoders": (coarse, coarse), "discriminator": (whole,)}
  found: list[Params] = []
  for i, (name, network) in enumerate(build(width, jnp.float32).items()):
    made = network.lazy_init(jax.random.fold_in(key, i), *inputs[name])
    found.append({name: made["params"], STATS: {name: made["batch_stats"]}})
  return join(*found)
