"""From a word to a model: a released name, a model file or a training workdir."""

import os
from pathlib import Path
from typing import Any

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths
from dmfnet_jax.weights import files

_FOLDER = Path(__file__).parent


def released_names() -> list[str]:
  """Names of the models inside the package, sorted."""
  return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def released_path(name: str) -> Path:
  """Path of a released model; a `UserError` that lists those there are where there is none."""
  if name not in released_names():
    known = ", ".join(released_names()) or "none"
    raise UserError(
      f"unknown model {name!r}: give a released name ({known}), a .safetensors file or a workdir"
    )
  return _FOLDER / f"{name}.safetensors"


def load_params(model: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a released model, a `.safetensors` file or a training workdir; an existing path wins.

  Returns:
    The parameters by network, and the model config with its "method". Of a workdir the best
    checkpoint's; an early stage has not all the networks that fusing needs.

  Raises:
    UserError: nothing of that name, a damaged file, or a workdir without a checkpoint.
  """
  path = paths.as_path(model)
  if path.is_dir():
    from dmfnet_jax.weights.workdir import load_trained  # it loads Orbax

    return load_trained(path)
  if path.suffix == ".safetensors" or path.is_file():
    return files.read_weights(path)
  return files.read_weights(released_path(str(model)))
