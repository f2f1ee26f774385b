"""Skin lesions: the layout of the release, the made-up set, vectors and stretching in batches."""

import csv

import numpy as np
import pytest
from PIL import Image

from dmfnet_jax.data import pipeline
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import classification
from dmfnet_jax.io import seven_point
from dmfnet_jax.io.pictures import stretch, to_float, write_image

tfds = pytest.importorskip("tensorflow_datasets")
from dmfnet_jax.data import builders  # noqa: E402
from dmfnet_jax.data.builders import derm7pt, made_lesions  # noqa: E402

ROWS = (
  {
    "diagnosis": "clark nevus",
    "pigment_network": "atypical",
    "blue_whitish_veil": "present",
    "vascular_structures": "linear irregular",
    "pigmentation": "diffuse regular",
    "streaks": "absent",
    "dots_and_globules": "irregular",
    "regression_structures": "blue areas",
    "elevation": "palpable",
    "sex": "male",
    "location": "upper limbs",
    "level_of_diagnostic_difficulty": "medium",
    "management": "no further examination",
  },
  {
    "diagnosis": "melanoma (in situ)",
    "pigment_network": "typical",
    "blue_whitish_veil": "absent",
    "vascular_structures": "wreath",
    "pigmentation": "localized irregular",
    "streaks": "regular",
    "dots_and_globules": "absent",
    "regression_structures": "absent",
    "elevation": "flat",
    "sex": "female",
    "location": "abdomen",
    "level_of_diagnostic_difficulty": "high",
    "management": "clinical follow up",
  },
)
CLASSES = ([1, 2, 1, 2, 1, 0, 2, 1], [2, 1, 0, 1, 2, 1, 0, 0])
FACTS = ([2, 4, 13, 16, 19], [0, 3, 5, 14, 17])


def write_release(root):
  """A release of two lesions, the second one for validation, and a test list of none."""
  (root / "images" / "NEL").mkdir(parents=True)
  (root / "meta").mkdir()
  rng = np.random.default_rng(0)
  rows = []
  for i, row in enumerate(ROWS):
    rows.append({"case_num": str(i + 1), **row})
    for column, size in (("clinic", (20, 31)), ("derm", (300, 260))):
      rows[-1][column] = f"NEL/{column}{i}.png"
      picture = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
      write_image(root / "images" / "NEL" / f"{column}{i}.png", picture)
  with (root / "meta" / "meta.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  for name, indices in (("train", [0]), ("valid", [1]), ("test", [])):
    text = "\n".join(["indexes", *map(str, indices)])
    (root / "meta" / f"{name}_indexes.csv").write_text(text + "\n")


def test_the_releases_cases_are_read(tmp_path):
  write_release(tmp_path)
  rows = derm7pt._read(tmp_path / "meta" / "meta.csv")
  assert derm7pt.find_splits(tmp_path, 2) == {"train": [0], "validation": [1], "test": []}
  examples = derm7pt.Derm7pt._generate_examples(None, tmp_path, rows, [0, 1])
  for (name, example), classes, facts in zip(examples, CLASSES, FACTS, strict=True):
    assert name == example["name"]
    assert example["clinical"].shape == example["dermoscopic"].shape == (224, 224, 3)
    np.testing.assert_array_equal(example["classes"], classes)
    np.testing.assert_array_equal(np.flatnonzero(example["facts"]), facts)
  # The lengths of the criteria's and the facts' lists are those of the published network.
  assert [len(known) for known in seven_point.CRITERIA.values()] == [5, 3, 2, 3, 3, 3, 3, 2]
  assert sum(len(known) for _, known in seven_point.FACTS) == 20


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda meta: (meta / "meta.csv").unlink(), "meta.csv: no such file: expected images/"),
    (
      lambda meta: (meta / "test_indexes.csv").write_text("indexes\n0\n"),
      "row 0 is in the list of",
    ),
    (lambda meta: (meta / "test_indexes.csv").write_text("indexes\n2\n"), "there is no row 2"),
    (lambda meta: (meta / "test_indexes.csv").write_text("rows\n1\n"), "expected a column indexes"),
  ],
)
def test_a_release_that_is_not_whole_is_named(tmp_path, spoil, message):
  write_release(tmp_path)
  spoil(tmp_path / "meta")
  with pytest.raises(UserError, match=message):
    derm7pt.find_splits(tmp_path, len(derm7pt._read(tmp_path / "meta" / "meta.csv")))


