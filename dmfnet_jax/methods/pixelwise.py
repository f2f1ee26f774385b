"""Rules that fuse pixel by pixel, with no network and no weights: what others are compared with.

They count in whole grey levels 0..255, as on 8-bit pictures, so that a half goes to the even level
however the arithmetic rounds.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from dmfnet_jax.methods.method import Array, Compute, Config, Field, Images, Method, Params

Rule = Callable[[Array, Array], Array]  # of the levels of A and B [B, H, W, C]


def method(rule: Rule, *, channels: int = 1, in_tiles: str = "same") -> Method:
  """The method of a rule.

  Args:
    rule: the levels of A [B, H, W, 1] and of B [B, H, W, channels] to those of the result.
    channels: 1 where B's luma is fused and its colour kept; 3 where B comes, and the result goes,
      in colour.
    in_tiles: see `Method`.
  """

  def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
    del config, compute  # nothing to choose

    def apply(params: Params, images: Images, keys: Array) -> Images:
      del params, keys
      fused = jnp.round(rule(_levels(images["a"]), _levels(images["b"])))
      return {"fused": fused / 127.5 - 1}

    return apply

  return Method(
    defaults=_defaults,
    model=(),
    networks=(),
    sources=(Field("a"), Field("b", channels, gives_colour=True)),
    outputs=(Field("fused", channels),),
    fuse=fuse,
    in_tiles=in_tiles,
  )


def _levels(x: Array) -> Array:
  return jnp.round((x + 1) * 127.5)


def _defaults(stage: int) -> dict[str, Any]:
  del stage
  return {}
