"""What `Model.fuse` is given: which pictures there are, and whether they go together.

An array of one rank more than a picture may be a batch or a coloured picture. One whose last axis
is 3 is a coloured picture, [H, W, 3], and never a batch of pictures 3 pixels wide, unless another
source shows that there is a batch: a batch in colour, [N, H, W, 3], or one that does not end in 3.
In lists every picture stands alone, so that nothing is ambiguous there. Last axes of 1, 2 and 4,
which are grey, grey with alpha and RGBA in other programs, are refused where they could be those.
A first axis of 3 is a batch of three: colours stand last.

Floats lie in [-1, 1]. A source of floats without a negative value, in all of its pictures, is one
in [0, 1] by every likelihood, and would be fused as a grey veil: it is refused.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import color, paths, pictures
from dmfnet_jax.methods.method import Field, Method

_CHANNELS = {1: "grey", 2: "grey with alpha", 4: "RGBA"}  # last axes that are no width, as a rule
_NAMES = {2: "[H, W]", 3: "[D, H, W]"}  # of one example; a batch has a B before


class Given(NamedTuple):
  """The sources of a call.

  Attributes:
    columns: each source's arrays, one per example.
    names: of the examples: the stems of the first source's files, "" where it has none.
    listed: whether lists were given.
    single: whether one example was given, neither a list nor a batch.
  """

  columns: list[list[np.ndarray]]
  names: list[str]
  listed: bool
  single: bool


def are_volumes(sources: Sequence[Any]) -> bool:
  """Whether there are nibabel images or `Volume`s, which say where they lie.

  Raises:
    UserError: there are lists of them.
  """
  for source in sources:
    if isinstance(source, (list, tuple)) and any(hasattr(x, "affine") for x in source):
      raise UserError("volumes are fused one pair a call: give no lists of them")
  return any(hasattr(source, "affine") for source in sources)


def gather(method: Method, name: str, sources: Sequence[Any]) -> Given:
  """Reads what are paths, and tells examples, batches and lists apart.

  Args:
    method: whose sources they are.
    name: the method's.
    sources: arrays, paths of pictures, or lists of these, one per source of the method.

  Raises:
    UserError: they do not go together, or a file cannot be read.
  """
  fields = method.sources
  if len(sources) != len(fields):
    wanted = ", ".join(field.name for field in fields)
    raise UserError(f"{name} takes {len(fields)} sources ({wanted})")
  listed = all(isinstance(source, (list, tuple)) for source in sources)
  if listed:
    counts = [f"{len(x)} pictures {f.name}" for x, f in zip(sources, fields, strict=True)]
    if len({len(source) for source in sources}) > 1:
      raise UserError(" and ".join(counts))
    single, columns = False, [[_read(x) for x in source] for source in sources]
    for row in zip(*columns, strict=True):
      _check_shapes(fields, row, method.space)
    ambiguous = False
  else:
    arrays = [_read(source) for source in sources]
    shown = [x for f, x in zip(fields, arrays, strict=True) if not f.is_vector]
    single = _is_single(shown, method.space)
    ambiguous = single and all(x.ndim > method.space for x in shown)
    _check_shapes(fields, arrays, method.space, is_batch=not single)
    columns = [[x] if single else list(x) for x in arrays]
  _check_ranges(fields, columns)
  _warn_of_colour(method, columns, ambiguous=ambiguous)
  files = sources[0] if listed else [sources[0]]
  stems = [paths.file_stem(paths.as_path(x)) if _is_path(x) else "" for x in files]
  return Given(columns, stems if listed or single else [""] * len(columns[0]), listed, single)


def gather_apart(
  method: Method, name: str, sources: Sequence[Any]
) -> tuple[list[list[np.ndarray]], bool]:
  """As `gather`, of sources whose pictures have sizes of their own: no batches but lists.

  Returns:
    Each source's arrays, one per example; and whether lists were given.

  Raises:
    UserError: see `gather`.
  """
  fields = method.sources
  if len(sources) != len(fields):
    wanted = ", ".join(field.name for field in fields)
    raise UserError(f"{name} takes {len(fields)} sources ({wanted})")
  listed = all(isinstance(source, (list, tuple)) for source in sources)
  columns = [[_read(x) for x in (source if listed else [source])] for source in sources]
  if len({len(column) for column in columns}) > 1 or not columns[0]:
    counts = (f"{len(x)} of {f.name}" for x, f in zip(columns, fields, strict=True))
    raise UserError(f"{' and '.join(counts)}: give as many of each, and at least one")
  for f, column in zip(fields, columns, strict=True):
    for x in column:
      if f.is_vector and x.shape != (f.channels,):
        raise UserError(f"{f.name} must be [{f.channels}], got {x.shape}")
      if not f.is_vector:
        _check_shapes([f], [x], method.space)
  _check_ranges(fields, columns)
  return columns, listed


def coloured_source(method: Method) -> int:
  """Which of a method's sources gives the result its colour and its kind of dtype."""
  return next((i for i, field in enumerate(method.sources) if field.gives_colour), 0)


def to_source(field: Field, x: np.ndarray, space: int) -> np.ndarray:
  """A source as methods take it: float32 [*space, C] in [-1, 1]; a vector as it is."""
  if field.is_vector:
    return x.astype(np.float32)
  is_rgb = x.ndim == space + 1
  if field.channels == 1:
    x = (luma(x) if is_rgb else x)[..., None]
  elif not is_rgb:
    x = np.repeat(x[..., None], field.channels, axis=-1)
  return pictures.to_float(x) if x.dtype == np.uint8 else x.astype(np.float32)


