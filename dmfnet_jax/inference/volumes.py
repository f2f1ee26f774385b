"""Fuses volumes in memory slice by slice, or whole; the command does the same with files.

The sources lie on one grid (`grids.difference`) and in one frame of reference. Each becomes 8-bit
slices through its window: the `window` of a `Volume`, such as a DICOM file's, or else the default
of `io.windows`. A method for luma gets their luma, and B's chroma goes back where B is coloured.
The noise of a slice is drawn from (seed, "NAME/plane/index"), so a slice does not depend on the
others nor on the batch. A slice that is black in all sources stays black without being fused.

A method for whole volumes gets them as they lie in space: to the right, to the front and upward,
whatever the order in the file; voxels stay what they are.

The result's values are grey levels 0..255, not the units of the sources. It has A's place and, but
of a method that enlarges pictures (`Method.scale`), A's grid.
"""

import dataclasses
import string
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import nibabel
import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.sources import coloured_source
from dmfnet_jax.io import color, grids, modalities, nifti, paths, scaling
from dmfnet_jax.io.grids import Volume
from dmfnet_jax.io.windows import Asked, UsedWindow, choose_window

# The model holds float copies of what it is given: a large volume goes to it in pieces.
_BATCHES_PER_CALL = 4

OnDone = Callable[[int], None] | None


def fuse_volumes(
  model: Any,
  sources: Sequence[Any],
  *,
  name: str = "",
  seed: int = 0,
  samples: int | None = None,
  batch_size: int | None = None,
  on_done: OnDone = None,
  tile: int | str = "auto",
  emphasis: str | None = None,
) -> Any:
  """Fuses volumes, each a nibabel image or a `Volume`; for the options see `Model.fuse`.

  What the readers note of a volume, and that of a coloured one only the luma is used, are warnings.

  Returns:
    A nibabel image where the first source is one, uint8 or RGB24, or else a `Volume`, float32 or
    uint8 [I, J, K, 3], with the windows in its notes. With `samples`, a tuple of it and the
    deviation in grey levels (float32).

  Raises:
    UserError: they are not as many volumes as the method takes, not on one grid, or one of them
      cannot be fused.
  """
  fields = model.method.sources
  names = [field.name for field in fields]
  if len(sources) != len(fields):
    raise UserError(f"give {len(fields)} volumes, {', '.join(names)}, got {len(sources)}")
  volumes = [_to_volume(f.name, x) for f, x in zip(fields, sources, strict=True)]
  a = volumes[0]
  letters = string.ascii_uppercase[: len(volumes)]
  for letter, other in zip(letters[1:], volumes[1:], strict=True):
    if apart := grids.other_frame(a, other, letter):
      raise UserError(f'{apart}: if {letter} is, set its frame_uid to "" (dataclasses.replace)')
    if apart := grids.difference(a, other):
      raise UserError(
        f"A and {letter} lie on different grids: {apart}: once {letter} is registered to A, put it "
        "there, by io.grids.resample or nibabel.processing.resample_from_to"
      )
  shown, windows = zip(*map(show, names, volumes), strict=True)
  for field, volume in zip(fields, volumes, strict=True):
    if volume.is_rgb and field.drops_colour and not color.is_neutral(volume.data):
      warnings.warn(f"{field.name} is coloured: of it only the luma is used", stacklevel=3)
  luma, rgb, std = fuse_shown(
    model,
    shown,
    a.affine,
    grids.find_plane(None, a),
    name,
    seed=seed,
    samples=samples,
    batch_size=batch_size,
    on_done=on_done,
    tile=tile,
    emphasis=emphasis,
  )
  notes = tuple(f"window of {k}: {w.ends}" for k, w in zip(names, windows, strict=True) if w)
  results = [luma if rgb is None else rgb] + ([] if std is None else [std])
  # Voxels are those of A, or parts of them.
  like = [grids.with_data(a, x) for x in results]
  if isinstance(sources[0], Volume):
    made: list[Any] = [
      dataclasses.replace(
        x,
        data=x.data if x.is_rgb else x.data.astype(np.float32),
        window=None,
        unit="",
        notes=notes,
      )
      for x in like
    ]
  else:
    made = [nifti.to_image(x.data, x) for x in like]
  return made[0] if samples is None else tuple(made)


