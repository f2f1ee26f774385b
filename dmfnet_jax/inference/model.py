"""The public model object: loads, fuses arrays, keeps colour."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from dmfnet_jax import weights
from dmfnet_jax.backend import enable_compilation_cache
from dmfnet_jax.data import color
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.engine import Engine, pair_keys


class DMFNet:
  """A trained DM-FNet.

  Attributes:
    params: {"unet": ..., "fusion_head": ...}, a pytree of float32 arrays.
    config: the model config: `unet`, `fusion_head` and `features`.
  """

  def __init__(self, params: dict[str, Any], config: dict[str, Any], **engine_options: Any):
    self.params = params
    self.config = config
    self._engine = Engine(params, config, **engine_options)

  def fuse(
    self,
    a: np.ndarray | Sequence[np.ndarray],
    b: np.ndarray | Sequence[np.ndarray],
    *,
    seed: int = 0,
    names: Sequence[str] | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
  ) -> Any:
    """Fuses one pair, a batch of pairs or a list of pairs of any sizes.

    Args:
      a: the MRI: [H, W] or [B, H, W], or a list of B pictures [H, W]; uint8 or float in [-1, 1].
      b: the other modality: of a's shape, or with a last axis of 3 (RGB); of a's kind of dtype.
      seed: the noise is drawn from (seed, name), so the same call gives the same picture.
      names: [B] names of the pairs (or one string for one pair); by default all are "", so a
        picture is the same alone and in a batch.
      samples: fuse K times with other noise and return the mean and the deviation.
      batch_size: pairs that go through the networks at a time; by default one on a CPU and half a
        million pixels' worth on an accelerator.

    Returns:
      The fused images, of b's shape and of the inputs' kind of dtype (uint8 or float32 in
      [-1, 1]), a list where lists were given; coloured where b is: b's chroma with the fused luma.
      With `samples`, a tuple of the mean image and the per-pixel standard deviation of the luma in
      grey levels 0..255 (float32, a's shape).

    Raises:
      UserError: shapes, dtypes or names that do not go together.
    """
    for option, value in (("samples", samples), ("batch_size", batch_size)):
      if value is not None and value < 1:
        raise UserError(f"{option} must be at least 1, got {value}")
    listed = isinstance(a, (list, tuple)) and isinstance(b, (list, tuple))
    if listed:
      pictures = [np.asarray(x) for x in a], [np.asarray(x) for x in b]
      if len(a) != len(b):
        raise UserError(f"{len(a)} pictures a and {len(b)} pictures b")
      for pair in zip(*pictures, strict=True):
        _check(*pair, ndims=(2,))
    else:
      a, b = np.asarray(a), np.asarray(b)
      _check(a, b, ndims=(2, 3))
      if a.ndim == 2:
        one_name = None if names is None else [names] if isinstance(names, str) else names
        result = self.fuse(
          a[None], b[None], seed=seed, names=one_name, samples=samples, batch_size=batch_size
        )
        return result[0] if samples is None else (result[0][0], result[1][0])
      pictures = list(a), list(b)
    if names is None:
      names = [""] * len(a)
    if isinstance(names, str) or len(names) != len(a):
      given = repr(names) if isinstance(names, str) else f"{len(names)} names"
      raise UserError(f"{given} for {len(a)} pairs: give a list of one name a pair")

    draws = [pair_keys(seed, names, draw) for draw in range(samples or 1)]
    drawn = self._fuse_lumas(*pictures, draws, batch_size)
    results: list[Any] = [
      [_with_color(lumas.mean(0), y) for lumas, y in zip(drawn, pictures[1], strict=True)]
    ]
    if samples is not None:
      results.append([lumas.std(0) * 127.5 for lumas in drawn])
    if not listed:
      results = [np.stack(result) for result in results]
    return results[0] if samples is None else tuple(results)

  def _fuse_lumas(
    self,
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    draws: Sequence[jax.Array],
    batch_size: int | None,
  ) -> list[np.ndarray]:
    """Fuses pictures with the keys of each draw; returns each one's lumas [draws, H, W]."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, picture in enumerate(a):
      groups.setdefault(self.padded_size(*picture.shape), []).append(i)
    lumas = [np.empty(0)] * len(a)
    for chosen in groups.values():
      luma_a = [_to_signed(a[i]) for i in chosen]
      luma_b = [_to_signed(_luma(b[i])) for i in chosen]
      drawn = [self._engine.fuse(luma_a, luma_b, k[np.array(chosen)], batch_size) for k in draws]
      for i, *fused in zip(chosen, *drawn, strict=True):
        lumas[i] = np.stack(fused)
    return lumas

  def padded_size(self, height: int, width: int) -> tuple[int, int]:
    """The size to which a picture is padded; pictures of one padded size share batches."""
    return self._engine.padded(height, width)

  def fuse_noisy(self, noisy_a: Any, noisy_b: Any, noise_levels: Any) -> jax.Array:
    """Fuses noised sources: [T, B, H, W, 1] twice and [T] levels to [B, H, W, 1] float32.

    No randomness, no padding and no colour: for parity tests and research.
    """
    return self._engine.fuse_noisy(noisy_a, noisy_b, noise_levels)


def load_params(model: str | epath.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads what a word names: a released model, a `.safetensors` file or a training workdir.

  Args:
    model: the word; an existing path wins over a released name.

  Returns:
    The parameters, {"unet"} or {"unet", "fusion_head"}, and the model config.

  Raises:
    UserError: nothing of that name, a damaged file, or a workdir without a checkpoint.
  """
  path = epath.Path(model)
  if path.is_dir():
    from dmfnet_jax.training.checkpoint import load_trained

    return load_trained(path)
  if path.suffix == ".safetensors" or path.is_file():
    return weights.read_weights(path)
  return weights.read_weights(weights.released_path(str(model)))


def load_model(model: str | epath.PathLike, **engine_options: Any) -> DMFNet:
  """Loads a released name, a `.safetensors` file or a Stage II training workdir.

  What it compiles is kept between processes, see `backend.enable_compilation_cache`.

  Args:
    model: what to load; an existing path wins over a released name.
    **engine_options: `compute_dtype` and `passes_per_step` of the `Engine`.

  Raises:
    UserError: nothing of that name, a damaged file, or a workdir without a Stage II checkpoint.
  """
  enable_compilation_cache()
  params, config = load_params(model)
  missing = {"unet", "fusion_head"} - params.keys()
  if missing:
    raise UserError(
      f"{model} has no {' and no '.join(sorted(missing))}: fusing needs a model of Stage II"
    )
  return DMFNet(params, config, **engine_options)


def _check(a: np.ndarray, b: np.ndarray, ndims: Sequence[int]) -> None:
  shape_b = b.shape[:-1] if b.ndim == a.ndim + 1 and b.shape[-1] == 3 else b.shape
  if a.ndim not in ndims or shape_b != a.shape:
    wanted = " or ".join({2: "[H, W]", 3: "[B, H, W]"}[n] for n in ndims)
    raise UserError(
      f"a must be {wanted} and b of the same shape (or with 3 colours last), "
      f"got {a.shape} and {b.shape}"
    )
  if 0 in a.shape:
    raise UserError(f"an image without pixels: a has the shape {a.shape}")
  kinds = [x.dtype == np.uint8 or np.issubdtype(x.dtype, np.floating) for x in (a, b)]
  if not all(kinds) or (a.dtype == np.uint8) != (b.dtype == np.uint8):
    raise UserError(f"a and b must both be uint8 or both float, got {a.dtype} and {b.dtype}")
  for name, x in (("a", a), ("b", b)):
    # Tolerates rounding; anything else is an image in another range, such as 0..255 floats.
    if x.dtype != np.uint8 and not (x.min() >= -1.001 and x.max() <= 1.001):
      raise UserError(f"{name} is float and must lie in [-1, 1], got {x.min()} to {x.max()}")


def _luma(b: np.ndarray) -> np.ndarray:
  if b.ndim == 2:
    return b
  if b.dtype == np.uint8:
    return color.rgb_to_luma(b)
  return b @ np.array([0.299, 0.587, 0.114], b.dtype)


def _to_signed(x: np.ndarray) -> np.ndarray:
  if x.dtype == np.uint8:
    return x.astype(np.float32) / 255 * 2 - 1
  return x.astype(np.float32)


def _with_color(fused: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Gives fused luma [H, W] in [-1, 1] b's chroma and b's kind of dtype."""
  fused = np.clip(fused, -1, 1)
  if b.dtype == np.uint8:
    grey = np.round((fused + 1) / 2 * 255).astype(np.uint8)
    return grey if b.ndim == 2 else color.replace_luma(b, grey)
  if b.ndim == 2:
    return fused
  # With Cb and Cr kept, a change of luma is the same change of red, green and blue.
  return np.clip(b + (fused - _luma(b))[..., None], -1, 1).astype(np.float32)
