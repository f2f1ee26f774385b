"""From a word to a model: a released name, a model file, a training workdir or hf://OWNER/NAME.

The name of a method without networks is a model as well: there is nothing to load.
"""

import os
from pathlib import Path
from typing import Any

from dmfnet_jax import methods
from dmfnet_jax.errors import UserError, one_line
from dmfnet_jax.io import paths
from dmfnet_jax.weights import files

_FOLDER = Path(__file__).parent
_HUB = "hf://"
_MODEL_FILE = "model.safetensors"  # as a finished training names it


def released_names() -> list[str]:
  """Names of the models inside the package, sorted."""
  return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def released_path(name: str) -> Path:
  """Path of a released model; a `UserError` that lists those there are where there is none."""
  if name not in released_names():
    known = ", ".join(released_names()) or "none"
    raise UserError(
      f"unknown model {name!r}: give a released name ({known}), a .safetensors file, a workdir, "
      f"{_HUB}OWNER/NAME, or {', '.join(methods.without_weights())}, which have no weights"
    )
  return _FOLDER / f"{name}.safetensors"


def download(address: str) -> Path:
  """Path of a model file of the Hugging Face Hub, downloaded unless it is in the Hub's cache.

  Args:
    address: `hf://OWNER/NAME` or `hf://OWNER/NAME/FILE`; FILE is model.safetensors by default.

  Raises:
    UserError: no such address, no huggingface_hub, or a download that failed.
  """
  owner, name, file = [*address.removeprefix(_HUB).split("/", 2), "", ""][:3]
  if not (owner and name):
    raise UserError(
      f"{address}: an address of the Hub is {_HUB}OWNER/NAME or {_HUB}OWNER/NAME/FILE"
    )
  try:
    from huggingface_hub import hf_hub_download
  except ImportError as error:
    raise UserError(f"{address} needs huggingface_hub: pip install 'dmfnet_jax[hub]'") from error
  try:
    return Path(hf_hub_download(f"{owner}/{name}", file or _MODEL_FILE))
  except Exception as error:  # whatever its client raises: the Hub's, the network's, the disk's
    wanted = file or _MODEL_FILE
    raise UserError(f"{address}: cannot download {wanted}: {one_line(error)}") from error


def place(model: str | os.PathLike[str]) -> Any:
  """The path that a word stands for, if it stands for one; of a model of the Hub its download."""
  address = os.fspath(model)
  return download(address) if address.startswith(_HUB) else paths.as_path(model)


def load_params(model: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a released model, a `.safetensors` file or a training workdir; an existing path wins.

  Or `hf://OWNER/NAME[/FILE]`, see `download`.

  Returns:
    The parameters by network, and the model config with its "method". Of a workdir the best
    checkpoint's; an early stage has not all the networks that fusing needs.

  Raises:
    UserError: nothing of that name, a damaged file, or a workdir without a checkpoint.
  """
  path = place(model)
  if path.is_dir():
    from dmfnet_jax.weights.workdir import load_trained  # it loads Orbax

    return load_trained(path)
  if _needs_no_file(path):
    return {}, files.complete({"method": str(path)})
  return files.read_weights(_file(path))


def trained_on(model: str | os.PathLike[str]) -> tuple[str, ...]:
  """The kinds of pairs that a model was trained on, see `files`; empty where unknown.

  Args:
    model: what `load_params` has read. Of a workdir the file that its finished training wrote.
  """
  path = place(model)
  if _needs_no_file(path):
    return ()
  file = path / _MODEL_FILE if path.is_dir() else _file(path)
  return files.read_trained_on(file) if file.exists() else ()


def _needs_no_file(path: Any) -> bool:
  """Whether a word that is no path names a method without networks."""
  name = str(path)
  return not path.exists() and name in methods.names() and not methods.get(name).networks


def _file(path: Any) -> Any:
  """The model file at a path, or the released one of that name."""
  if path.suffix == ".safetensors" or path.is_file():
    return path
  return released_path(str(path))
