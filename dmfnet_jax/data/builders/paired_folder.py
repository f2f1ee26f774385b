"""Any two folders of registered pictures, paired by file stem.

Laid out under `manual_dir` as one of

- `train/a`, `train/b`, `validation/a`, `validation/b` and, if wanted, `test/a`, `test/b`;
- `a`, `b`: about every tenth stem goes to "validation", picked by a hash of the stem, so the choice
  stays the same when pictures are added and on every machine.

or, from Python, given as `a_dir` and `b_dir` (divided by the hash).

Further folders beside `a` and `b` that have a picture for every stem are further fields of their
names, for methods that learn from a mask (`saliency`) or from a picture to imitate.

A hash of the stem knows nothing of patients: **where several pictures are slices of one patient,
divide them yourself** with the first layout, and keep each patient in one split.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tensorflow_datasets as tfds

from dmfnet_jax.data import builders
from dmfnet_jax.errors import UserError
from dmfnet_jax.io.pictures import list_images

Pairs = dict[str, tuple[Path, Path]]
Paths = TypeVar("Paths")

# Names that an example or a batch has for something else.
_TAKEN = frozenset({"name", "modality", "index", "record", "mask"})


class PairedFolder(tfds.core.GeneratorBasedBuilder):
  """Pairs of two folders; see the module's docstring.

  Args:
    a_dir: Folder of the A pictures; only together with `b_dir`, and then instead of `manual_dir`.
    b_dir: Folder of the B pictures.
    modality: What every example's "modality" says.
    fields: Further folders, beside A's.

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
    fields: Sequence[str] = (),
    **kwargs,
  ):
    if (a_dir is None) != (b_dir is None):
      raise UserError("paired_folder needs both a_dir and b_dir, or neither and manual_dir")
    self._dirs = (Path(a_dir), Path(b_dir)) if a_dir and b_dir else None
    self._modality = modality
    self._fields = tuple(fields)
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="Registered pairs from two folders of the user's.",
      features=builders.pair_features(self._fields),
    )

  def _split_generators(self, dl_manager):
    self.notes: tuple[str, ...] = ()
    if self._fields:
      self.notes = (f"pictures besides a and b: {', '.join(self._fields)}",)
    if self._dirs:
      pairs, divided = divide_by_hash(builders.match_stems(*self._dirs)), False
    else:
      manual_dir = builders.manual_folder(self, dl_manager)
      pairs, divided = find_pairs(manual_dir), (manual_dir / "train").is_dir()
    if not divided:
      self.notes += (
        "every tenth file or so is for validation; where a patient has several slices, put whole "
        "patients into train/ and validation/ instead",
      )
    return {split: self._generate_examples(members) for split, members in pairs.items() if members}

  def _generate_examples(self, pairs):
    beside = {field: _beside(pairs, field) for field in self._fields}
    for stem, (a_path, b_path) in pairs.items():
      a, b = builders.read_pair(a_path, b_path)
      further = {
        field: builders.read_pair(a_path, paths[stem])[1] for field, paths in beside.items()
      }
      yield stem, {"a": a, "b": b, "name": stem, "modality": self._modality, **further}

  @staticmethod
  def find_fields(manual_dir: Path) -> tuple[str, ...]:
    """The further folders of one of the layouts that have a picture for every stem."""
    if not any((manual_dir / first / "a").is_dir() for first in ("", "train")):
      return ()  # what is missing is said where the pairs are found
    splits = [pairs for pairs in find_pairs(manual_dir).values() if pairs]
    folders = {path.name for pairs in splits for path in _parent(pairs).iterdir() if path.is_dir()}
    names = sorted(folders - {"a", "b"} - _TAKEN)
    return tuple(
      n for n in names if all(pairs.keys() <= _beside(pairs, n).keys() for pairs in splits)
    )


def _parent(pairs: Pairs) -> Path:
  """The folder of a split's `a` and `b`."""
  return next(iter(pairs.values()))[0].parent.parent


def _beside(pairs: Pairs, field: str) -> dict[str, Path]:
  """The pictures of a further folder by their stems."""
  folder = _parent(pairs) / field
  return list_images(folder) if folder.is_dir() else {}


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


def divide_by_hash(pairs: dict[str, Paths]) -> dict[str, dict[str, Paths]]:
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
