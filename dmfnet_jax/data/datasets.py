"""The datasets by name, for whoever only names them: standard library only."""

from typing import NamedTuple


class Dataset(NamedTuple):
  """A dataset that can be prepared.

  Attributes:
    builder: Its builder's class, in the module `dmfnet_jax.data.builders.NAME`.
    about: What it is, in a few words.
    brings: Whether nothing has to be on disk before.
    kinds: What its pairs are, A first, in the words of `io.modalities`; empty where anything.
  """

  builder: str
  about: str
  brings: bool = False
  kinds: tuple[str, ...] = ()


_BRAINS = ("MRI-CT", "MRI-PET", "MRI-SPECT")

DATASETS = {
  "derm7pt": Dataset("Derm7pt", "skin lesions in two photographs, and the seven-point checklist"),
  "harvard_mmif": Dataset(
    "HarvardMmif", "MRI with CT, PET, SPECT of the Harvard brain atlas", kinds=_BRAINS
  ),
  "infrared_visible": Dataset(
    "InfraredVisible",
    "registered photographs: RoadScene, MSRS, M3FD, LLVIP, TNO or yours",
    kinds=("infrared-visible",),
  ),
  "made_lesions": Dataset(
    "MadeLesions", "made-up lesions in the form of derm7pt, by a rule", brings=True
  ),
  "mni_contrasts": Dataset(
    "MniContrasts", "ICBM152 slices with simulated T2 and FLAIR", brings=True
  ),
  "mni_pairs": Dataset(
    "MniPairs", "ICBM152 slices with simulated CT, PET, SPECT", brings=True, kinds=_BRAINS
  ),
  "mni_triples": Dataset(
    "MniTriples", "ICBM152 slices with simulated CT and PET, and a fused picture", brings=True
  ),
  "mni_volumes": Dataset(
    "MniVolumes", "parts of the ICBM152 head with simulated PET", brings=True, kinds=("MRI-PET",)
  ),
  "mri_contrasts": Dataset(
    "MriContrasts", "T1, T1ce, T2 and FLAIR of MR scans: four folders, or NIfTI as BraTS has them"
  ),
  "paired_folder": Dataset("PairedFolder", "two folders of yours, paired by file stem"),
  "paired_volumes": Dataset(
    "PairedVolumes", "volumes of yours, cut into slices: two folders, BIDS, or a list of pairs"
  ),
  "triples_folder": Dataset(
    "TriplesFolder", "three folders of yours and one of fused pictures to imitate"
  ),
}
