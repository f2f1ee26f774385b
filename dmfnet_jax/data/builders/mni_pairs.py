"""The embedded default dataset: MNI template slices with simulated PET, SPECT and CT.

Nothing is downloaded: the template lies inside the nilearn package. `mni_template.py` says how
slices are cut and divided, `simulate.py` and `simulate_ct.py` where each number of the simulation
is from. To get single pairs without TFDS, call `mni_template.mni_pair`.

| split | axial | coronal | sagittal | for each of PET, SPECT, CT | in all |
|---|---|---|---|---|---|
| train | 31 | 50 | 15 | 96 | 288 |
| validation | 10 | 12 | 5 | 27 | 81 |

Good for a first run, for tests and for demonstrations. It is one average brain: what a model learns
here says little about patients.
"""

import tensorflow_datasets as tfds

from dmfnet_jax.data import builders
from dmfnet_jax.data.builders import mni_template

_DESCRIPTION = """
Axial, coronal and sagittal slices of the skull-stripped ICBM 152 T1 template (2009a, non-linear
symmetric, 1 mm, as carried by nilearn), each paired with PET, SPECT and CT simulated from the
template's maps of grey and white matter: FDG-like and perfusion-like uptake with regional
variation, the scanner's point spread, Poisson noise and colour maps; Hounsfield units with a grown
skull in the brain window. 256 x 256 pictures with 1 mm pixels. Validation consists of whole blocks
of slices, set apart from the training slices by gaps; the brain is the same. The same bytes on
every run.

The template is Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University; it may be used, copied, modified and distributed for any
purpose and without fee if this notice appears in all copies, and comes without warranty.
"""

_CITATION = """
@article{fonov2011unbiased,
  title={Unbiased average age-appropriate atlases for pediatric studies},
  author={Fonov, Vladimir and Evans, Alan C and Botteron, Kelly and Almli, C Robert and
          McKinstry, Robert C and Collins, D Louis},
  journal={NeuroImage}, volume={54}, number={1}, pages={313--327}, year={2011}
}
@article{fonov2009unbiased,
  title={Unbiased nonlinear average age-appropriate brain templates from birth to adulthood},
  author={Fonov, V S and Evans, A C and McKinstry, R C and Almli, C R and Collins, D L},
  journal={NeuroImage}, volume={47}, pages={S102}, year={2009}
}
"""


class MniPairs(tfds.core.GeneratorBasedBuilder):
  """T1 template slices with simulated PET, SPECT and CT; see the module's docstring."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description=_DESCRIPTION,
      features=builders.pair_features(),
      homepage="https://nist.mni.mcgill.ca/icbm-152-nonlinear-atlases-2009/",
      citation=_CITATION,
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in ("train", "validation")}

  def _generate_examples(self, split: str):
    for modality in mni_template.MODALITIES:
      for plane, index in mni_template.slices_of(split):
        a, b, name = mni_template.mni_pair(modality, plane, index)
        yield name, {"a": a[..., None], "b": b, "name": name, "modality": modality}
