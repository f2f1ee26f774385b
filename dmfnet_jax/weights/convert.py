"""`dmfnet convert`: a method's published PyTorch weights into one model file.

Or networks of another method's model, for a method that can take them (`Method.from_model`).
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmfnet_jax import methods
from dmfnet_jax.errors import UserError
from dmfnet_jax.methods.method import Compute
from dmfnet_jax.weights import files as weights
from dmfnet_jax.weights.find import load_params


def convert(
  method_name: str,
  files: Mapping[str, str | Path],
  out: str | Path,
  overrides: Mapping[str, Any] | None = None,
  **options: Any,
) -> None:
  """Converts the published program's `.pth` files, or a model, into one file for `load_model`.

  Args:
    method_name: whose weights they are.
    files: the parts that the method's `torch_parts` names, each with its file; where the method
      has a `from_model`, one of them with a model: a name, a model file or a training workdir.
    out: the `.safetensors` file to write; its folder must exist.
    overrides: fields of the model config that the files do not tell, "section.field" to value.
    **options: what the method's `from_torch` takes besides.

  Raises:
    UserError: PyTorch is not installed; a file is missing, no such checkpoint, or does not fit; a
      part or a field that the method does not have.
  """
  method = methods.get(method_name)
  if method.from_torch is None:
    raise UserError(f"{method_name} has no published weights that could be converted")
  if unknown := sorted(files.keys() - method.torch_parts.keys()):
    known = ", ".join(f"{part}=FILE ({about})" for part, about in method.torch_parts.items())
    raise UserError(f"{method_name} has no part {unknown[0]!r}: give {known}")
  if Path(out).is_dir() or not Path(out).absolute().parent.is_dir():
    raise UserError(f"cannot write {out}: give a file in a folder that exists")
  if method.from_model is not None and len(files) == 1 and _is_model(*files.values()):
    take = functools.partial(method.from_model, *load_params(*files.values()))
  else:
    states = {part: read_pth(path) for part, path in files.items()}
    take = functools.partial(method.from_torch, states, **options)
  try:
    params, config = take()
  except UserError as error:
    named = "".join(f"{path}: " for path in files.values())
    raise UserError(f"{named}{error}") from error
  config = weights.complete({"method": method_name, **config})
  for name, value in (overrides or {}).items():
    section, _, field = name.partition(".")
    if not isinstance(config.get(section), dict) or field not in config[section]:
      raise UserError(f"{method_name}'s model config has no field {name!r}")
    config[section][field] = _as(type(config[section][field]), name, value)
  if params.keys() >= set(method.networks):
    method.fuse(config, Compute())  # refuses fields that cannot work, before anything is written
  weights.save_weights(out, params, config)


def _is_model(path: str | Path) -> bool:
  """Whether a word stands for a model, as `load_params` takes it, and not for a PyTorch file."""
  return Path(path).suffix not in (".pth", ".pt")


def read_pth(path: str | Path) -> dict[str, Any]:
  """Reads a `.pth` checkpoint into numpy arrays, without running any code that it may contain.

  Returns:
    The checkpoint's names, as they are, with float32 arrays; where it holds several state
    dictionaries, each by its name. One wrapped as {"state_dict": ...} or {"model": ...} is
    unwrapped.

  Raises:
    UserError: PyTorch is not installed, or the file is missing or no such checkpoint.
  """
  try:
    import torch
  except ImportError as error:
    raise UserError("reading .pth files needs PyTorch: pip install 'dmfnet_jax[torch]'") from error
  if not Path(path).is_file():
    raise UserError(f"no such file: {path}")
  try:
    content = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # torch raises whatever its unpickler and zip reader raise
    reason = str(error).strip().split("\n")[0]
    raise UserError(f"{path} is not a PyTorch weights file: {reason}") from error
  for wrapper in ("state_dict", "model"):
    if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
      content = content[wrapper]
  if not isinstance(content, Mapping):
    raise UserError(f"{path} holds a {type(content).__name__}, not a state dictionary")

  def to_numpy(node: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
      if isinstance(value, torch.Tensor):
        found[str(key)] = value.float().numpy()
      elif isinstance(value, Mapping):
        found[str(key)] = to_numpy(value)
    return found

  return to_numpy(content)


def _as(kind: type, name: str, value: Any) -> Any:
  """A value given as a word, as the field's type has it."""
  if not isinstance(value, str) or kind is str:
    return value
  if kind is bool and value.lower() in ("true", "false"):
    return value.lower() == "true"
  try:
    if kind in (int, float):
      return kind(value)
  except ValueError:
    pass
  raise UserError(f"{name}={value}: not a value of type {kind.__name__}")
