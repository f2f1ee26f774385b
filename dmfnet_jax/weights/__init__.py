"""Released models: one `.safetensors` file each, its config in the file's metadata.

The file holds float arrays named by their path in the parameter tree ("unet/init_conv/kernel"),
in any float dtype; the metadata holds "format" and "config" (JSON, the model's part of a training
config: `unet`, `fusion_head`, `features`).
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from safetensors import SafetensorError, deserialize
from safetensors import numpy as safetensors

from dmfnet_jax.errors import UserError

FORMAT = "dmfnet_jax/1"

# `safetensors.numpy` writes bfloat16 but does not read it.
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def released_names() -> list[str]:
  """Names of the models inside the package, sorted."""
  return sorted(path.stem for path in Path(__file__).parent.glob("*.safetensors"))


def released_path(name: str) -> epath.Path:
  """Path of the released model `name`.

  Raises:
    UserError: no such model; the message lists those there are.
  """
  if name not in released_names():
    known = ", ".join(released_names()) or "none"
    raise UserError(
      f"unknown model {name!r}: give a released name ({known}), a .safetensors file or a workdir"
    )
  return epath.Path(__file__).parent / f"{name}.safetensors"


def save_weights(
  path: str | epath.Path, params: Mapping[str, Any], config: Mapping[str, Any], dtype: Any = None
) -> None:
  """Writes a model file, atomically.

  Args:
    path: the `.safetensors` file; its folder must exist.
    params: a pytree of arrays, such as {"unet": ..., "fusion_head": ...}.
    config: JSON-able model config.
    dtype: dtype to store (for example `jnp.bfloat16`); None keeps the arrays' own.

  Raises:
    UserError: the file cannot be written.
  """
  path = epath.Path(path)
  flat = {
    key: np.ascontiguousarray(value, dtype or np.asarray(value).dtype)
    for key, value in traverse_util.flatten_dict(params, sep="/").items()
  }
  data = safetensors.save(flat, {"format": FORMAT, "config": json.dumps(config, sort_keys=True)})
  temporary = path.with_name(f".{path.name}.partial")
  try:
    temporary.write_bytes(data)
    temporary.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise UserError(f"cannot write the model file {path}: {error.strerror or error}") from error


def read_weights(path: str | epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a model file.

  Returns:
    The parameters (a nested dict of float32 arrays) and the model config.

  Raises:
    UserError: the file is missing, damaged or of another format.
  """
  path = epath.Path(path)
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f"cannot read the model file {path}: {error.strerror or error}") from error
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
  return traverse_util.unflatten_dict(flat, sep="/"), json.loads(metadata["config"])