def fuse_shown(
  model: Any,
  shown: Sequence[np.ndarray],
  affine: np.ndarray,
  plane: str,
  name: str,
  *,
  seed: int,
  samples: int | None,
  batch_size: int | None,
  on_done: OnDone,
  tile: int | str,
  emphasis: str | None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
  """Fuses volumes as they are shown, on one grid.

  Args:
    model: a `Model`, or what fuses like one.
    shown: the method's sources, uint8 [I, J, K], or [I, J, K, 3] in colour, each.
    affine: of the grid.
    plane: whose slices are fused, one of `grids.PLANES`; no matter where volumes are fused whole.
    name: of the pair, from which the noise is drawn.
    seed: of the noise.
    samples: how many draws, None for one without a deviation.
    batch_size: see `Model.fuse`.
    on_done: told how many slices are done.
    tile: see `Model.fuse`.
    emphasis: see `Model.fuse`.

  Returns:
    The fused luma, uint8 [I, J, K], or so many times as large as the method enlarges the slices;
    the same in colour, uint8 [I, J, K, 3], or None where the method makes no colours and its source
    that gives them has none; and the luma's deviation in grey levels, float32 [I, J, K], or None
    without samples.
  """
  fields = model.method.sources
  given = [
    by_plane(color.rgb_to_luma, x) if x.ndim == 4 and field.channels == 1 else x
    for field, x in zip(fields, shown, strict=True)
  ]
  leading = coloured_source(model.method)
  takes_colour = fields[leading].gives_colour and shown[leading].ndim == 4
  stacks = [grids.to_pictures(x, affine, plane) for x in given]
  if model.method.space == 3:
    fused = model.fuse(*(grids.straighten(x, affine) for x in given), names=name, tile=tile)
    if on_done is not None:
      on_done(len(stacks[0]))
    luma = grids.unstraighten(fused, affine)
    return luma, by_plane(color.replace_luma, shown[leading], luma) if takes_colour else None, None
  count, height, width = stacks[0].shape[:3]
  todo = [i for i in range(count) if any(stack[i].any() for stack in stacks)]
  at_once = _BATCHES_PER_CALL * model.batch_size(model.padded_size(height, width), batch_size)
  if on_done is not None:
    on_done(count - len(todo))
  times, is_rgb = model.method.scale(model.config), model.method.outputs[0].channels > 1
  size = count, times * height, times * width
  fused = np.zeros((*size, 3) if is_rgb else size, np.uint8)
  std = None if samples is None else np.zeros(size, np.float32)
  for start in range(0, len(todo), at_once):
    chosen = todo[start : start + at_once]
    asked: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "on_done": on_done}
    asked |= {"tile": tile, "emphasis": emphasis}
    asked["names"] = [f"{name}/{plane}/{i}" for i in chosen]
    # As lists: slices may be as narrow as they like.
    pictures = [list(stack[chosen]) for stack in stacks]
    if std is None:
      fused[chosen] = model.fuse(*pictures, **asked)
    else:
      fused[chosen], std[chosen] = model.fuse(*pictures, **asked, samples=samples)
  luma = grids.from_pictures(fused, affine, plane)
  rgb = None
  if is_rgb:
    luma, rgb = by_plane(color.rgb_to_luma, luma), luma
  elif takes_colour:
    rgb = by_plane(color.replace_luma, shown[leading], luma)
  return luma, rgb, None if std is None else grids.from_pictures(std, affine, plane)


def by_plane(function: Callable[..., np.ndarray], *volumes: np.ndarray) -> np.ndarray:
  """Applies colour arithmetic plane by plane: its integers take many times the volume's memory."""
  return np.stack([function(*planes) for planes in zip(*volumes, strict=True)])


def show(name: Any, volume: Volume, asked: Asked = None) -> tuple[np.ndarray, UsedWindow | None]:
  """A volume through a window: uint8 [I, J, K]; a coloured one as it is, [I, J, K, 3].

  Args:
    name: what an error begins with, such as its path.
    volume: to be shown.
    asked: the window that was asked for, see `windows.parse_window`.

  Raises:
    UserError: the window does not fit the volume, or there is nothing to see.
  """
  if volume.is_rgb:
    if asked is not None:
      raise UserError(f"{name}: is coloured already: a window is for scalar volumes")
    return volume.data, None
  used = choose_window(
    volume.data,
    name,
    asked,
    of_file=volume.window,
    unit=volume.unit,
    modality=volume.modality,
  )
  return scaling.to_uint8(volume.data, used.window), used


def _to_volume(name: str, source: Any) -> Volume:
  if isinstance(source, Volume):
    return source
  if not isinstance(source, nibabel.spatialimages.SpatialImage):
    kind = type(source).__name__
    raise UserError(f"{name} must be a nibabel image or a Volume as the other is, got {kind}")
  try:
    # A file's name may tell the modality.
    modality = modalities.of_name(paths.as_path(source.get_filename() or ""))
    volume = dataclasses.replace(nifti.from_image(source), modality=modality)
  except UserError as error:
    raise UserError(f"{name}: {error}") from error
  for note in volume.notes:
    warnings.warn(f"{name}: {note}", stacklevel=5)
  return volume
