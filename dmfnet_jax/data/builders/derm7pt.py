"""Derm7pt: skin lesions with a clinical and a dermoscopic photograph, and the checklist.

Kawahara et al., IEEE JBHI 2018 (doi 10.1109/JBHI.2018.2824327). Nothing is downloaded: unpack the
release yourself (its terms are for research) and give as manual_dir the folder with

    images/...  (as the columns `derm` and `clinic` of the table name them)
    meta/meta.csv
    meta/train_indexes.csv  valid_indexes.csv  test_indexes.csv

The splits are the release's lists. Pictures of a lesion differ in size and are not registered: both
are stretched to 224 x 224. Facts are stored all; what a model looks at is its config's.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from dmfnet_jax.data import builders
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import seven_point
from dmfnet_jax.io.pictures import read_image, stretch

SIDE = 224
_LISTS = {"train": "train", "validation": "valid", "test": "test"}
_PICTURES = {"clinical": "clinic", "dermoscopic": "derm"}  # the table's columns
_LAYOUT = "images/, meta/meta.csv and meta/{train,valid,test}_indexes.csv of the release"


def features() -> tfds.features.FeaturesDict:
  """Two pictures, the facts as zeros and ones, and the number of each criterion's class."""
  pictures = builders.picture_features(dict.fromkeys(_PICTURES, 3))
  count = sum(len(known) for _, known in seven_point.FACTS)
  return tfds.features.FeaturesDict(
    {
      **pictures,
      "facts": tfds.features.Tensor(shape=(count,), dtype=np.uint8),
      "classes": tfds.features.Tensor(shape=(len(seven_point.CRITERIA),), dtype=np.int8),
    }
  )


class Derm7pt(tfds.core.GeneratorBasedBuilder):
  """The release's cases; see the module's docstring."""

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Give as manual_dir a folder with {_LAYOUT}."

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="Skin lesions: two photographs, facts and the seven-point checklist.",
      features=features(),
      homepage="https://derm.cs.sfu.ca",
    )

  def _split_generators(self, dl_manager):
    root = builders.manual_folder(self, dl_manager)
    rows = _read(root / "meta" / "meta.csv")
    chosen = find_splits(root, len(rows))
    return {
      split: self._generate_examples(root, rows, indices) for split, indices in chosen.items()
    }

  def _generate_examples(self, root: Path, rows: list[dict[str, str]], indices: list[int]):
    for index in indices:
      name = f"case_{index:04d}"
      try:
        told = {
          "facts": seven_point.one_hot(rows[index], seven_point.FACTS),
          "classes": seven_point.classes_of(rows[index]),
        }
        pictures = dict(_pictures(root, rows[index]))
      except UserError as error:
        raise UserError(f"{root / 'meta' / 'meta.csv'}: line {index + 2}: {error}") from error
      yield name, pictures | told | {"name": name, "modality": "other"}


def find_splits(root: Path, count: int) -> dict[str, list[int]]:
  """The rows of each split, from the release's lists.

  Raises:
    UserError: a list is missing, names a row that there is not, or shares one with another list.
  """
  found: dict[str, list[int]] = {}
  seen: dict[int, str] = {}
  for split, name in _LISTS.items():
    place = root / "meta" / f"{name}_indexes.csv"
    try:
      found[split] = [int(row["indexes"]) for row in _read(place)]
    except (KeyError, ValueError, TypeError) as error:
      raise UserError(f"{place}: expected a column indexes of whole numbers") from error
    for index in found[split]:
      if not 0 <= index < count:
        raise UserError(f"{place}: there is no row {index}: the table has {count}")
      if index in seen:
        raise UserError(f"{place}: row {index} is in the list of {seen[index]} as well")
      seen[index] = split
  return found


def _pictures(root: Path, row: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
  for name, column in _PICTURES.items():
    if not row.get(column):
      raise UserError(f"no picture in column {column}")
    picture = builders.three_channels(read_image(root / "images" / row[column]))
    yield name, stretch(picture, (SIDE, SIDE))


def _read(place: Path) -> list[dict[str, str]]:
  if not place.is_file():
    raise UserError(f"{place}: no such file: expected {_LAYOUT}")
  with place.open(newline="", encoding="utf-8-sig") as file:
    return list(csv.DictReader(file))
