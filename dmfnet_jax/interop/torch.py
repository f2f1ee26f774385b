"""Which parameter here is which parameter of the published PyTorch program.

A table for each network, from which both directions and every check follow. State dictionaries
map the published names to numpy arrays in PyTorch's layout (convolutions OIHW, of volumes OIDHW,
dense layers [out, in]).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from dmfnet_jax.errors import UserError

Layers = Sequence[tuple[str, str]]

_SHOWN = 5  # keys of a kind that an error message lists


def torch_name(path: str, layers: Layers) -> str:
  """Translates a parameter's path ("downs_0/conv1/kernel") to the published name.

  Raises:
    ValueError: the published program has no such parameter (an ablation's, for example).
  """
  layer, _, leaf = path.rpartition("/")
  for pattern, published in layers:
    of_layer = re.fullmatch(pattern, layer)
    match = of_layer or re.fullmatch(pattern, path)  # a parameter that has a row of its own
    if match:
      fields: dict[str, Any] = match.groupdict()
      if "i" in fields:
        fields["after"] = int(fields["i"]) + 1  # of lists with one more before it
      if "level" in fields:
        fields |= {"even": 2 * int(fields["level"]), "odd": 2 * int(fields["level"]) + 1}
      name = published.format(**fields)
      return f"{name}.{'bias' if leaf == 'bias' else 'weight'}" if of_layer else name
  raise ValueError(f"the published program has no counterpart of {path}")


def to_torch_layout(value: np.ndarray) -> np.ndarray:
  """HWIO to OIHW, DHWIO to OIDHW, [in, out] to [out, in]; others stay."""
  axes = {5: (4, 3, 0, 1, 2), 4: (3, 2, 0, 1), 2: (1, 0)}
  return value.transpose(axes.get(value.ndim, range(value.ndim)))


def from_torch_layout(value: np.ndarray) -> np.ndarray:
  """OIHW to HWIO, OIDHW to DHWIO, [out, in] to [in, out]; others stay."""
  axes = {5: (2, 3, 4, 1, 0), 4: (2, 3, 1, 0), 2: (1, 0)}
  return value.transpose(axes.get(value.ndim, range(value.ndim)))


def unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
  """A state dictionary without the prefix "module." that torch's DataParallel leaves."""
  return {key.removeprefix("module."): value for key, value in state.items()}


def to_state_dict(params: Mapping[str, Any], layers: Layers) -> dict[str, np.ndarray]:
  """Turns a parameter tree into a state dictionary.

  Raises:
    ValueError: the published program has no counterpart of a parameter.
  """
  return {
    torch_name(path, layers): to_torch_layout(np.asarray(value))
    for path, value in traverse_util.flatten_dict(params, sep="/").items()
  }


def from_state_dict(
  state: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  layers: Layers,
  name: str,
) -> dict[str, Any]:
  """Turns a state dictionary into a parameter tree, float32.

  Args:
    state: the state dictionary.
    shapes: the wanted parameters' paths ("downs_0/conv1/kernel") and shapes.
    layers: the network's table.
    name: what error messages call the state dictionary.

  Raises:
    UserError: keys are missing, unexpected or of the wrong shape; all are counted, some named.
  """
  names = {path: torch_name(path, layers) for path in shapes}
  wanted = {
    names[path]: to_torch_layout(np.broadcast_to(0, shape)).shape for path, shape in shapes.items()
  }
  found = {
    "missing": [key for key in wanted if key not in state],
    "unexpected": [key for key in state if key not in wanted],
    "of the wrong shape": [
      f"{key} {tuple(state[key].shape)} instead of {shape}"
      for key, shape in wanted.items()
      if key in state and tuple(state[key].shape) != shape
    ],
  }
  problems = [
    f"{len(keys)} {kind} ({', '.join(keys[:_SHOWN])}{', ...' * (len(keys) > _SHOWN)})"
    for kind, keys in found.items()
    if keys
  ]
  if problems:
    raise UserError(f"{name} does not fit the model: {'; '.join(problems)}")
  flat = {
    path: np.ascontiguousarray(from_torch_layout(state[names[path]]), dtype=np.float32)
    for path in shapes
  }
  return traverse_util.unflatten_dict(flat, sep="/")


def params_from_state_dict(
  state: Mapping[str, np.ndarray], shapes: Mapping[str, Any], layers: Layers, name: str
) -> dict[str, Any]:
  """`from_state_dict` with the shapes of the parameters as flax makes them: a tree."""
  flat = traverse_util.flatten_dict(shapes, sep="/")
  wanted = {path: leaf.shape for path, leaf in flat.items()}
  return from_state_dict(state, wanted, layers, name)


def variables_from_state_dict(
  state: Mapping[str, np.ndarray], shapes: Mapping[str, Any], layers: Layers, name: str
) -> dict[str, Any]:
  """`from_state_dict` for a network with batch norms, whose running statistics have rows as well.

  Args:
    state: the state dictionary; "num_batches_tracked" is of no use and left out.
    shapes: the network's variables, such as "params" and "batch_stats", as flax makes them.
    layers: the network's table.
    name: what error messages call the state dictionary.

  Returns:
    Trees by the same names.

  Raises:
    UserError: see `from_state_dict`.
  """
  state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
  paths = {kind: traverse_util.flatten_dict(tree, sep="/") for kind, tree in shapes.items()}
  wanted = {path: leaf.shape for tree in paths.values() for path, leaf in tree.items()}
  flat = traverse_util.flatten_dict(from_state_dict(state, wanted, layers, name), sep="/")
  return {
    kind: traverse_util.unflatten_dict({path: flat[path] for path in tree}, sep="/")
    for kind, tree in paths.items()
  }
