"""Registered brain pairs of the Harvard Whole Brain Atlas (AANLIB), from a folder of the user's.

The atlas states no licence for redistribution, so nothing is downloaded: `manual_dir` holds PNGs of
256 x 256 whose stem is the atlas' case number followed by a three-digit slice (`28005`: case 28,
slice 5). Two layouts are understood, each at any depth under `manual_dir`:

1. `ct`, `pet` or `spect` folders with `mri` and `other` in them, under `train`, `val` (or
   `validation`) and `reference` (or `test`): taken as they are divided. Without such a level, the
   lists below divide them.
2. The layout of the public fusion collections: `CT` beside `MRI`, `PET` beside `MRI`, `SPECT`
   beside `MRI` (`CT-MRI/CT`, `CT-MRI/MRI`, ...). A train/test level above them is *ignored*,
   because those divisions were drawn slice by slice; the lists below divide them. A pair found
   twice (some copies hold the whole and its division) counts once.

**The split is by case.** A case number is taken for one patient throughout the atlas: the MRIs of
case 28, for one, are the same pictures, pixel for pixel, in the CT and in the SPECT pairs. So the
lists hold case numbers, regardless of the modality.

- "validation": all pairs of the cases `VALIDATION_CASES`.
- "test": the pairs `TEST_STEMS`, for which fused pictures of published programs exist. They are
  other slices of cases that "train" (or "validation") also has: good for comparing programs on the
  same inputs, *not* a measure of how a model does on new patients.
- "cddfuse_test": all pairs of the cases `CDDFUSE_CASES`, on which the published medical table of
  arXiv 2211.14461 was measured for CT and SPECT. Those of them that "test" has are in both.
- "train": everything else.

A copy that is divided already may have one patient in two splits. It is still taken as it is, and
`prepare` prints the cases: a validation loss on them flatters.
"""

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import tensorflow_datasets as tfds

from dmfnet_jax.data import builders
from dmfnet_jax.errors import UserError

VALIDATION_CASES = frozenset({2, 21, 25})
# CT has case 16 only, SPECT the other two only.
CDDFUSE_CASES = frozenset({16, 9, 36})
TEST_STEMS = {
  "CT": frozenset({"16005", "16018", "28005", "34009"}),
  "PET": frozenset({"25033", "30065", "30100", "41095"}),
  "SPECT": frozenset({"4011", "18017", "22010", "29013"}),
}

SPLITS = (*builders.SPLITS, "cddfuse_test")
_SPLIT_FOLDERS = builders.SPLIT_FOLDERS | {"reference": "test", "cddfuse_test": "cddfuse_test"}
_LAYOUTS = (
  "{train,val,reference}/{ct,pet,spect}/{mri,other} or "
  "CT-MRI/{CT,MRI}, PET-MRI/{PET,MRI}, SPECT-MRI/{SPECT,MRI}"
)


class Pair(NamedTuple):
  """One pair of files and its split."""

  split: str
  modality: str
  case: int
  stem: str
  name: str  # unique in its split: the same stem occurs with several modalities
  a: Path
  b: Path


class HarvardMmif(tfds.core.GeneratorBasedBuilder):
  """MRI with CT, PET or SPECT; see the module's docstring for folders and splits."""

  VERSION = tfds.core.Version("2.0.0")
  RELEASE_NOTES: ClassVar = {
    "2.0.0": "the cases of a published table are a split, cddfuse_test, no longer in train"
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Give the folder with the pictures as manual_dir: {_LAYOUTS}."

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="MRI with CT, PET or SPECT: slices of the Harvard Whole Brain Atlas.",
      features=builders.pair_features(),
      homepage="https://www.med.harvard.edu/aanlib/",
    )

  def _split_generators(self, dl_manager):
    pairs = find_pairs(builders.manual_folder(self, dl_manager))
    self.notes = [
      f"case {case} is in {' and '.join(splits)}" for case, splits in shared_cases(pairs).items()
    ]
    by_split = itertools.groupby(pairs, key=lambda pair: pair.split)
    return {split: self._generate_examples(list(members)) for split, members in by_split}

  def _generate_examples(self, pairs):
    for pair in pairs:
      a, b = builders.read_pair(pair.a, pair.b)
      yield pair.name, {"a": a, "b": b, "name": pair.name, "modality": pair.modality}


