"""Writing what fusing volumes gave: NIfTI, a DICOM series, pictures, the record."""

import dataclasses
import string
from typing import Any, NamedTuple

import numpy as np

from dmfnet_jax.fusing.kinds import DICOM, PICTURE
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.montage import draw_montage
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.fusing.record import write_record
from dmfnet_jax.io import grids, nifti, paths, pictures
from dmfnet_jax.io.grids import Volume
from dmfnet_jax.io.windows import UsedWindow


class ShownSource(NamedTuple):
  """A source on A's grid.

  Attributes:
    volume: in its own values.
    shown: uint8 [I, J, K] through its window, or [I, J, K, 3] in the colours that are of use.
    window: that it is shown through; None where it is coloured, or shown as stored.
  """

  volume: Volume
  shown: np.ndarray
  window: UsedWindow | None


@dataclasses.dataclass(frozen=True, eq=False)
class FusedVolume:
  """Fused volumes, on A's grid [I, J, K] or, but for sources and overlay, on finer voxels of it.

  Attributes:
    sources: A, which gives the grid, and the others.
    overlay: uint8 [I, J, K, 3], the last source laid over A; None where that was not asked for.
    luma: uint8, fused.
    rgb: uint8 [I, J, K, 3], the same in colour; None where there is none.
    std: float32, the luma's deviation over the noise draws, in grey levels; None without samples.
    plane: whose slices were fused.
    table: the colours of a last source that has none of its own, uint8 [256, 3]; None where it
      stays grey.
    record: what the result depends on.
  """

  sources: tuple[ShownSource, ...]
  overlay: np.ndarray | None
  luma: np.ndarray
  rgb: np.ndarray | None
  std: np.ndarray | None
  plane: str
  table: np.ndarray | None
  record: dict[str, Any]

  @property
  def a(self) -> Volume:
    """The volume that gives the place."""
    return self.sources[0].volume

  @property
  def shown(self) -> np.ndarray:
    """The result as to be looked at: in colour where there is one."""
    return self.luma if self.rgb is None else self.rgb


def write_results(pair: Pair, result: FusedVolume, options: FuseOptions, *, alone: bool) -> None:
  """Writes the results of volumes, the fused one last.

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
    pictures.write_image(target if is_file else folder / f"{pair.stem}.png", draw_montage(result))
  if options.png:
    folder = paths.make_folder(pair.beside("_png"))
    for i, picture in enumerate(_pictures(result, result.shown)):
      pictures.write_image(folder / f"{result.plane}_{i:03d}.png", picture)
  if result.std is not None:
    nifti.write_nifti(pair.out_std, result.std, grids.with_data(result.a, result.std))
  # Programs on NumPy alone, such as nilearn, do not read RGB24.
  as_4d = options.rgb == "4d"
  if options.save_b:
    for letter, source in zip(string.ascii_lowercase[1:], result.sources[1:], strict=False):
      place = pair.beside("_resampled" + ("" if letter == "b" else f"_{letter}") + ".nii.gz")
      nifti.write_nifti(place, source.volume.data, result.a, as_4d=as_4d)
  if result.overlay is not None:
    if pair.out_kind == PICTURE:
      pictures.write_image(pair.out_overlay, _pictures(result, result.overlay)[0])
    else:
      nifti.write_nifti(pair.out_overlay, result.overlay, result.a, as_4d=as_4d)
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
  finer = grids.with_data(result.a, result.luma)
  if options.rgb:
    coloured = result.rgb if result.rgb is not None else np.stack([result.luma] * 3, axis=-1)
    nifti.write_nifti(pair.beside("_rgb.nii.gz"), coloured, finer, as_4d=as_4d)
  nifti.write_nifti(pair.out, result.luma, finer)


def _pictures(result: FusedVolume, data: np.ndarray) -> np.ndarray:
  return grids.to_pictures(data, result.a.affine, result.plane)
