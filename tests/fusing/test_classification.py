"""`dmfnet classify`: pairs, the table, what is printed and written, and what fails."""

import json
import types

import numpy as np
import pytest

from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.classification import NOTICE, read_table
from dmfnet_jax.io import seven_point
from dmfnet_jax.io.pictures import write_image
from dmfnet_jax.methods import get

ROW = {"elevation": "flat", "sex": "female", "location": "back"}
LEAKING = {"level_of_diagnostic_difficulty": "low", "management": "excision"}


class Stand:
  """In the place of a model: the second class of each output is as probable as it is red."""

  method = get("tformer")

  def __init__(self, leaking):
    self.config = {"facts": {"leaking": leaking}}
    self.facts = []

  def classify(self, clinical, dermoscopic, facts, batch_size):
    self.facts += list(facts)
    found = []
    for picture in clinical:
      share = picture[..., 0].mean() / 255
      found.append(
        {
          field.name: np.eye(field.channels, dtype=np.float32)[0] * (1 - share)
          + np.eye(field.channels, dtype=np.float32)[1] * share
          for field in self.method.outputs
        }
      )
    return found


@pytest.fixture
def model(monkeypatch):
  stand = Stand(leaking=False)
  monkeypatch.setattr("dmfnet_jax.inference.model.load_model", lambda *_, **__: stand)
  return stand


def write_pictures(folder, **red):
  """Pictures of sizes of their own, by the stem."""
  folder.mkdir()
  for i, (stem, level) in enumerate(red.items()):
    write_image(folder / f"{stem}.png", np.full((6 + i, 9, 3), (level, 0, 0), np.uint8))


def write_table(path, *rows):
  columns = list(rows[0])
  lines = [",".join(columns), *(",".join(row[c] for c in columns) for row in rows)]
  path.write_text("\n".join(lines) + "\n")
  return str(path)


def test_one_lesion_is_told_and_written(tmp_path, model, capsys):
  write_pictures(tmp_path / "a", lesion=204)
  write_pictures(tmp_path / "b", other=0)
  table, out = write_table(tmp_path / "row.csv", ROW), tmp_path / "made" / "lesion.json"
  sources = [str(tmp_path / "a" / "lesion.png"), str(tmp_path / "b" / "other.png")]
  assert main(["classify", *sources, "--metadata", table, "--model", "m", "-o", str(out)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "lesion:"
  assert lines[1].split(maxsplit=1) == [
    "diagnosis",
    "nevus 0.800, basal cell carcinoma 0.200, melanoma 0.000, miscellaneous 0.000, "
    "seborrheic keratosis 0.000",
  ]
  assert len(lines) == 10
  assert lines[-1] == NOTICE == "research use only, not for diagnosis"
  document = json.loads(out.read_text())
  assert document["notice"] == NOTICE
  assert document["failed"] == {}
  probabilities = document["examples"]["lesion"]
  assert list(probabilities) == list(seven_point.CRITERIA)
  assert probabilities["streaks"] == pytest.approx({"absent": 0.2, "regular": 0.8, "irregular": 0})
  # flat; female; back; and nothing of what the model does not look at.
  np.testing.assert_array_equal(np.flatnonzero(model.facts[0]), [0, 3, 7])


def test_folders_go_on_where_one_fails(tmp_path, model, capsys):
  write_pictures(tmp_path / "a", x=255, y=0, z=0, alone=0)
  write_pictures(tmp_path / "b", x=0, y=0, z=0)
  rows = [{"name": n, **ROW} for n in "xy"]
  rows[1]["sex"] = "neither"
  table, out = write_table(tmp_path / "rows.csv", *rows), tmp_path / "all.json"
  words = ["classify", str(tmp_path / "a"), str(tmp_path / "b"), "--metadata", table]
  assert main([*words, "--model", "m", "-o", str(out)]) == 1
  shown = capsys.readouterr()
  assert "error: pair y: " in shown.err
  assert "column sex: 'neither' is none of female, male" in shown.err
  assert "error: pair z: " in shown.err
  assert "has no row whose name is z" in shown.err
  assert "no partner for" in shown.err
  assert NOTICE in shown.out
  document = json.loads(out.read_text())
  assert list(document["examples"]) == ["x"]
  assert document["failed"].keys() == {"y", "z"}


def test_a_model_may_look_at_every_column(tmp_path, model, capsys):
  model.config["facts"]["leaking"] = True
  write_pictures(tmp_path / "a", x=0)
  picture = str(tmp_path / "a" / "x.png")
  words = ["classify", picture, picture, "--model", "m", "--metadata"]
  assert main([*words, write_table(tmp_path / "lacking.csv", ROW)]) == 1
  assert "there is no column level_of_diagnostic_difficulty" in capsys.readouterr().err
  assert main([*words, write_table(tmp_path / "row.csv", ROW | LEAKING)]) == 0
  np.testing.assert_array_equal(np.flatnonzero(model.facts[0]), [0, 3, 7, 15, 18])


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("sex\n", "no rows below a heading"),
    ("sex\nmale\nfemale\n", "several rows need a column name"),
    ("name,sex\nx,male\nx,female\n", "line 3: a second row of x"),
    ("sex\n\xff\n", "not a CSV file in UTF-8"),
  ],
)
def test_a_table_that_is_none_is_refused(tmp_path, content, message):
  place = tmp_path / "table.csv"
  place.write_bytes(content.encode("latin-1"))
  with pytest.raises(UserError, match=message):
    read_table(place)


def test_what_does_not_go_together_is_refused(tmp_path, model, capsys, monkeypatch):
  write_pictures(tmp_path / "a", x=0)
  write_pictures(tmp_path / "b", y=0)
  table = write_table(tmp_path / "row.csv", ROW)
  a, b, picture = str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "a" / "x.png")
  for sources, message in (
    ((a, str(tmp_path / "none")), "none: no such folder"),
    ((a, picture), "give two pictures, or two folders"),
    ((a, b), "has a partner of the same stem"),
  ):
    assert main(["classify", *sources, "--metadata", table, "--model", "m"]) == 2
    assert message in capsys.readouterr().err
  fuser = types.SimpleNamespace(method=get("max"), config={})
  monkeypatch.setattr("dmfnet_jax.inference.model.load_model", lambda *_, **__: fuser)
  assert main(["classify", picture, picture, "--metadata", table, "--model", "max"]) == 2
  assert "max does not classify two pictures and a table" in capsys.readouterr().err
