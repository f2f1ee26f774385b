"""Made-up lesions: nothing of a patient, and nothing that is true of skin.

For tests and a first run of a method that reads what `derm7pt` holds, in its form. A rule says what
is seen: the lesion's colour, in both pictures, is the diagnosis; in the dermoscopic one stand seven
spots around the middle, one of each further criterion, whose brightness is its class. The facts are
drawn, but for the location, which goes with the diagnosis in two cases of three. Management and
difficulty say the diagnosis outright, as they nearly do in truth.

240 examples for training and 60 for validation, 64 x 64. Every class is as probable as the others.
"""

import csv
import zlib
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from dmfnet_jax.data.builders.derm7pt import features
from dmfnet_jax.io import paths, seven_point
from dmfnet_jax.io.pictures import write_image

COUNTS = {"train": 240, "validation": 60}
SIDE = 64
_SKIN = (205, 165, 145)
_COLOURS = ((190, 90, 90), (120, 75, 50), (45, 35, 45), (150, 130, 60), (110, 110, 130))
_SPOTS = (-60, 0, 60)  # grey levels beside the lesion's
_NOISE = 8.0  # grey levels


class MadeLesions(tfds.core.GeneratorBasedBuilder):
  """Lesions by a rule; see the module's docstring."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="Made-up skin lesions with the seven-point checklist, by a rule.",
      features=features(),
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in COUNTS}

  def _generate_examples(self, split: str):
    for name in _names(split):
      clinical, dermoscopic, row = made_lesion(name)
      yield (
        name,
        {
          "clinical": clinical,
          "dermoscopic": dermoscopic,
          "facts": seven_point.one_hot(row, seven_point.FACTS),
          "classes": seven_point.classes_of(row),
          "name": name,
          "modality": "other",
        },
      )


def made_lesion(name: str) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
  """Makes a lesion; the same name gives the same bytes.

  Returns:
    clinical: uint8 [64, 64, 3].
    dermoscopic: the same.
    row: what the table says of it, by column.
  """
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  classes = [int(rng.integers(len(known))) for known in seven_point.CRITERIA.values()]
  facts = [int(rng.integers(len(known))) for _, known in seven_point.FACTS]
  columns = [column for column, _ in seven_point.FACTS]
  if rng.random() < 2 / 3:
    facts[columns.index("location")] = classes[0]
  facts[columns.index("level_of_diagnostic_difficulty")] = classes[0] % 3
  facts[columns.index("management")] = classes[0] // 2
  row = {
    name: tuple(known)[number]
    for (name, known), number in zip(seven_point.CRITERIA.items(), classes, strict=True)
  }
  row |= {
    name: known[number] for (name, known), number in zip(seven_point.FACTS, facts, strict=True)
  }
  colour = np.array(_COLOURS[classes[0]])
  clinical = _disc(rng, np.array(_SKIN), colour, radius=0.15)
  dermoscopic = _disc(rng, np.array(_SKIN), colour, radius=0.45)
  y, x = np.mgrid[:SIDE, :SIDE]
  for i, number in enumerate(classes[1:]):
    angle = 2 * np.pi * i / 7
    where = SIDE / 2 + SIDE / 4 * np.array([np.sin(angle), np.cos(angle)])
    levels = _SPOTS if len(tuple(seven_point.CRITERIA.values())[i + 1]) == 3 else _SPOTS[::2]
    spot = (y - where[0]) ** 2 + (x - where[1]) ** 2 < (SIDE / 12) ** 2
    dermoscopic[spot] += levels[number]
  pictures = (
    np.clip(np.rint(picture + _NOISE * rng.standard_normal(picture.shape)), 0, 255).astype(np.uint8)
    for picture in (clinical, dermoscopic)
  )
  return *pictures, row  # type: ignore[return-value]


def write_files(folder: str | Path, split: str = "validation") -> None:
  """Writes a split as `dmfnet classify` reads it: two folders of PNG and `rows.csv`.

  The table has the classes, too, in columns that a model does not look at.
  """
  place = Path(folder)
  for source in ("clinical", "dermoscopic"):
    paths.make_folder(place / source)
  rows = []
  for name in _names(split):
    clinical, dermoscopic, row = made_lesion(name)
    write_image(place / "clinical" / f"{name}.png", clinical)
    write_image(place / "dermoscopic" / f"{name}.png", dermoscopic)
    rows.append({"name": name} | row)
  with (place / "rows.csv").open("w", newline="", encoding="utf-8") as file:
    table = csv.DictWriter(file, list(rows[0]))
    table.writeheader()
    table.writerows(rows)


def _names(split: str) -> list[str]:
  return [f"{split}_{i:03d}" for i in range(COUNTS[split])]


def _disc(
  rng: np.random.Generator, skin: np.ndarray, colour: np.ndarray, radius: float
) -> np.ndarray:
  """A lesion on skin, near the middle, float [64, 64, 3]."""
  y, x = np.mgrid[:SIDE, :SIDE]
  middle = SIDE / 2 + rng.uniform(-2, 2, 2)
  inside = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < (radius * SIDE) ** 2
  return np.where(inside[..., None], colour, skin).astype(np.float64)
