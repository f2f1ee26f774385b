"""Three MR contrasts of the MNI template's slices: its T1, and T2 and FLAIR simulated from tissues.

The slices and their splits are those of `mni_pairs`: 96 for training, 27 for validation. T2 and
FLAIR are weighted sums of the template's fractions of grey matter, white matter and CSF, with the
contrast and noise of one scan each (`simulate.magnitude_image`). So everything in FLAIR is to be
seen in T1 and T2: good for a first run, and to try a method that makes a missing contrast.
"""

import zlib

import numpy as np
import tensorflow_datasets as tfds

from dmfnet_jax.data import builders
from dmfnet_jax.data.builders import mni_template, simulate

# Of grey matter, white matter and CSF. The order is that of T2-weighted pictures, and of those with
# the fluid's signal nulled; how much is a choice.
_BRIGHTNESS = {"t2": (0.55, 0.4, 1.0), "flair": (0.8, 0.6, 0.1)}


class MniContrasts(tfds.core.GeneratorBasedBuilder):
  """T1 of the template with simulated T2 and FLAIR; see the module's docstring."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="ICBM152 T1 slices with simulated T2 and FLAIR; see mni_pairs.",
      features=builders.picture_features(dict.fromkeys(("t1", *_BRIGHTNESS), 1)),
      homepage="https://nist.mni.mcgill.ca/icbm-152-nonlinear-atlases-2009/",
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in ("train", "validation")}

  def _generate_examples(self, split: str):
    for plane, index in mni_template.slices_of(split):
      name, slices = mni_slices(plane, index)
      pictures = {contrast: x[..., None] for contrast, x in slices.items()}
      yield name, pictures | {"name": name, "modality": "MRI"}


def mni_slices(plane: str, index: int) -> tuple[str, dict[str, np.ndarray]]:
  """Makes one example; see `mni_template.mni_pair` for arguments and errors.

  Returns:
    Its name, such as "axial_096", and uint8 [256, 256] by contrast: "t1", "t2", "flair".
  """
  t1, _, name = mni_template.mni_pair("PET", plane, index)
  name = name.removeprefix("pet_")
  tissue = mni_template.tissue_slab(plane, index, 0)[:, 0]
  slices = {"t1": t1}
  for contrast, weights in _BRIGHTNESS.items():
    rng = np.random.default_rng(zlib.crc32(f"{contrast}_{name}".encode()))
    image = np.tensordot(weights, tissue, axes=1)
    slices[contrast] = simulate.magnitude_image(np.clip(image, 0, 1), image > 0, rng)
  return name, slices
