"""One pair on its way into a batch: decoded, cached, cut, flipped and scaled. NumPy only."""

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.io.color import rgb_to_luma
from dmfnet_jax.io.pictures import stretch, to_float

PAIR: Mapping[str, int] = types.MappingProxyType({"a": 1, "b": 1})
"""The fields of most batches, by their channels: A and the luma of B."""


class Renamed(Sequence):
  """A source whose examples have some fields by other names as well; see `Stage.stored`.

  Args:
    source: the examples.
    stored: a name -> what the source calls that field.

  Attributes:
    name: the source's.

  Raises:
    UserError: the examples lack a field.
  """

  def __init__(self, source: Sequence[dict[str, Any]], stored: Mapping[str, str]):
    check_fields(source, tuple(stored.values()))
    self._source = source
    self._stored = dict(stored)
    self.name = getattr(source, "name", type(source).__name__)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, record):
    example = self._source[record]
    return example | {name: example[field] for name, field in self._stored.items()}


def check_fields(
  source: Sequence[dict[str, Any]], fields: Iterable[str], space: int | None = None
) -> None:
  """Refuses a source whose examples lack a picture.

  Args:
    source: the examples.
    fields: the pictures that they must have.
    space: the axes that these must have besides their channels: 2, or 3 of volumes; None: either.

  Raises:
    UserError: they do; it names what there is.
  """
  first = source[0]
  # Vectors belong to a picture.
  pictures = [name for name, value in first.items() if np.ndim(value) in (1, 3, 4)]
  lacking = [name for name in fields if name not in pictures]
  if lacking:
    raise UserError(
      f"the dataset {getattr(source, 'name', '')} has no field {lacking[0]!r}, which this stage "
      f"needs: it has {', '.join(pictures)}; paired_folder takes it from a folder {lacking[0]}/ "
      f"beside a/ and b/"
    )
  for name in fields:
    if (found := np.ndim(first[name]) - 1) and space not in (None, found):
      kinds = {2: "pictures", 3: "volumes"}
      raise UserError(
        f"the dataset {getattr(source, 'name', '')} has {kinds[found]}, and this method is for "
        f"{kinds[space]}"
      )


class DecodedPairs:
  """Random access to the pictures of a builder's examples, their positions and names.

  An example is {field: uint8 [*space, C], ..., "record": position, "name"}. The first `cache_bytes`
  that were read are kept in memory. With a `size` pictures are stretched to it. Vectors stay.
  """

  def __init__(
    self,
    source: Sequence[dict[str, Any]],
    cache_bytes: int,
    fields: Mapping[str, int] = PAIR,
    size: tuple[int, ...] | None = None,
  ):
    self._source = source
    self._size = size
    self._fields = fields
    self._cache_bytes = self._free_bytes = cache_bytes
    self._cache: dict[int, dict[str, Any]] = {}

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, record: int) -> dict[str, Any]:
    pair = self._cache.get(record)
    if pair is None:
      example = self._source[record]
      pair = {name: self._as_wanted(example[name], n) for name, n in self._fields.items()}
      # Two threads that read one record at once both count it: too little is kept, not too much.
      size = sum(picture.nbytes for picture in pair.values())
      pair |= {"record": record, "name": example.get("name", b"")}
      if size <= self._free_bytes:
        self._free_bytes -= size
        self._cache[record] = pair
    return pair

  def _as_wanted(self, value: np.ndarray, channels: int) -> np.ndarray:
    if value.ndim == 1:
      return value
    picture = with_channels(value, channels)
    return picture if self._size in (None, picture.shape[:-1]) else stretch(picture, self._size)

  def __reduce__(self):
    # Each worker process fills a cache of its own; ours need not travel there.
    return DecodedPairs, (self._source, self._cache_bytes, dict(self._fields), self._size)


