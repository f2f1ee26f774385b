"""Any two folders of registered pictures, paired by file stem.

Laid out under `manual_dir` as one of

- `train/a`, `train/b`, `validation/a`, `validation/b` and, if wanted, `test/a`, `test/b`;
- `a`, `b`: about every tenth stem goes to "validation", picked by a hash of the stem, so the choice
  stays the same when pictures are added and on every machine.

or, from Python, given as `a_dir` and `b_dir` (divided by the hash).

A hash of the stem knows nothing of patients: **where several pictures are slices of one patient,
divide them yourself** with the first layout, and keep each patient in one split.
"""

import hashlib
from pathlib import Path

import tensorflow_datasets as tfds

from dmfnet_jax.data import builders
from dmfnet_jax.errors import UserError

Pairs = dict[str, tuple[Path, Path]]


class PairedFolder(tfds.core.GeneratorBasedBuilder):
  """Pairs of two folders; see the module's docstring.

  Args:
    a_dir: Folder of the A pictures; only together with `b_dir`, and then instead of `manual_dir`.
    b_dir: Folder of the B pictures.
    modality: What every example's "modality" says.

  Raises:
    UserError: Only one of the two folders is given.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Give as manual_dir a folder with a/ and b/ in it, or with train/a, train/b, validation/a, "
    "validation/b."
  )

  def __init__(
    self,
    *,
    a_dir: str | Path | None = None,
    b_dir: str | Path | None = None,
    modality: str = "other",
    **kwargs,
  ):
    if (a_dir is None) != (b_dir is None):
      raise UserError("paired_folder needs both a_dir and b_dir, or neither and manual_dir")
    self._dirs = (Path(a_dir), Path(b_dir)) if a_dir and b_dir else None
    self._modality = modality
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="Registered pairs from two folders of the user's.",
      features=builders.pair_features(),
    )

  def _split_generators(self, dl_manager):
    if self._dirs:
      pairs, divided = divide_by_hash(builders.match_stems(*self._dirs)), False
    else:
      manual_dir = builders.manual_folder(self, dl_manager)
      pairs, divided = find_pairs(manual_dir), (manual_dir / "train").is_dir()
    if not divided:
      self.notes = (
        "every tenth file or so is for validation; where a patient has several slices, put whole "
        "patients into train/ and validation/ instead",
      )
    return {split: self._generate_examples(members) for split, members in pairs.items() if members}

  def _generate_examples(self, pairs):
    for stem, (a_path, b_path) in pairs.items():
      a, b = builders.read_pair(a_path, b_path)
      yield stem, {"a": a, "b": b, "name": stem, "modality": self._modality}


def find_pairs(manual_dir: Path) -> dict[str, Pairs]:
  """Pairs the pictures under a folder in one of the layouts of the module's docstring.

  Returns:
    For each split a dict from stem to (A's path, B's path).

  Raises:
    UserError: A folder or a partner is missing, or there are no pictures.
  """
  if not (manual_dir / "train").is_dir():
    return divide_by_hash(builders.match_stems(manual_dir / "a", manual_dir / "b"))
  pairs = {
    split: builders.match_stems(manual_dir / split / "a", manual_dir / split / "b")
    for split in builders.SPLITS
    if (manual_dir / split).is_dir()
  }
  if not pairs["train"]:
    raise UserError(f"no pictures in {manual_dir / 'train' / 'a'}")
  return pairs


def divide_by_hash(pairs: Pairs) -> dict[str, Pairs]:
  """Sends about every tenth stem to "validation", and at least one of two or more.

  Returns:
    {"train": ..., "validation": ...}, together all of `pairs`.

  Raises:
    UserError: There are no pairs.
  """
  if not pairs:
    raise UserError("no pictures to pair in the two folders")
  order = sorted(pairs, key=_hash)
  # The smallest tenth of the hash's range; a handful of pictures may have none there, or all.
  picked = sum(_hash(stem) < 2**64 // 10 for stem in order)
  picked = min(max(picked, 1), len(order) - 1)
  held_out = set(order[:picked])
  return {
    "train": {stem: paths for stem, paths in pairs.items() if stem not in held_out},
    "validation": {stem: paths for stem, paths in pairs.items() if stem in held_out},
  }


def _hash(stem: str) -> int:
  return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big")
