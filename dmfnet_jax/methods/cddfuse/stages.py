"""What the two stages of CDDFuse train, and how they are judged."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax.methods.cddfuse import objectives
from dmfnet_jax.methods.cddfuse.networks import build
from dmfnet_jax.methods.method import (
  Array,
  Config,
  Context,
  Images,
  Loss,
  Params,
  Stage,
  Update,
)

PARTS = ("encoder", "decoder", "base_fusion", "detail_fusion")


def encode(networks: Any, params: Params, image: Array) -> dict[str, Array]:
  """The encoder's features of a picture in [0, 1]."""
  return networks["encoder"].apply({"params": params["encoder"]}, image)


def decode(
  networks: Any, params: Params, base: Array, detail: Array, skip: Array | None
) -> tuple[Array, Array]:
  """The decoder's picture in [0, 1], and its reduced features."""
  return networks["decoder"].apply({"params": params["decoder"]}, base, detail, skip)


def merge(
  networks: Any, params: Params, first: dict[str, Array], second: dict[str, Array]
) -> tuple[Array, Array]:
  """Base and detail features of two pictures, each kind added up and sent through its layer."""
  return tuple(
    networks[f"{kind}_fusion"].apply(
      {"params": params[f"{kind}_fusion"]}, first[kind] + second[kind]
    )
    for kind in ("base", "detail")
  )


def choose_skip(choice: str, visible: Array, infrared: Array) -> Array | None:
  """The picture that the decoder adds before its sigmoid."""
  return {"none": None, "visible": visible, "sum": visible + infrared}[choice]


def order(config: Config, images: Images) -> tuple[Array, Array]:
  """The sources in [0, 1] as the paper has them: the visible picture (or MRI), the infrared one."""
  a, b = ((images[name] + 1) / 2 for name in ("a", "b"))
  return (b, a) if config["fusion"]["visible"] == "b" else (a, b)


def decompose(visible: dict[str, Array], infrared: dict[str, Array], context: Context) -> Array:
  """The decomposition loss, [B]: in training of the batch's mean correlations, as published."""
  base, detail = (
    objectives.correlation(visible[kind].astype(jnp.float32), infrared[kind].astype(jnp.float32))
    for kind in ("base", "detail")
  )
  if not context.train:
    return objectives.decomposition(base, detail)
  means = [jnp.mean(base), jnp.mean(detail)]
  if context.axis is not None:
    means = jax.lax.pmean(means, context.axis)
  return jnp.broadcast_to(objectives.decomposition(*means), base.shape)


def reconstruction(config: Any) -> Stage:
  """Stage I: each source is rebuilt from its own base and detail features."""
  networks = build(config.network, config.compute_dtype, config.remat)
  weights = config.loss

  def rebuild(params: Params, image: Array) -> tuple[dict[str, Array], Array]:
    features = encode(networks, params, image)
    skip = None if config.fusion.skip == "none" else image
    return features, decode(networks, params, features["base"], features["detail"], skip)[0]

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    visible, infrared = order(config, batch)
    (of_visible, visible_again), (of_infrared, infrared_again) = (
      rebuild(params, image) for image in (visible, infrared)
    )
    terms = {}
    for name, image, again in (
      ("visible", visible, visible_again),
      ("infrared", infrared, infrared_again),
    ):
      terms[f"ssim_{name}"], terms[f"mse_{name}"] = objectives.reconstruction(image, again)
    terms["gradient"] = objectives.gradient_loss(visible, visible_again)
    terms["decomposition"] = decompose(of_visible, of_infrared, context)
    value = (
      weights.ssim * (terms["ssim_visible"] + terms["ssim_infrared"])
      + terms["mse_visible"]
      + terms["mse_infrared"]
      + weights.decomposition * terms["decomposition"]
      + weights.reconstruction_gradient * terms["gradient"]
    )
    return Loss(value, terms)

  def draw(params: Params, images: Images, keys: Array) -> dict[str, Array]:
    del keys
    columns: dict[str, Array] = {}
    for name in ("a", "b"):
      _, again = rebuild(params, (images[name] + 1) / 2)
      columns |= {name.upper(): images[name], f"{name.upper()} rebuilt": 2 * again - 1}
    return columns

  return Stage(
    init=functools.partial(init, config, PARTS[:2]),
    updates=(Update(loss, PARTS[:2]),),
    draw=draw,
  )


def fusion(config: Any) -> Stage:
  """Stage II: the fusion layers learn; encoder and decoder go on learning."""
  networks = build(config.network, config.compute_dtype, config.remat)
  weights = config.loss

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    visible, infrared = order(config, batch)
    features = [encode(networks, params, image) for image in (visible, infrared)]
    skip = choose_skip(config.fusion.skip, visible, infrared)
    fused, _ = decode(networks, params, *merge(networks, params, *features), skip)
    intensity, gradient = objectives.fusion(fused, visible, infrared)
    decomposition = decompose(features[0], features[1], context)
    value = intensity + weights.fusion_gradient * gradient + weights.decomposition * decomposition
    terms = {"intensity": intensity, "gradient": gradient, "decomposition": decomposition}
    return Loss(value, terms)

  return Stage(
    init=functools.partial(init, config, PARTS),
    updates=(Update(loss, PARTS),),
    continued=PARTS[:2],
  )


def init(config: Any, parts: tuple[str, ...], key: Array) -> Params:
  """Initialises networks as PyTorch does by default; no forward pass is compiled."""
  networks = build(config.network, config.compute_dtype)
  image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
  features = jax.ShapeDtypeStruct((1, 8, 8, config.network.width), jnp.float32)
  inputs = {"encoder": (image,), "decoder": (features, features, image)}
  return {
    name: networks[name].lazy_init(jax.random.fold_in(key, i), *inputs.get(name, (features,)))[
      "params"
    ]
    for i, name in enumerate(parts)
  }
