"""The goldens: arrays computed by the published program, and the weights it used.

The weights are not stored but drawn again, key by key, from the key's own name. Arrays in the
files are NCHW; `tests/golden/README.md` describes the files.
"""

from __future__ import annotations

import functools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmfnet_jax.methods.dmfnet import torch as torch_weights

GOLDEN_DIR = Path(__file__).resolve().parent / "golden"
TOLERANCE = 1e-4  # of the largest absolute value, float32 on CPU


def draw(key: str, shape: Sequence[int]) -> np.ndarray:
  """The parameter `key` of the goldens' networks, float32, in PyTorch's layout."""
  z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape))
  if len(shape) >= 2:
    z = z / math.sqrt(math.prod(shape[1:]))
  elif key.endswith("weight"):
    z = 1 + 0.1 * z
  else:
    z = 0.1 * z
  return z.astype(np.float32)


def draw_all(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
  """One drawn array per key of `shapes`."""
  return {key: draw(key, shape) for key, shape in shapes.items()}


def reference_shapes() -> dict[str, dict[str, list[int]]]:
  """Names and shapes of the published checkpoints: {"unet": {...}, "fusion_head": {...}}."""
  return json.loads((GOLDEN_DIR / "reference_state_dict.json").read_text())


def reference_state_dicts() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """The drawn checkpoints (UNet, fusion head) that the goldens were computed with."""
  shapes = reference_shapes()
  return draw_all(shapes["unet"]), draw_all(shapes["fusion_head"])


@functools.cache
def reference_params() -> dict[str, Any]:
  """The goldens' weights as parameters of `UNet` and `FusionHead`."""
  unet, fusion_head = reference_state_dicts()
  return {
    "unet": torch_weights.unet_params_from_torch(unet),
    "fusion_head": torch_weights.fusion_head_params_from_torch(fusion_head),
  }


def load(name: str) -> dict[str, np.ndarray]:
  """All arrays of `tests/golden/{name}.npz`."""
  with np.load(GOLDEN_DIR / f"{name}.npz") as arrays:
    return dict(arrays)


def nhwc(x: np.ndarray) -> np.ndarray:
  """[..., C, H, W] -> [..., H, W, C]."""
  return np.moveaxis(np.asarray(x), -3, -1)


def nchw(x: np.ndarray) -> np.ndarray:
  """[..., H, W, C] -> [..., C, H, W]."""
  return np.moveaxis(np.asarray(x), -1, -3)


def relative_error(actual: Any, expected: Any) -> float:
  """Largest absolute difference over the expected array's largest absolute value."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  assert actual.shape == expected.shape, (actual.shape, expected.shape)
  assert np.isfinite(actual).all()
  # A dead unit's gradient is zero everywhere, and then ours must be.
  return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0))