def test_a_row_that_says_something_else_is_named(tmp_path):
  write_release(tmp_path)
  rows = [ROWS[0] | {"streaks": "many"}]
  with pytest.raises(
    UserError, match=r"meta.csv: line 2: column streaks: 'many' is none of absent"
  ):
    list(derm7pt.Derm7pt._generate_examples(None, tmp_path, rows, [0]))


def test_stretching_is_bilinear_between_centres():
  torch = pytest.importorskip("torch")
  x = np.random.default_rng(0).random((13, 8, 3), np.float32)
  for size in ((5, 17), (26, 4), (13, 8)):
    expected = torch.nn.functional.interpolate(
      torch.tensor(x).permute(2, 0, 1)[None], size, mode="bilinear", align_corners=False
    )[0].permute(1, 2, 0)
    np.testing.assert_allclose(stretch(x, size), expected.numpy(), atol=1e-5)
  levels = np.rint(255 * x).astype(np.uint8)
  expected = np.rint(stretch(levels.astype(np.float32), (5, 17)))
  np.testing.assert_array_equal(stretch(levels, (5, 17)), expected)


def test_batches_have_vectors_and_stretched_pictures():
  made = [made_lesions.made_lesion(f"case {i}") for i in range(4)]
  source = [
    {
      "clinical": clinical[:40],
      "dermoscopic": dermoscopic,
      "facts": seven_point.one_hot(row, seven_point.FACTS),
      "classes": seven_point.classes_of(row),
      "name": b"",
      "modality": b"other",
    }
    for clinical, dermoscopic, row in made
  ]
  fields = {"clinical": 3, "dermoscopic": 3, "facts": 20, "classes": 8}
  options = {"fields": fields, "size": (32, 32), "crop_size": 32}
  batches = pipeline.make_train_dataset(source, batch_size=2, seed=0, flip=False, **options)
  for batch in [next(batches), *pipeline.make_eval_batches(source, batch_size=2, **options)]:
    for row, record in enumerate(batch["record"]):
      example = source[record]
      for name in ("facts", "classes"):
        assert batch[name].dtype == np.float32
        np.testing.assert_array_equal(batch[name][row], example[name])
      for name in ("clinical", "dermoscopic"):
        expected = to_float(stretch(example[name], (32, 32)))
        np.testing.assert_array_equal(batch[name][row], expected)
  batches.close()


def test_the_made_up_rule_is_what_it_says():
  """The spots' grey levels beside the lesion's tell the class, and the colour the diagnosis."""
  for i in range(8):
    _, dermoscopic, row = made_lesions.made_lesion(f"lesion {i}")
    numbers = seven_point.classes_of(row)
    colour = np.array(made_lesions._COLOURS[numbers[0]])
    middle = dermoscopic[29:35, 29:35].reshape(-1, 3).mean(0)
    assert np.abs(middle - colour).max() < 8
    for k, number in enumerate(numbers[1:]):
      angle = 2 * np.pi * k / 7
      y, x = np.rint(32 + 16 * np.array([np.sin(angle), np.cos(angle)])).astype(int)
      spot = dermoscopic[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(0)
      levels = (-60, 0, 60) if len(list(seven_point.CRITERIA.values())[k + 1]) == 3 else (-60, 60)
      expected = np.clip(colour + levels[number], 0, 255)
      assert np.abs(spot - expected).max() < 20
  again = made_lesions.made_lesion("lesion 7")[1]
  np.testing.assert_array_equal(again, dermoscopic)
  assert set(made_lesions.COUNTS) == {"train", "validation"}
  assert "made_lesions" in builders.DATASETS


def test_made_up_lesions_are_written_as_they_are_classified(tmp_path):
  made_lesions.write_files(tmp_path)
  names = [f"validation_{i:03d}" for i in range(made_lesions.COUNTS["validation"])]
  rows = classification.read_table(tmp_path / "rows.csv")
  assert list(rows) == names
  clinical, dermoscopic, row = made_lesions.made_lesion(names[7])
  for source, picture in (("clinical", clinical), ("dermoscopic", dermoscopic)):
    assert len(list((tmp_path / source).iterdir())) == len(names)
    written = np.asarray(Image.open(tmp_path / source / f"{names[7]}.png"))
    np.testing.assert_array_equal(written, picture)
  for of in (seven_point.FACTS, tuple(seven_point.CRITERIA.items())):
    assert {column: rows[names[7]][column] for column, _ in of} == {c: row[c] for c, _ in of}
