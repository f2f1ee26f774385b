"""Writing what fusing two volumes gave: NIfTI, a DICOM series, pictures, the record."""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from dmfnet_jax.fusing.kinds import DICOM, PICTURE
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.fusing.record import write_record
from dmfnet_jax.io import grids, nifti, panels, paths, pictures
from dmfnet_jax.io.grids import Volume

_MONTAGE_ROWS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class FusedVolume:
  """A fused pair of volumes, all on A's grid [I, J, K].

  Attributes:
    a: the volume that gives the grid.
    grey_a: uint8, A through its window.
    shown_b: uint8, B through its window, or [I, J, K, 3] coloured.
    overlay: uint8 [I, J, K, 3], B laid over A; None where that was not asked for.
    luma: uint8, fused.
    rgb: uint8 [I, J, K, 3], the luma with B's colour; None where B is not coloured.
    std: float32, the luma's deviation over the noise draws, in grey levels; None without samples.
    plane: whose slices were fused.
    record: what the result depends on.
  """

  a: Volume
  grey_a: np.ndarray
  shown_b: np.ndarray
  overlay: np.ndarray | None
  luma: np.ndarray
  rgb: np.ndarray | None
  std: np.ndarray | None
  plane: str
  record: dict[str, Any]

  @property
  def shown(self) -> np.ndarray:
    """The result as to be looked at: coloured where B is."""
    return self.luma if self.rgb is None else self.rgb


def write_results(pair: Pair, result: FusedVolume, options: FuseOptions, *, alone: bool) -> None:
  """Writes the results of a pair, the fused volume last.

  Args:
    pair: says where to.
    result: what to write.
    options: of the run.
    alone: the run has this pair only: `options.montage` is a file, not a folder.

  Raises:
    UserError: a file cannot be written.
  """
  if options.montage is not None:
    target = paths.as_path(options.montage)
    is_file = alone and target.suffix.lower() in pictures.IMAGE_SUFFIXES and not target.is_dir()
    folder = paths.make_folder(target.parent if is_file else target)
    pictures.write_image(target if is_file else folder / f"{pair.stem}.png", _montage(result))
  if options.png:
    folder = paths.make_folder(pair.beside("_png"))
    for i, picture in enumerate(_pictures(result, result.shown)):
      pictures.write_image(folder / f"{result.plane}_{i:03d}.png", picture)
  if result.std is not None:
    nifti.write_nifti(pair.out_std, result.std, result.a)
  if result.overlay is not None:
    if pair.out_kind == PICTURE:
      pictures.write_image(pair.out_overlay, _pictures(result, result.overlay)[0])
    else:
      nifti.write_nifti(pair.out_overlay, result.overlay, result.a)
  if pair.out_kind == DICOM:
    from dmfnet_jax.io.dicom import write_secondary_capture

    # The record tells that the series is whole, also in place of an older one.
    paths.delete(pair.out_record)
    write_secondary_capture(pair.out, result.shown, result.a)
    write_record(pair.out_record, result.record)
    return
  write_record(pair.out_record, result.record)
  if pair.out_kind == PICTURE:
    pictures.write_image(pair.out, _pictures(result, result.shown)[0])
    return
  if options.rgb:
    coloured = result.rgb if result.rgb is not None else np.stack([result.luma] * 3, axis=-1)
    nifti.write_nifti(pair.beside("_rgb.nii.gz"), coloured, result.a)
  nifti.write_nifti(pair.out, result.luma, result.a)


def _montage(result: FusedVolume) -> np.ndarray:
  """Draws a few slices of A, B, the overlay where there is one, the result and its deviation.

  The slices are spread evenly over those with something in A or B; pixels are shown square.

  Returns:
    uint8 [height, width, 3].
  """
  columns = {"A": result.grey_a, "B": result.shown_b}
  columns |= {} if result.overlay is None else {"overlay": result.overlay}
  columns["fused"] = result.shown
  if result.std is not None:
    top = panels.deviation_top(result.std)
    overlaid = [
      panels.overlay_deviation(*plane, top) for plane in zip(result.luma, result.std, strict=True)
    ]
    columns[f"SD 0 to {top:g}"] = np.stack(overlaid)
  stacks = [_pictures(result, data) for data in columns.values()]
  flat = [stack.reshape(len(stack), -1).any(axis=1) for stack in stacks[:2]]
  filled = np.flatnonzero(flat[0] | flat[1])
  if not filled.size:
    filled = np.arange(len(stacks[0]))
  # From the middle of equal parts: the outermost slices show little.
  count = min(_MONTAGE_ROWS, filled.size)
  chosen = filled[((np.arange(count) + 0.5) * filled.size / count).astype(int)]
  size = _square_size(result, stacks[0].shape[1:3])
  rows = [[_resize(stack[i], size) for stack in stacks] for i in chosen]
  titles = [_slice_title(result, i) for i in chosen]
  return panels.panel(rows, column_titles=list(columns), row_titles=titles)


def _pictures(result: FusedVolume, data: np.ndarray) -> np.ndarray:
  return grids.to_pictures(data, result.a.affine, result.plane)


def _slice_title(result: FusedVolume, index: int) -> str:
  """Where a slice lies: its middle along the nearest world axis, or its number."""
  if not result.a.placed:
    return str(index)
  axis = grids.PLANES.index(result.plane)
  middle = grids.slice_position(result.a, result.plane, index)[axis]
  return f"{'xyz'[axis]} {middle:.0f} mm"


def _square_size(result: FusedVolume, shape: tuple[int, ...]) -> tuple[int, int]:
  """(width, height) in which pixels are square and the finer direction keeps its pixels."""
  height, width = grids.pixel_size(result.a, result.plane)
  finer = min(height, width)
  return round(shape[1] * width / finer), round(shape[0] * height / finer)


def _resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  image = Image.fromarray(np.ascontiguousarray(picture))
  return np.asarray(image.resize(size, Image.Resampling.BILINEAR))
