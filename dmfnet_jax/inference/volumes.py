"""Fuses volumes in memory slice by slice, or whole; the command does the same with files.

A and B lie on one grid (`grids.difference`) and in one frame of reference. Each becomes 8-bit
slices through its window: the `window` of a `Volume`, such as a DICOM file's, or else the default
of `io.windows`. The network fuses their luma, and B's chroma goes back where B is coloured. The
noise of a slice is drawn from (seed, "NAME/plane/index"), so a slice does not depend on the others
nor on the batch. A slice that is black in both stays black without being fused.

A method for whole volumes gets them as they lie in space: to the right, to the front and upward,
whatever the order in the file; voxels stay what they are.

The result's values are grey levels 0..255, not the units of A and B. It has A's grid and place.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import nibabel
import numpy as np

from dmfnet_jax.errors import UserError
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
  """Fuses A and B, each a nibabel image or a `Volume`; for the options see `Model.fuse`.

  What the readers note of a volume, and that of a coloured A only the luma is used, are warnings.

  Returns:
    A nibabel image where A is one, uint8 or RGB24, or else a `Volume`, float32 or uint8
    [I, J, K, 3], with the windows in its notes. With `samples`, a tuple of it and the deviation in
    grey levels (float32).

  Raises:
    UserError: they are not two volumes on one grid, one of them cannot be fused, or the method does
      not fuse two.
  """
  fields = model.method.sources
  if len(fields) != 2:
    takes = ", ".join(field.name for field in fields)
    raise UserError(f"volumes are fused by methods for two sources; this one takes {takes}")
  if len(sources) != 2:
    raise UserError(f"give two volumes, A and B, got {len(sources)}")
  a, b = (_to_volume(f.name, x) for f, x in zip(fields, sources, strict=True))
  if apart := grids.other_frame(a, b):
    raise UserError(f'{apart}: if B is, set its frame_uid to "" (dataclasses.replace)')
  if apart := grids.difference(a, b):
    raise UserError(
      f"A and B lie on different grids: {apart}: once B is registered to A, put it there, by "
      "io.grids.resample or nibabel.processing.resample_from_to"
    )
  (shown_a, window_a), (shown_b, window_b) = show("a", a), show("b", b)
  if a.is_rgb and not color.is_neutral(a.data):
    warnings.warn("a is coloured: of it only the luma is used", stacklevel=3)
  plane = grids.find_plane(None, a)
  luma, rgb, std = fuse_shown(
    model,
    by_plane(color.rgb_to_luma, shown_a) if a.is_rgb else shown_a,
    shown_b,
    a.affine,
    plane,
    name,
    seed=seed,
    samples=samples,
    batch_size=batch_size,
    on_done=on_done,
    tile=tile,
    emphasis=emphasis,
  )
  notes = tuple(f"window of {k}: {w.ends}" for k, w in (("a", window_a), ("b", window_b)) if w)
  results = [luma if rgb is None else rgb] + ([] if std is None else [std])
  if isinstance(sources[0], Volume):
    kept = dataclasses.replace(a, window=None, unit="", notes=notes)
    made: list[Any] = [
      dataclasses.replace(kept, data=x if x.ndim == 4 else x.astype(np.float32)) for x in results
    ]
  else:
    made = [nifti.to_image(x, a) for x in results]
  return made[0] if samples is None else tuple(made)


def fuse_shown(
  model: Any,
  grey_a: np.ndarray,
  shown_b: np.ndarray,
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
  """Fuses two volumes as they are shown, on one grid.

  Args:
    model: a `Model`, or what fuses like one.
    grey_a: uint8 [I, J, K].
    shown_b: uint8 [I, J, K], or [I, J, K, 3] in colour.
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
    The fused luma, uint8 [I, J, K]; the same with B's colour, uint8 [I, J, K, 3], or None where B
    has none; and the luma's deviation in grey levels, float32 [I, J, K], or None without samples.
  """
  has_colour = shown_b.ndim == 4
  grey_b = by_plane(color.rgb_to_luma, shown_b) if has_colour else shown_b
  a, b = (grids.to_pictures(grey, affine, plane) for grey in (grey_a, grey_b))
  if model.method.space == 3:
    straight = (grids.straighten(grey, affine) for grey in (grey_a, grey_b))
    fused = model.fuse(*straight, names=name, tile=tile)
    if on_done is not None:
      on_done(len(a))
    luma = grids.unstraighten(fused, affine)
    return luma, by_plane(color.replace_luma, shown_b, luma) if has_colour else None, None
  todo = [i for i in range(len(a)) if a[i].any() or b[i].any()]
  fused = np.zeros(a.shape, np.uint8)
  std = None if samples is None else np.zeros(a.shape, np.float32)
  at_once = _BATCHES_PER_CALL * model.batch_size(model.padded_size(*a.shape[1:]), batch_size)
  if on_done is not None:
    on_done(len(a) - len(todo))
  for start in range(0, len(todo), at_once):
    chosen = todo[start : start + at_once]
    asked: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "on_done": on_done}
    asked |= {"tile": tile, "emphasis": emphasis}
    asked["names"] = [f"{name}/{plane}/{i}" for i in chosen]
    # As lists: slices may be as narrow as they like.
    pair = list(a[chosen]), list(b[chosen])
    if std is None:
      fused[chosen] = model.fuse(*pair, **asked)
    else:
      fused[chosen], std[chosen] = model.fuse(*pair, **asked, samples=samples)
  luma = grids.from_pictures(fused, affine, plane)
  gives_colour = any(field.gives_colour for field in model.method.sources)
  rgb = by_plane(color.replace_luma, shown_b, luma) if has_colour and gives_colour else None
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
