"""The published program's weights: which parameter here is which one there."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.interop.layers import batch_norm
from dmfnet_jax.methods.hinet import stages
from dmfnet_jax.methods.method import STATS, Params, join, variables

# What each file is, by the part's name; E is the epoch.
PARTS = {
  "generator": "generator_E.pkl",
  "discriminator": "discrimator_E.pkl, to train on",  # (sic)
}
_FIRST = "down_1_0.0.weight"
_NUMBERS = {"a": (0, 1), "b": (1, 2)}  # of the encoders and of the decoders


def _block(here: str, there: str, count: int = 1) -> torch_names.Layers:
  """A block of so many convolutions, which are every third layer there."""
  return tuple(
    row
    for i in range(count)
    for row in (
      (rf"{here}/conv{i + 1}", f"{there}.{3 * i}"),
      *batch_norm(rf"{here}/norm{i + 1}", f"{there}.{3 * i + 1}"),
    )
  )


def _mixed(here: str, there: str) -> torch_names.Layers:
  return (
    *_block(f"{here}/mix", f"{there}.layer1"),
    *_block(f"{here}/merge", f"{there}.layer2"),
  )


def _decoder(here: str, number: int) -> torch_names.Layers:
  """The blocks of a decoder, from the coarsest on, and the convolutions that they have there."""
  convs = {"level3": (1,), "level2": (2, 3), "level1": (4, 5), "level0": (6,)}
  return tuple(
    row
    for block, numbers in convs.items()
    for i, k in enumerate(numbers, 1)
    for row in (
      (rf"{here}/{block}/conv{i}", f"deconv_{k}_{number}.0"),
      *batch_norm(rf"{here}/{block}/norm{i}", f"deconv_{k}_{number}.1"),
    )
  )


LAYERS: Mapping[str, torch_names.Layers] = {
  "generator": (
    *(
      row
      for source, (number, _) in _NUMBERS.items()
      for row in _block(rf"encode(?P<k>\d)_{source}", f"down_{{k}}_{number}", 2)
    ),
    *_mixed(r"fuse(?P<k>[123])", "down_fu_{k}"),
    *_block("fuse4", "down_fu_4"),
    *_mixed(r"decode(?P<k>[234])", "deconv_{k}_0"),
    *_block(r"decode(?P<k>[15])", "deconv_{k}_0"),
    ("out", "out.0"),
  ),
  "decoders": tuple(
    row
    for source, (_, number) in _NUMBERS.items()
    for row in (*_decoder(source, number), (f"{source}/out", f"out{number}.0"))
  ),
  "discriminator": (
    ("conv1", "model.0"),
    *(
      row
      for i, layer in ((2, 2), (3, 5), (4, 8))
      for row in ((f"conv{i}", f"model.{layer}"), *batch_norm(f"norm{i}", f"model.{layer + 1}"))
    ),
    ("last", "model.11"),
  ),
}
# The file of the generator has the decoders of the inputs as well.
_IN_FILE = {"generator": ("generator", "decoders"), "discriminator": ("discriminator",)}


def from_torch(parts: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
  """Converts the published files; see `Method.from_torch`.

  Args:
    parts: "generator", and "discriminator" to train on.

  Raises:
    UserError: no generator, or files that do not fit; all keys that do not are counted.
  """
  states = {part: torch_names.unwrapped(state) for part, state in parts.items()}
  if "generator" not in states:
    raise UserError("give generator=generator_E.pkl, and discriminator=discrimator_E.pkl to train")
  if _FIRST not in states["generator"]:
    raise UserError(f"not Hi-Net's generator: it has no {_FIRST}")
  config = {"network": {"width": states["generator"][_FIRST].shape[0]}}
  shapes = jax.eval_shape(lambda: stages.init(config, jax.random.key(0)))
  found: list[Params] = []
  for part, state in states.items():
    networks = _IN_FILE[part]
    # One tree of all that the file holds, so that every key is accounted for.
    made = torch_names.variables_from_state_dict(
      state,
      {
        kind: {name: variables(shapes, name)[kind] for name in networks}
        for kind in ("params", "batch_stats")
      },
      tuple((rf"{name}/{here}", there) for name in networks for here, there in LAYERS[name]),
      f"the {part}",
    )
    found.append(made["params"] | {STATS: made["batch_stats"]})
  return join(*found), config


def to_torch(params: Params, part: str) -> dict[str, np.ndarray]:
  """A part's parameters and statistics, where there are any, named as in its file."""
  return {
    key: value
    for name in _IN_FILE[part]
    for tree in variables(params, name).values()
    for key, value in torch_names.to_state_dict(tree, LAYERS[name]).items()
  }
