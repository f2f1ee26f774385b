"""Volumes of the MNI template with simulated PET: nothing is downloaded, as for `mni_pairs`.

The T1 template and FDG-like uptake in its tissues, on the template's own grid of 1 mm: axes to the
right, to the front and upward. There is one brain, so the splits are parts of it, with a gap
between them (`FRONT`): the back of the head is for training, the front for validation. A study is
the same anatomy with another contrast and noise of the MRI, and another uptake and noise of the
PET.

| split | studies | voxels |
|---|---|---|
| train | 4 | 149 x 111 x 157 |
| validation | 1 | 149 x 66 x 157 |

    from dmfnet_jax.data.builders.mni_volumes import write_nifti
    write_nifti("mri.nii.gz", "pet.nii.gz")  # all of the template
"""

import zlib
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from dmfnet_jax.data.builders import mni_template, simulate

STUDIES = {"train": 4, "validation": 1}
# [first, last) voxels of the template: to the right and upward all of the brain, to the front
# apart by 8 mm, more than the scanner's point spread.
RIGHT, UP = (24, 173), (0, 157)
FRONT = {"train": (25, 136), "validation": (144, 210)}


class MniVolumes(tfds.core.GeneratorBasedBuilder):
  """Parts of the T1 template with simulated PET; see the module's docstring."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    volume = tfds.features.Tensor(
      shape=(None, None, None, 1), dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB
    )
    return self.dataset_info_from_configs(
      description="Parts of the ICBM152 head with simulated PET, volumes; see mni_pairs.",
      features=tfds.features.FeaturesDict(
        {
          "a": volume,
          "b": volume,
          "name": tfds.features.Text(),
          "modality": tfds.features.Text(),
        }
      ),
      homepage="https://nist.mni.mcgill.ca/icbm-152-nonlinear-atlases-2009/",
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in STUDIES}

  def _generate_examples(self, split: str):
    for study in range(STUDIES[split]):
      a, b = mni_volume(name := f"pet_{split}_{study}", (RIGHT, FRONT[split], UP))
      yield name, {"a": a[..., None], "b": b[..., None], "name": name, "modality": "PET"}


def mni_volume(
  name: str, box: tuple[tuple[int, int], ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Makes a study, or a part of one; the same arguments give the same bytes.

  Args:
    name: Draws contrast, uptake and noise.
    box: The first voxel and the one after the last along each axis; None: all of the template.

  Returns:
    mri: uint8 [X, Y, Z], the T1.
    pet: uint8 [X, Y, Z], 255 for what `mni_pairs` shows in the last colour.

  Raises:
    UserError: nilearn with its template is not installed.
  """
  box = box or tuple((0, side) for side in mni_template.SHAPE)
  window = tuple(slice(*ends) for ends in box)
  t1, black, white = mni_template.t1_volume()
  tissue = np.stack([fraction[window] for fraction in mni_template.tissue_volumes()])
  axes = [
    np.arange(*ends) + origin for ends, origin in zip(box, mni_template.ORIGIN_MM, strict=True)
  ]
  coordinates = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float64)
  mri_rng, pet_rng = np.random.default_rng(zlib.crc32(name.encode())).spawn(2)
  t1 = t1[window]
  scaled = np.clip((t1 - black) / (white - black), 0, 1)
  mri = simulate.magnitude_image(scaled, t1 > 0, mri_rng)
  image = simulate.tracer_volume(simulate.PET, tissue, coordinates, pet_rng)
  pet = np.clip(np.rint(image / simulate.PET.display_top * 255), 0, 255).astype(np.uint8)
  return mri, pet


def write_nifti(mri_path: str | Path, pet_path: str | Path, name: str = "pet_whole") -> None:
  """Writes a whole study, MRI and PET, as two NIfTI files that say where they lie."""
  import nibabel

  affine = np.eye(4)
  affine[:3, 3] = mni_template.ORIGIN_MM
  for path, volume in zip((mri_path, pet_path), mni_volume(name), strict=True):
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
