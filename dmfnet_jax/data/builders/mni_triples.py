"""Three sources of the MNI template's slices, and a picture of all three to imitate.

The slices and their splits are those of `mni_pairs`: 96 for training, 27 for validation.

- a: the T1 template; b: the simulated CT; c: the simulated PET, in colour.
- target: the three fused at their full resolution by `fuse_sharp`, which is a rule of ours: how the
  published sets of fused triples were made is not known.

Good for a first run, as `mni_pairs` is. A model can learn no better than the rule.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from scipy import ndimage

from dmfnet_jax.data import builders
from dmfnet_jax.data.builders import mni_template
from dmfnet_jax.io import color, grids, nifti, paths
from dmfnet_jax.io.grids import Volume
from dmfnet_jax.io.pictures import write_image

_SCALES = (1, 2, 4, 8)  # pixels, deviations of the Gaussians between the bands
# How much a source's detail counts. PET's is coarse, and of its noise.
_DETAIL = (1.0, 0.8, 0.5)


class MniTriples(tfds.core.GeneratorBasedBuilder):
  """T1, CT and PET of the template with a fused picture; see the module's docstring."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="ICBM152 slices with simulated CT and PET and a fused picture; see mni_pairs.",
      features=builders.pair_features(("c", "target")),
      homepage="https://nist.mni.mcgill.ca/icbm-152-nonlinear-atlases-2009/",
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in ("train", "validation")}

  def _generate_examples(self, split: str):
    for plane, index in mni_template.slices_of(split):
      t1, ct, pet, target, name = mni_triple(plane, index)
      pictures = {"a": t1[..., None], "b": ct, "c": pet, "target": target}
      yield name, pictures | {"name": name, "modality": "other"}


def mni_triple(
  plane: str, index: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
  """Makes one example; see `mni_template.mni_pair` for arguments and errors.

  Returns:
    t1: uint8 [256, 256].
    ct: uint8 [256, 256, 3], grey.
    pet: uint8 [256, 256, 3].
    target: uint8 [256, 256, 3].
    name: Such as "axial_096".
  """
  t1, pet, name = mni_template.mni_pair("PET", plane, index)
  _, ct, _ = mni_template.mni_pair("CT", plane, index)
  return t1, ct, pet, fuse_sharp((t1, ct, pet), _DETAIL), name.removeprefix("pet_")


def write_files(folder: str | Path, factor: int = 2) -> None:
  """Writes the validation's sources, made coarse, and their targets: PNG in a, b, c and target.

  Args:
    folder: of the four folders.
    factor: the targets' sides over the sources'.
  """
  place = Path(folder)
  for name in ("a", "b", "c", "target"):
    paths.make_folder(place / name)
  for plane, index in mni_template.slices_of("validation"):
    *sources, target, name = mni_triple(plane, index)
    for source, sharp in zip("abc", sources, strict=True):
      write_image(place / source / f"{name}.png", _coarse(sharp, factor))
    write_image(place / "target" / f"{name}.png", target)


def write_volumes(folder: str | Path, factor: int = 2) -> None:
  """Writes a slab of the validation's axial slices: t1.nii.gz, ct.nii.gz and pet.nii.gz.

  Args:
    folder: of the three files; PET is in colour (RGB24).
    factor: how many mm a voxel is wide and high; slices are `mni_template.STEP` mm thick.
  """
  place = paths.make_folder(folder)
  indices = range(*mni_template.VALIDATION_BLOCKS["axial"][-1], mni_template.STEP)
  slices = [mni_triple("axial", index)[:3] for index in indices]
  affine = np.diag([factor, factor, mni_template.STEP, 1.0])
  # Pictures run from the largest x and y to the least.
  first = mni_template.slice_coordinates("axial", indices[0])[:, -1, -1]
  affine[:3, 3] = first + np.array([factor - 1, factor - 1, 0]) / 2
  for name, stack in zip(("t1", "ct", "pet"), zip(*slices, strict=True), strict=True):
    pictures = np.stack([_coarse(color.drop_neutral(sharp), factor) for sharp in stack])
    volume = Volume(grids.from_pictures(pictures, affine, "axial"), affine)
    nifti.write_nifti(place / f"{name}.nii.gz", volume.data, volume)


def _coarse(sharp: np.ndarray, factor: int) -> np.ndarray:
  size = sharp.shape[1] // factor, sharp.shape[0] // factor
  return np.asarray(Image.fromarray(sharp).resize(size, Image.Resampling.BICUBIC))


def fuse_sharp(sources: Sequence[np.ndarray], detail: Sequence[float]) -> np.ndarray:
  """Fuses by scales: of every band the strongest source, of the coarsest picture the brightest.

  Args:
    sources: uint8 [H, W] or [H, W, 3]; the result has the colour of the last one.
    detail: what the bands of each count before they are compared.

  Returns:
    uint8 [H, W, 3].
  """
  finer = np.stack([color.to_grey(source) for source in sources]).astype(np.float32)
  fused = np.zeros(finer.shape[1:], np.float32)
  lumas = finer
  for scale in _SCALES:
    coarser = ndimage.gaussian_filter(lumas, scale, axes=(1, 2), mode="nearest")
    bands = finer - coarser
    strongest = np.argmax(np.reshape(detail, (-1, 1, 1)) * np.abs(bands), axis=0)
    fused += np.take_along_axis(bands, strongest[None], axis=0)[0]
    finer = coarser
  luma = np.rint(np.clip(fused + finer.max(0), 0, 255)).astype(np.uint8)
  return color.replace_luma(builders.three_channels(sources[-1]), luma)
