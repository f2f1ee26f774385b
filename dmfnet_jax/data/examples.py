"""One pair on its way into a batch: decoded, cached, cut, flipped and scaled. NumPy only."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.io.color import rgb_to_luma
from dmfnet_jax.io.pictures import to_float


class DecodedPairs:
  """Random access to {"a", "b": uint8 [H, W], "record": position, "name"} of a builder's examples.

  The first `cache_bytes` that were read are kept in memory.
  """

  def __init__(self, source: Sequence[dict[str, Any]], cache_bytes: int):
    self._source = source
    self._cache_bytes = self._free_bytes = cache_bytes
    self._cache: dict[int, dict[str, Any]] = {}

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, record: int) -> dict[str, Any]:
    pair = self._cache.get(record)
    if pair is None:
      example = self._source[record]
      pair = {
        "a": np.ascontiguousarray(example["a"][..., 0]),
        "b": rgb_to_luma(example["b"]),
        "record": record,
        "name": example.get("name", b""),
      }
      # Two threads that read one record at once both count it: too little is kept, not too much.
      size = pair["a"].nbytes + pair["b"].nbytes
      if size <= self._free_bytes:
        self._free_bytes -= size
        self._cache[record] = pair
    return pair

  def __reduce__(self):
    # Each worker process fills a cache of its own; ours need not travel there.
    return DecodedPairs, (self._source, self._cache_bytes)


def training_example(
  position: int, pair: dict[str, Any], *, seed: int, batch_size: int, crop_size: int, flip: bool
) -> dict[str, Any]:
  """Cuts the training example at one position of the global stream.

  Position and seed draw the crop and the flips; see `pipeline.make_train_dataset` for the options
  and for what an example holds.

  Raises:
    UserError: The picture is too small to be padded to the crop.
  """
  rng = np.random.default_rng((seed, position))
  a, b = _pad_to(pair, crop_size)
  # All numbers are drawn whatever the settings and sizes: no choice shifts another.
  shift, flips = rng.random(2), rng.random(2) < 0.5
  top, left = (int(s * (n - crop_size + 1)) for s, n in zip(shift, a.shape, strict=True))
  window = np.s_[top : top + crop_size, left : left + crop_size]
  axes = tuple(axis for axis in (0, 1) if flip and flips[axis])
  return {
    "a": to_float(np.flip(a[window], axes))[..., None],
    "b": to_float(np.flip(b[window], axes))[..., None],
    "index": np.int32(position % batch_size),
    "record": np.int32(pair["record"]),
  }


def eval_example(
  position: int, pair: dict[str, Any], *, num_records: int, batch_size: int, crop_size: int | None
) -> dict[str, Any]:
  """Cuts the centre of the example at one position of a pass; those past the last are padding.

  See `pipeline.make_eval_batches` for the options and for what an example holds.

  Raises:
    UserError: The picture is smaller than 16 x 16, or too small to be padded to the crop.
  """
  a, b = _pad_to(pair, crop_size or 0)
  height, width = (crop_size or side // 16 * 16 for side in a.shape)
  if not (height and width):
    raise UserError(f"{_describe(pair)} is smaller than 16 x 16")
  top, left = (a.shape[0] - height) // 2, (a.shape[1] - width) // 2
  window = np.s_[top : top + height, left : left + width]
  return {
    "a": to_float(a[window])[..., None],
    "b": to_float(b[window])[..., None],
    "index": np.int32(position % batch_size),
    "record": np.int32(pair["record"]),
    "mask": np.float32(position < num_records),
  }


def _pad_to(pair: dict[str, Any], size: int) -> tuple[np.ndarray, np.ndarray]:
  """Reflect-pads both pictures, evenly on opposite sides, to at least `size` in each direction."""
  a, b = pair["a"], pair["b"]
  missing = [max(0, size - side) for side in a.shape]
  # A reflection has no more than side - 1 new pixels on each of the two sides.
  if any(amount > 2 * (side - 1) for amount, side in zip(missing, a.shape, strict=True)):
    raise UserError(f"{_describe(pair)} is far smaller than the crop of {size}; use a smaller crop")
  widths = [(amount // 2, amount - amount // 2) for amount in missing]
  return np.pad(a, widths, mode="reflect"), np.pad(b, widths, mode="reflect")


def _describe(pair: dict[str, Any]) -> str:
  name = pair["name"].decode() if isinstance(pair["name"], bytes) else pair["name"]
  height, width = pair["a"].shape
  return f"example {name or pair['record']} ({width} x {height})"