def with_channels(picture: np.ndarray, channels: int) -> np.ndarray:
  """A picture [*space, 1 or 3] with one channel, its luma, or with three."""
  if picture.shape[-1] == channels:
    return np.ascontiguousarray(picture)
  return rgb_to_luma(picture)[..., None] if channels == 1 else np.repeat(picture, channels, axis=-1)


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
  padded = _pad_to(pair, crop_size)
  sides = next(iter(padded.values())).shape[:-1]
  # All numbers are drawn whatever the settings and sizes: no choice shifts another.
  shift, flips = rng.random(len(sides)), rng.random(len(sides)) < 0.5
  starts = (int(s * (n - crop_size + 1)) for s, n in zip(shift, sides, strict=True))
  window = tuple(slice(start, start + crop_size) for start in starts)
  axes = tuple(axis for axis in range(len(sides)) if flip and flips[axis])
  return {
    **{name: to_float(np.flip(picture[window], axes)) for name, picture in padded.items()},
    **_vectors(pair),
    "index": np.int32(position % batch_size),
    "record": np.int32(pair["record"]),
  }


def eval_example(
  position: int, pair: dict[str, Any], *, num_records: int, batch_size: int, crop_size: int | None
) -> dict[str, Any]:
  """Cuts the centre of the example at one position of a pass; those past the last are padding.

  See `pipeline.make_eval_batches` for the options and for what an example holds.

  Raises:
    UserError: The picture has a side below 16, or is too small to be padded to the crop.
  """
  padded = _pad_to(pair, crop_size or 0)
  sides = next(iter(padded.values())).shape[:-1]
  kept = [crop_size or side // 16 * 16 for side in sides]
  if not all(kept):
    raise UserError(f"{_describe(pair)} is smaller than {' x '.join(['16'] * len(sides))}")
  starts = [(side - n) // 2 for side, n in zip(sides, kept, strict=True)]
  window = tuple(slice(start, start + n) for start, n in zip(starts, kept, strict=True))
  return {
    **{name: to_float(picture[window]) for name, picture in padded.items()},
    **_vectors(pair),
    "index": np.int32(position % batch_size),
    "record": np.int32(pair["record"]),
    "mask": np.float32(position < num_records),
  }


def _vectors(pair: dict[str, Any]) -> dict[str, np.ndarray]:
  return {k: x.astype(np.float32) for k, x in pair.items() if np.ndim(x) == 1}


def _pad_to(pair: dict[str, Any], size: int) -> dict[str, np.ndarray]:
  """Reflect-pads an example's pictures, evenly on opposite sides, to at least `size` each way."""
  pictures = {name: x for name, x in pair.items() if np.ndim(x) > 1}
  shapes = {name: picture.shape[:-1] for name, picture in pictures.items()}
  if len(set(shapes.values())) > 1:
    sizes = ", ".join(f"{name} is {_sides(shape)}" for name, shape in shapes.items())
    raise UserError(f"{_describe(pair)}: its pictures differ in size: {sizes}")
  sides = next(iter(shapes.values()))
  missing = [max(0, size - side) for side in sides]
  # A reflection has no more than side - 1 new pixels on each of the two sides.
  if any(amount > 2 * (side - 1) for amount, side in zip(missing, sides, strict=True)):
    raise UserError(f"{_describe(pair)} is far smaller than the crop of {size}; use a smaller crop")
  widths = [(amount // 2, amount - amount // 2) for amount in missing]
  return {name: np.pad(x, (*widths, (0, 0)), mode="reflect") for name, x in pictures.items()}


def _describe(pair: dict[str, Any]) -> str:
  name = pair["name"].decode() if isinstance(pair["name"], bytes) else pair["name"]
  shape = next(x for x in pair.values() if np.ndim(x) > 1).shape[:-1]
  return f"example {name or pair['record']} ({_sides(shape)})"


def _sides(shape: Sequence[int]) -> str:
  """Width x height of a picture; of a volume its axes in their order."""
  return " x ".join(map(str, reversed(shape) if len(shape) == 2 else shape))
