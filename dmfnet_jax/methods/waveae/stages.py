"""What the wavelet autoencoder trains: to fuse, or before that to rebuild its sources."""

from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax import losses
from dmfnet_jax.methods.method import (
  Array,
  Context,
  Images,
  Loss,
  Params,
  Stage,
  Update,
)
from dmfnet_jax.methods.waveae.networks import build
from dmfnet_jax.nn import wavelet

NETWORK = "network"
OBJECTIVES = ("fuse", "rebuild")

_ALL = (1, 2, 3)


def edge_loss(fused: Array, a: Array, b: Array) -> Array:
  """Mean distance of the fused detail bands from the sources' larger ones, [B].

  Of one Haar level; of two coefficients the larger by its absolute value counts, with its sign.
  """
  losses.check_same_shape(fused, a, b)
  ours, of_a, of_b = (wavelet.decompose(x)[..., 1:] for x in (fused, a, b))
  larger = jnp.where(losses.absolute(of_a) >= losses.absolute(of_b), of_a, of_b)
  return jnp.mean(losses.absolute(ours - larger), axis=_ALL)


def rebuilding_loss(image: Array, rebuilt: Array) -> tuple[Array, Array]:
  """Squared error and 1 - SSIM of a rebuilt picture in [-1, 1], [B] each."""
  squared = jnp.mean((image - rebuilt) ** 2, axis=_ALL)
  return squared, 1 - jnp.mean(losses.ssim_map(image, rebuilt, value_range=2.0), axis=_ALL)


def training(config: Any) -> Stage:
  """The only stage. With a `start` its network is trained on, from rebuilding to fusing."""
  network = build(config.network, config.compute_dtype, config.remat)
  picture = jax.ShapeDtypeStruct((1, *2 * (2**config.network.levels,), 1), jnp.float32)
  weights = config.loss.to_dict()
  objective, edges = weights.pop("objective"), weights.pop("edge_weight")

  def run(params: Params, a: Array, b: Array) -> Array:
    return network.apply({"params": params[NETWORK]}, a, b)

  def fusing(params: Params, batch: Images, context: Context) -> Loss:
    del context
    a, b = batch["a"], batch["b"]
    fused = run(params, a, b)
    value, terms = losses.fusion_loss(fused, a, b, **weights)
    if edges:
      terms["edges"] = edge_loss(fused, a, b)
      value += edges * terms["edges"]
    return Loss(value, terms)

  def rebuilding(params: Params, batch: Images, context: Context) -> Loss:
    """A picture fused with itself is to be itself, so that every parameter takes part."""
    del context
    terms, value = {}, jnp.zeros(len(batch["a"]), jnp.float32)
    for name in ("a", "b"):
      image = batch[name]
      terms[f"mse_{name}"], terms[f"dssim_{name}"] = rebuilding_loss(
        image, run(params, image, image)
      )
      value += terms[f"mse_{name}"] + terms[f"dssim_{name}"]
    return Loss(value, terms)

  return Stage(
    init=lambda key: {NETWORK: network.lazy_init(key, picture, picture)["params"]},
    updates=(Update({"fuse": fusing, "rebuild": rebuilding}[objective], (NETWORK,)),),
    continued=(NETWORK,),
  )
