"""`dmfnet compare`: one table and one page of what several models make of the same pairs."""

import contextlib
import csv
import io
import json
import math

import nibabel
import numpy as np
import pytest
from browser import errors_of, open_browser, wait_for
from PIL import Image

from dmfnet_jax.cli import main
from dmfnet_jax.compare import parse_models, table, timing
from dmfnet_jax.compare.disagreement import RULE
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import measure
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.io import color, panels
from dmfnet_jax.metrics import METRIC_NAMES, READER_NAMES

SIZE = (44, 48)
# A and B of each pair, everywhere: how far the models disagree follows.
LEVELS = {"near": (100, 110), "far": (20, 200), "black & <b>": (0, 0)}


def brightness(a, b, fused, **options):
  """Stands in for the metrics: all are the result's mean level."""
  return {name: np.asarray(fused, np.float32).mean((1, 2)) for name in METRIC_NAMES}


def darkness(a, b, fused):
  return {name: 255 - np.asarray(fused, np.float32).mean((1, 2)) for name in READER_NAMES}


@pytest.fixture(scope="module", autouse=True)
def stand_in():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(measure, "compute_metrics", brightness)
    patch.setattr(measure, "compute_reader_metrics", darkness)
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The folders a and b; B of "far" is coloured."""
  root = tmp_path_factory.mktemp("compare")
  for i, side in enumerate("ab"):
    (root / side).mkdir()
    for stem, levels in LEVELS.items():
      picture = np.full(SIZE, levels[i], np.uint8)
      if (stem, side) == ("far", "b"):
        picture = np.dstack([picture, picture // 2, picture])
      Image.fromarray(picture).save(root / side / f"{stem}.png")
  return root


def run(folder, *words, models="max,mine=mean,overlay,nothing"):
  sources = [str(folder / "a"), str(folder / "b")]
  return main(["compare", *sources, "-o", str(folder / "out"), "--models", models, *words])


@pytest.fixture(scope="module")
def compared(folder):
  """What a run with one model too many says, and its exit code."""
  with contextlib.redirect_stdout(io.StringIO()) as out:
    code = run(folder)
  return code, out.getvalue(), json.loads((folder / "out" / "compare.json").read_text("utf-8"))


def sources_of(folder, stem):
  return [np.asarray(Image.open(folder / side / f"{stem}.png")) for side in "ab"]


def test_every_model_that_there_is_fuses_every_pair(folder, compared):
  code, _, document = compared
  assert code == 1
  assert "unknown model 'nothing'" in document["failed"]["nothing"]
  assert list(document["models"]) == ["max", "mine", "overlay"]
  assert document["models"]["mine"]["model"] == "mean"
  for stem in LEVELS:
    a, b = sources_of(folder, stem)
    laid = np.asarray(Image.open(folder / "out" / "overlay" / f"{stem}.png"))
    np.testing.assert_array_equal(laid, panels.overlay(a, b, 0.5))
    if b.ndim == 2:
      brighter = np.asarray(Image.open(folder / "out" / "max" / f"{stem}.png"))
      np.testing.assert_array_equal(brighter, np.maximum(a, b))


def fused_levels(folder, label):
  return {
    stem: color.to_grey(np.asarray(Image.open(folder / "out" / label / f"{stem}.png"))).mean()
    for stem in LEVELS
  }


def test_the_means_and_the_best_are_those_of_the_files(folder, compared):
  _, printed, document = compared
  levels = {label: fused_levels(folder, label) for label in document["models"]}
  for label, of_pairs in levels.items():
    model = document["models"][label]
    assert model["pairs"]["near"]["SSIM"] == pytest.approx(of_pairs["near"])
    assert model["mean"]["EN"] == pytest.approx(np.mean(list(of_pairs.values())))
    assert model["parameters"] == 0
    assert 0 < model["seconds"] < 60
  means = {label: model["mean"]["EN"] for label, model in document["models"].items()}
  brightest, darkest = max(means, key=means.get), min(means, key=means.get)
  best = document["best"]
  assert (best["EN"], best["MSE"], best["invention"]) == ([brightest], [darkest], [brightest])
  assert best["parameters"] == list(means)
  with (folder / "out" / "compare.csv").open(newline="") as file:
    rows = {row["model"]: row for row in csv.DictReader(file)}
  assert {label: float(row["EN"]) for label, row in rows.items()} == means
  assert "EN" in rows[brightest]["best_in"].split()
  assert "EN" not in rows[darkest]["best_in"].split()
  title, heading, *lines = printed.splitlines()
  assert title == "means over 3 pairs"
  assert heading.split() == list(METRIC_NAMES)
  marked = {line.split()[0]: line.split()[1].endswith("*") for line in lines[:3]}
  assert marked == {label: label == brightest for label in means}


def test_the_page_begins_where_the_models_disagree_most(folder, compared):
  *_, document = compared
  levels = [fused_levels(folder, label) for label in document["models"]]
  by_hand = {stem: np.std([of[stem] for of in levels]) for stem in LEVELS}
  assert document["disagreement"] == pytest.approx(by_hand, abs=1e-3)
  assert list(document["disagreement"]) == ["far", "near", "black & <b>"]
  page = (folder / "out" / "compare.html").read_text("utf-8")
  places = [page.index(f"<h3>{stem} ") for stem in ("far", "near", "black &amp; &lt;b&gt;")]
  assert places == sorted(places)
  assert page.count("<figure>") == 3 * (2 + 3)
  assert f"The disagreement of a pair is {RULE}." in page
  assert "<b>model nothing</b>: unknown model &#x27;nothing&#x27;" in page
  assert "http" not in page.replace("http-equiv", "")


def test_the_page_enlarges_and_turns_from_model_to_model(folder, compared):
  with open_browser() as browser:
    from selenium.webdriver.common.keys import Keys

    browser.get((folder / "out" / "compare.html").as_uri())
    browser.find_elements("css selector", ".pair button")[1].click()
    viewer = browser.find_element("id", "viewer")
    wait_for(viewer.is_displayed, "the enlarged picture")
    caption = lambda: viewer.find_element("tag name", "p").text  # noqa: E731
    assert caption() == "far B"
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert caption() == "far max"
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert caption() == "near max"
    assert not errors_of(browser)


def test_what_is_there_is_kept_and_is_of_the_same_model(folder, compared, capsys):
  kept, lost = (folder / "out" / "max" / f"{stem}.png" for stem in ("far", "near"))
  before = kept.stat().st_mtime_ns
  lost.unlink()
  assert run(folder, "--resume", models="max") == 0
  assert kept.stat().st_mtime_ns == before
  assert lost.exists()
  assert "3 of 3 pairs fused into" in (told := capsys.readouterr().err)
  assert "2 of them earlier" in told
  assert run(folder, "--resume", models="max=mean") == 2
  assert "holds results of another model" in capsys.readouterr().err


def test_what_another_program_made_is_measured_beside_the_models(folder, tmp_path, capsys):
  theirs = tmp_path / "theirs"
  theirs.mkdir()
  for stem, level in {"near": 250, "far": 0}.items():
    Image.fromarray(np.full(SIZE, level, np.uint8)).save(theirs / f"{stem}.png")
  words = ["-o", str(tmp_path / "out"), "--models", "max,mean"]
  sources = [str(folder / "a"), str(folder / "b")]
  assert main(["compare", *sources, *words, "--fused", f"them={theirs},{theirs}"]) == 1
  assert f"pair black & <b>: not in {theirs}" in capsys.readouterr().err
  document = json.loads((tmp_path / "out" / "compare.json").read_text("utf-8"))
  them = document["models"]["them"]
  assert {stem: of["SSIM"] for stem, of in them["pairs"].items()} == {"near": 250, "far": 0}
  assert (them["parameters"], them["seconds"]) == (None, None)
  assert document["best"]["parameters"] == ["max", "mean"]
  assert sorted(document["mean_over"]) == ["far", "near"]
  a, b = sources_of(folder, "far")
  levels = [np.maximum(a, color.to_grey(b)), (a + color.to_grey(b).astype(float)) / 2, 0 * a, 0 * a]
  assert document["disagreement"]["far"] == pytest.approx(np.std([x.mean() for x in levels]), abs=1)
  assert "them</dt><dd>theirs · pictures of another program" in (
    (tmp_path / "out" / "compare.html").read_text("utf-8")
  )
  table_lines = (tmp_path / "out" / "compare.md").read_text().splitlines()
  assert table_lines[2].split("|")[2].strip() == "EN"
  assert [line.split("|")[1].strip() for line in table_lines[4:]] == [
    "max",
    "mean",
    "them",
    "theirs",
  ]
  brightest = max(document["models"].values(), key=lambda model: model["mean"]["EN"])["mean"]["EN"]
  assert f"**{brightest:.4f}**" in table_lines[4] + table_lines[5] + table_lines[6]


def test_a_label_of_a_model_and_of_pictures_is_refused(folder, tmp_path, capsys):
  sources = [str(folder / "a"), str(folder / "b"), "-o", str(tmp_path / "out")]
  assert main(["compare", *sources, "--models", "max", "--fused", f"max={tmp_path}"]) == 2
  assert f"write OTHER={tmp_path}" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_volumes_are_in_the_table(tmp_path):
  values = np.random.default_rng(0).random((44, 46, 3), np.float32)
  for name in "ab":
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
  words = [str(tmp_path / f"{name}.nii.gz") for name in "ab"]
  words += ["-o", str(tmp_path / "out"), "--models", "max,overlay"]
  assert main(["compare", *words]) == 0
  document = json.loads((tmp_path / "out" / "compare.json").read_text())
  assert [list(model["pairs"]) for model in document["models"].values()] == [["a"], ["a"]]
  assert document["disagreement"] == {}
  assert "Volumes are in the table alone" in (tmp_path / "out" / "compare.html").read_text()


def result(values, seconds=1.0, failures=()):
  rows = {stem: dict.fromkeys(measure.ALL_NAMES, float(v)) for stem, v in values.items()}
  return table.Result("word", "sha", 7, seconds, rows, dict.fromkeys(failures, "why"))


def test_models_are_compared_on_the_pairs_that_all_fused():
  compared = table.compare(
    {
      "x": result({"p": 1, "q": 50}),
      "y": result({"p": 2}, math.nan, failures=["q"]),
      "z": result({"p": 2.00001, "q": math.inf}),
    }
  )
  assert compared.common == ["p"]
  assert [row["EN"] for row in compared.rows.values()] == [1, 2, 2.00001]
  assert compared.best["EN"] == ["y", "z"]  # the same digits
  assert compared.best["MSE"] == ["x"]
  assert compared.best["seconds"] == ["x", "z"]
  assert table.describe(compared) == "means over 1 pair that all models fused; 1 left out"
  assert table.format_text(compared).splitlines()[2].startswith("x  1.0000 ")
  apart = table.compare({"x": result({"p": 1}), "y": result({"q": 2})})
  assert "over different pairs" in table.describe(apart)
  assert [row["EN"] for row in apart.rows.values()] == [1, 2]


class Slow:
  """A model whose first call of a kind takes 100 s, and every pair one second."""

  def __init__(self, monkeypatch):
    self.now, self.seen = 0.0, set()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

  def fuse(self, a, b, **options):
    assert "on_done" not in options or not self.seen
    self.now += len(a) + (0 if len(a) in self.seen else 100)
    self.seen.add(len(a))
    return a


def test_compile_time_is_left_out(monkeypatch):
  pair, pictures = Pair("p", None, None, None), [np.zeros((4, 4), np.uint8)] * 3
  timed = timing.Timed(Slow(monkeypatch))
  for count in (3, 3, 2, 3, 2):
    timed.fuse(pictures[:count], pictures[:count])
  assert timed.seconds(pair, FuseOptions()) == 1
  once = timing.Timed(Slow(monkeypatch))
  once.fuse(pictures, pictures, on_done=print)
  assert once.seconds(pair, FuseOptions()) == 1


@pytest.mark.parametrize(
  ("words", "found"),
  [
    ("small, max", {"small": "small", "max": "max"}),
    ("runs/x/,m.safetensors", {"x": "runs/x/", "m": "m.safetensors"}),
    ("mine=a/b.safetensors,hf://me/it", {"mine": "a/b.safetensors", "it": "hf://me/it"}),
  ],
)
def test_models_have_labels(words, found):
  assert parse_models(words) == found


@pytest.mark.parametrize(
  ("words", "error"),
  [
    (",", "name one at least"),
    ("a/model.safetensors,b/model.safetensors", "both called model: write LABEL=b/model"),
    ("..", "write LABEL=.."),
  ],
)
def test_labels_that_cannot_be_are_refused(words, error):
  with pytest.raises(UserError, match=error):
    parse_models(words)


def test_nothing_to_do_is_wrong_usage(folder, capsys):
  (folder / "file").touch()
  sources = [str(folder / "a"), str(folder / "b")]
  assert main(["compare", *sources, "-o", str(folder / "file")]) == 2
  assert "give a folder" in capsys.readouterr().err
  assert main(["compare", *sources, "-o", str(folder / "new"), "--models", "nothing"]) == 2
  assert "none of the models could be used" in capsys.readouterr().err
