"""Model files: one `.safetensors` file each, its method and config in the file's metadata.

The file holds float arrays named by their path in the parameter tree ("encoder/conv1/kernel"),
in any float dtype; the metadata holds "format", "method" and "config" (JSON, the model's sections
of a training config), and where it is known "trained_on" (JSON, the kinds of pairs that the model
was trained on, A first, in the words of `io.modalities`: ["MRI-CT"]).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, deserialize
from safetensors import numpy as safetensors

from dmfnet_jax import methods
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths

FORMAT = "dmfnet_jax/1"

# `safetensors.numpy` writes bfloat16 but does not read it.
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def save_weights(
  path: paths.PathLike,
  params: Mapping[str, Any],
  config: Mapping[str, Any],
  dtype: Any = None,
  *,
  trained_on: Sequence[str] = (),
) -> None:
  """Writes a model file, atomically.

  Args:
    path: the `.safetensors` file; its folder must exist.
    params: network -> pytree of arrays.
    config: JSON-able model config, with its "method".
    dtype: dtype to store (for example `jnp.bfloat16`); None keeps the arrays' own.
    trained_on: the kinds of pairs; empty where unknown.

  Raises:
    UserError: the file cannot be written.
  """
  flat = {
    key: np.ascontiguousarray(value, dtype or np.asarray(value).dtype)
    for key, value in traverse_util.flatten_dict(params, sep="/").items()
  }
  method, sections = config["method"], {k: v for k, v in config.items() if k != "method"}
  metadata = {"format": FORMAT, "method": method, "config": json.dumps(sections, sort_keys=True)}
  if trained_on:
    metadata["trained_on"] = json.dumps(list(trained_on))
  paths.write_bytes(path, safetensors.save(flat, metadata))


def read_weights(path: paths.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a model file.

  Returns:
    The parameters (network -> nested dict of float32 arrays) and the model config with its
    "method", complete (see `complete`).

  Raises:
    UserError: the file is missing, damaged or of another format.
  """
  data = paths.read_bytes(path)
  try:
    arrays = deserialize(data)
    # The header: its length in 8 bytes, then JSON, with our strings under __metadata__.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__", {})
  except (SafetensorError, ValueError) as error:
    raise UserError(f"{path} is not a readable .safetensors file: {error}") from error
  if metadata.get("format") != FORMAT or "config" not in metadata:
    raise UserError(f"{path} is not a dmfnet_jax model: its metadata has no format {FORMAT!r}")
  flat = {}
  for name, array in arrays:
    if array["dtype"] not in _DTYPES:
      raise UserError(f"{path} is not a dmfnet_jax model: {name} is of type {array['dtype']}")
    values = np.frombuffer(array["data"], _DTYPES[array["dtype"]]).reshape(array["shape"])
    flat[name] = values.astype(np.float32)
  config = {"method": metadata.get("method", methods.OLDEST), **json.loads(metadata["config"])}
  return traverse_util.unflatten_dict(flat, sep="/"), complete(config)


def read_trained_on(path: paths.PathLike) -> tuple[str, ...]:
  """The kinds of pairs that the model of a file was trained on; empty where it does not say."""
  with paths.as_path(path).open("rb") as file:
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
  return tuple(json.loads(header["__metadata__"].get("trained_on", "[]")))


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
  """A model config with the method's defaults for fields, and a stage's sections, newer than it.

  Raises:
    UserError: an unknown method.
  """
  method = methods.get(config["method"])
  completed = dict(config)
  for stage in method.stages or (1,):
    defaults = {k: v for k, v in method.defaults(stage).items() if k in {*config, *method.model}}
    if defaults.keys() & config.keys():
      completed |= {k: _filled(fields, config.get(k, {})) for k, fields in defaults.items()}
  return completed


def _filled(defaults: Any, given: Any) -> Any:
  if not isinstance(defaults, Mapping) or not isinstance(given, Mapping):
    return given
  return {**defaults, **{k: _filled(defaults.get(k), v) for k, v in given.items()}}
