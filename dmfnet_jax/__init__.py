"""DM-FNet in JAX: fuses registered medical images (MRI with CT, PET or SPECT) into one.

    import dmfnet_jax
    model = dmfnet_jax.load_model("small-v2")
    fused = model.fuse(mri, pet)

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from dmfnet_jax.inference.model import Model

__version__ = "0.1.0"
__all__ = ["DEFAULT_MODEL", "__version__", "fuse", "load_model"]

DEFAULT_MODEL = "small-v2"
"""The released model that fuses where none is named."""


def load_model(model: str, **options: Any) -> Model:
  """Loads a model by released name, `.safetensors` file or training workdir.

  See `dmfnet_jax.inference.model.load_model` for the options and errors.
  """
  from dmfnet_jax.inference import model as model_lib

  return model_lib.load_model(model, **options)


def fuse(a: Any, b: Any, *, model: str = DEFAULT_MODEL, seed: int = 0, **options: Any) -> Any:
  """Fuses one pair or a batch with a model named in a word; see `Model.fuse`.

  To fuse often, call `load_model` once and use its `fuse`.
  """
  return load_model(model).fuse(a, b, seed=seed, **options)


def __getattr__(name: str) -> Any:
  """Imports `dmfnet_jax.plot` when it is first used."""
  if name == "plot":
    return importlib.import_module("dmfnet_jax.plot")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
