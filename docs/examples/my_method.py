"""A method of one small network: it says of each pixel how much of A and of B is taken."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmfnet_jax import losses
from dmfnet_jax.methods.method import Loss, Method, Stage, Update
from dmfnet_jax.nn import layers


class Weigher(nn.Module):
  """Looks at both pictures and mixes them with one weight in (0, 1) per pixel."""

  width: int = 16
  depth: int = 3
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, a, b):
    """Maps A and B, [B, H, W, 1] in [-1, 1], to the fused picture of the same shape."""
    x = jnp.concatenate([a, b], axis=-1).astype(self.dtype)
    for i in range(self.depth):
      x = nn.relu(layers.conv(self.width, 3, dtype=self.dtype, name=f"conv{i}")(x))
    weight = layers.conv(1, 3, dtype=self.dtype, name="weight")(x)
    weight = nn.sigmoid(weight.astype(jnp.float32))
    return weight * a + (1 - weight) * b


def defaults(stage):
  """The method's sections of a config."""
  return {
    "weigher": {
      "width": 16,  # channels of the hidden layers
      "depth": 3,  # how many there are
    },
    "loss": {"gradient_weight": 1.0},  # of the edges, beside intensity and structure
  }


def fusion(config):
  """Stage 1, the only one: trains the network from scratch."""
  network = Weigher(**config.weigher, dtype=config.compute_dtype)
  picture = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)

  def loss(params, batch, context):
    fused = network.apply({"params": params["weigher"]}, batch["a"], batch["b"])
    return Loss(*losses.fusion_loss(fused, batch["a"], batch["b"], **config.loss))

  return Stage(
    init=lambda key: {"weigher": network.lazy_init(key, picture, picture)["params"]},
    updates=(Update(loss, ("weigher",)),),
  )


def fuse(config, compute):
  """Fuses with the trained network; nothing is drawn from the keys."""
  network = Weigher(**config["weigher"], dtype=compute.dtype)

  def apply(params, images, keys):
    fused = network.apply({"params": params["weigher"]}, images["a"], images["b"])
    return {"fused": fused}

  return apply


METHOD = Method(
  defaults=defaults,
  model=("weigher", "loss"),
  stages={1: fusion},
  networks=("weigher",),
  fuse=fuse,
)