def finish(fused: np.ndarray, like: np.ndarray) -> np.ndarray:
  """Gives a fused picture [H, W, C] in [-1, 1] a source's kind of dtype, and a luma its chroma."""
  fused = np.clip(fused, -1, 1)
  if fused.shape[-1] == 3:
    return pictures.from_float(fused) if like.dtype == np.uint8 else fused
  fused = fused[..., 0]
  is_rgb = like.ndim == fused.ndim + 1
  if like.dtype == np.uint8:
    grey = pictures.from_float(fused)
    return color.replace_luma(like, grey) if is_rgb else grey
  if not is_rgb:
    return fused
  # With Cb and Cr kept, a change of luma is the same change of red, green and blue.
  return np.clip(like + (fused - luma(like))[..., None], -1, 1).astype(np.float32)


def luma(x: np.ndarray) -> np.ndarray:
  """The luma [...] of pictures [..., 3], or of those [..., 1] that are one."""
  if x.shape[-1] == 1:
    return x[..., 0]
  return color.rgb_to_luma(x) if x.dtype == np.uint8 else x @ np.array(color.WEIGHTS, x.dtype)


def _is_path(source: Any) -> bool:
  return isinstance(source, (str, os.PathLike))


def _read(source: Any) -> np.ndarray:
  if isinstance(source, Image.Image) and source.mode not in ("L", "RGB"):
    # Its array would hold a palette's indices, an alpha channel, or other ink.
    raise UserError(
      f'a Pillow image of mode {source.mode}: give its convert("L") or convert("RGB"), or its path'
    )
  if not _is_path(source):
    return np.asarray(source)
  if os.fspath(source).lower().endswith((".nii", ".nii.gz")):
    raise UserError(f"{source}: a volume: give nibabel.load(...) of it")
  return pictures.read_image(source)


def _is_single(shown: Sequence[np.ndarray], space: int) -> bool:
  """Whether arrays are one example, as the module's docstring says."""
  if any(x.ndim == space for x in shown):
    return True
  return all(x.ndim == space + 1 and x.shape[-1] == 3 for x in shown)


def _check_shapes(
  fields: Sequence[Field], arrays: Sequence[np.ndarray], space: int, *, is_batch: bool = False
) -> None:
  """Refuses pictures of one example, or batches of them, that do not go together."""
  rank = space + is_batch  # without colours
  shown = [(f, x) for f, x in zip(fields, arrays, strict=True) if not f.is_vector]
  if is_batch and all(x.ndim == rank for _, x in shown):
    for f, x in shown:
      if kind := _CHANNELS.get(x.shape[-1]):
        raise UserError(
          f"{f.name} has the shape {x.shape}: one {kind} picture, or a batch of pictures "
          f"{x.shape[-1]} wide? Give {_NAMES[space]}, with 3 colours last, or a list"
        )
  grey = {x.shape[:-1] if x.ndim == rank + 1 and x.shape[-1] == 3 else x.shape for _, x in shown}
  if len(grey) != 1 or len(shape := grey.pop()) != rank:
    wanted = _NAMES[space] + f" or [B, {_NAMES[space][1:]}" * is_batch
    others = " and ".join(f.name for f, _ in shown[1:])
    got = " and ".join(str(x.shape) for _, x in shown)
    raise UserError(
      f"{shown[0][0].name} must be {wanted} and {others} of the same shape (or with 3 "
      f"colours last), got {got}"
    )
  if 0 in shape:
    raise UserError(f"an image without pixels: {shown[0][0].name} has the shape {shape}")
  kinds = [x.dtype == np.uint8 or np.issubdtype(x.dtype, np.floating) for _, x in shown]
  if not all(kinds) or len({x.dtype == np.uint8 for _, x in shown}) > 1:
    names = " and ".join(f.name for f, _ in shown)
    types = " and ".join(str(x.dtype) for _, x in shown)
    raise UserError(f"{names} must both be uint8 or both float, got {types}")


def _check_ranges(fields: Sequence[Field], columns: Sequence[Sequence[np.ndarray]]) -> None:
  """Refuses floats in another range than [-1, 1]; all pictures of a source decide together."""
  lowest = {}
  for f, column in zip(fields, columns, strict=True):
    floats = [x for x in column if x.dtype != np.uint8]
    if f.is_vector or not floats:
      continue
    # NumPy's: a NaN anywhere is the result.
    low, high = np.min([x.min() for x in floats]), np.max([x.max() for x in floats])
    if not (low >= -1 - pictures.ROUNDING and high <= 1 + pictures.ROUNDING):
      raise UserError(
        f"{f.name} is float and must lie in [-1, 1], got {low} to {high}: scale it, or give uint8"
      )
    lowest[f.name] = low
  for name, low in lowest.items():
    pictures.check_signed(name, low)


def _warn_of_colour(
  method: Method, columns: Sequence[Sequence[np.ndarray]], *, ambiguous: bool
) -> None:
  """Tells of colours that are not used; grey pictures in three equal channels lose nothing."""
  reading = " (taken for one picture [H, W, 3]; pictures 3 pixels wide: give lists)"
  for i, (f, column) in enumerate(zip(method.sources, columns, strict=True)):
    if f.is_vector or f.channels > 1 or i == coloured_source(method):
      continue
    if any(x.ndim > method.space and not color.is_neutral(x) for x in column):
      message = f"{f.name} is coloured: of it only the luma is used"
      warnings.warn(message + reading * ambiguous, stacklevel=4)  # where `fuse` was called