def find_pairs(manual_dir: str | Path) -> list[Pair]:
  """Finds every pair under a folder and the split it belongs to.

  Args:
    manual_dir: A folder in one of the layouts of the module's docstring.

  Returns:
    The pairs, sorted by split, modality, case and slice; each (modality, stem) once, or twice where
    the lists name it for "test" and "cddfuse_test".

  Raises:
    UserError: No pairs are found, a picture has no partner, or a name is not a case and a slice.
  """
  pairs: dict[tuple[str, str], list[Pair]] = {}
  folders = [Path(folder) for folder, _, _ in os.walk(manual_dir, followlinks=True)]
  # Shallow folders first: where a collection comes whole and divided, the whole is read.
  for folder in sorted(folders, key=lambda path: (len(path.parts), str(path))):
    for modality, a_dir, b_dir, split in _picture_folders(folder, Path(manual_dir)):
      for stem, (a_path, b_path) in builders.match_stems(a_dir, b_dir).items():
        if (modality, stem) in pairs:
          continue
        case = _case(stem, a_path)
        name = f"{modality.lower()}_{stem}"
        pairs[modality, stem] = [
          Pair(of_pair, modality, case, stem, name, a_path, b_path)
          for of_pair in ([split] if split else _listed(modality, case, stem))
        ]
  if not pairs:
    raise UserError(f"no pairs under {manual_dir}; expected {_LAYOUTS}")
  return sorted(
    itertools.chain.from_iterable(pairs.values()),
    key=lambda pair: (SPLITS.index(pair.split), pair.modality, int(pair.stem)),
  )


def shared_cases(pairs: list[Pair]) -> dict[int, list[str]]:
  """Finds the cases that lie in both "train" and "validation".

  Returns:
    A dict from case to texts such as "train (CT, PET)", one for each of the two splits.
  """
  where: dict[int, dict[str, set[str]]] = {}
  for pair in pairs:
    where.setdefault(pair.case, {}).setdefault(pair.split, set()).add(pair.modality)
  return {
    case: [f"{split} ({', '.join(sorted(splits[split]))})" for split in ("train", "validation")]
    for case, splits in sorted(where.items())
    if {"train", "validation"} <= set(splits)
  }


def _picture_folders(folder: Path, root: Path) -> Iterator[tuple[str, Path, Path, str | None]]:
  """Yields (modality, MRI folder, other folder, split if the folders say it) for one folder."""
  children = {child.name.lower(): child for child in folder.iterdir() if child.is_dir()}
  if "mri" not in children:
    return
  if "other" in children and folder.name.upper() in TEST_STEMS:
    levels = [_SPLIT_FOLDERS.get(part.lower()) for part in folder.relative_to(root).parts]
    split = next(filter(None, reversed(levels)), None)
    yield folder.name.upper(), children["mri"], children["other"], split
  for modality in TEST_STEMS:
    if modality.lower() in children:
      yield modality, children["mri"], children[modality.lower()], None


def _listed(modality: str, case: int, stem: str) -> list[str]:
  """The splits of a pair by the lists: the two for comparing, or one of the others."""
  splits = ["test"] if stem in TEST_STEMS[modality] else []
  splits += ["cddfuse_test"] if case in CDDFUSE_CASES else []
  return splits or ["validation" if case in VALIDATION_CASES else "train"]


def _case(stem: str, path: Path) -> int:
  match = re.fullmatch(r"(\d+)\d{3}", stem)
  if not match:
    raise UserError(f"{path}: the name must be a case number and a three-digit slice, as in 28005")
  return int(match[1])
