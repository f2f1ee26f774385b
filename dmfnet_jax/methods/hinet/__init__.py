"""Hi-Net (IEEE TMI 2020, arXiv 2002.05000): makes a missing MR contrast of two others.

A generator encodes each contrast, fuses their features at every level and decodes the third one;
decoders make each input again of its features. A discriminator tells true slices from made ones.
Where paper and published program differ, the program counts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax.errors import UserError, check_choice
from dmfnet_jax.methods.hinet import patches, published, stages
from dmfnet_jax.methods.hinet.networks import INPUTS, STRIDE, build
from dmfnet_jax.methods.method import (
  MADE,
  Array,
  Compute,
  Config,
  Field,
  Images,
  Method,
  Params,
  variables,
)

STATISTICS = ("running", "picture")
# The discriminator's four halvings, and its last convolution, which is not padded.
_SMALLEST_CROP = 48
# Values per pixel that live at a time, over the width. From compiled programs; a test compares.
_WIDTHS_AT_ONCE = 10


def defaults(stage: int) -> dict[str, Any]:
  """The published values."""
  del stage
  return {
    "network": {
      "width": 32,  # channels at full size
    },
    # What the dataset calls the inputs and what is to be made of them. The paper's tasks: t1, t1ce
    # to t2; t1, t2 to flair; t1, flair to t2; t2, flair to t1.
    "contrasts": {"a": "t1", "b": "t2", "target": "flair"},
    "synthesis": {
      # Of the batch norms: "running", those that training has left; or "picture", each slice's own,
      # as the published program takes them with a batch of one slice.
      "statistics": "running",
      "patched": False,  # in four patches, each scaled to its own range, as published
    },
    "loss": {
      "adversarial": 1.0,  # how true the discriminator finds what is made
      "target": 100.0,  # mean |made - target|
      "rebuilt": 20.0,  # the same of each input that is made again
    },
  }


def check(config: Any) -> None:
  """Refuses what cannot be trained; see `Method.check`.

  Raises:
    UserError: one line that names the field.
  """
  if config.network.width < 1:
    raise UserError(f"config.network.width={config.network.width} must be at least 1")
  named = list(config.contrasts.values())
  if len(set(named)) < len(named):
    raise UserError(f"config.contrasts are {', '.join(named)}: name three that differ")
  check_choice("synthesis.statistics", config.synthesis.statistics, STATISTICS)
  if config.crop_size < _SMALLEST_CROP or config.crop_size % 16:
    raise UserError(
      f"config.crop_size={config.crop_size} must be a multiple of 16, and at least {_SMALLEST_CROP}"
    )


def fuse(config: Config, compute: Compute) -> Callable[[Params, Images, Array], Images]:
  """Makes the missing contrast; see `Method.fuse`."""
  synthesis = config["synthesis"]
  check_choice("synthesis.statistics", synthesis["statistics"], STATISTICS)
  own = synthesis["statistics"] == "picture"
  generator = build(config["network"]["width"], compute.dtype, train=own)["generator"]

  def run(params: Params, a: Array, b: Array) -> Array:
    own_variables = variables(params, "generator")
    if not own:
      return generator.apply(own_variables, a, b)["made"]
    # "batch_stats" are new ones then, of no use.
    return generator.apply(own_variables, a, b, mutable=["batch_stats"])[0]["made"]

  def of_slices(params: Params, *inputs: Array) -> Array:
    if not own:
      return run(params, *inputs)
    alone = [x[:, None] for x in inputs]
    return jax.vmap(lambda *each: run(params, *each))(*alone)[:, 0]

  def of_patches(params: Params, *inputs: Array) -> Array:
    """The four patches of each slice; all of them share its statistics."""
    whole = inputs[0].shape[1:3]
    window = patches.WINDOW if whole == patches.WHOLE else (slice(None), slice(None))
    cut = [patches.cut(x[:, *window]) for x in inputs]
    made = jax.vmap(lambda *each: run(params, *each))(*cut)
    height, width = inputs[0][0, *window, 0].shape
    joined = patches.join(made, height, width)
    return jnp.full_like(inputs[0], -1.0).at[:, *window].set(joined)

  def apply(params: Params, images: Images, keys: Array) -> Images:
    del keys  # nothing is drawn
    make = of_patches if synthesis["patched"] else of_slices
    return {MADE: make(params, *(images[name] for name in INPUTS))}

  return apply


def memory(
  config: Config, size: tuple[int, ...], pairs: int, parts: int, bytes_per_value: int
) -> int:
  """About how much memory the activations take at their peak; see `Method.memory`."""
  del parts
  return pairs * size[0] * size[1] * config["network"]["width"] * bytes_per_value * _WIDTHS_AT_ONCE


METHOD = Method(
  defaults=defaults,
  model=("network", "contrasts", "synthesis", "loss"),
  check=check,
  stages={1: stages.training},
  networks=("generator",),
  sources=tuple(map(Field, INPUTS)),
  outputs=(Field(MADE),),
  fuse=fuse,
  exact_size=True,
  stride=lambda config: 1 if config["synthesis"]["patched"] else STRIDE,
  memory=memory,
  from_torch=published.from_torch,
  torch_parts=published.PARTS,
)
