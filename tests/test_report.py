"""The HTML reports: complete, self-contained, in the stated order, safe with any file name."""

import base64
import csv
import html.parser
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from browser import errors_of, open_browser, requests_of, wait_for
from PIL import Image

from dmfnet_jax import report
from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import measure
from dmfnet_jax.io import color, panels, pictures
from dmfnet_jax.report import charts, page, run, scores, shown, write_report
from dmfnet_jax.report.scores import NAMES

STEMS = ["<img src=x onerror=alert(1)>", "a & b", "ZÜRICH 北京", "p3", "p4"]
SIZE = (48, 64)
# The fused pictures' brightness, which the stand-in for the metrics returns: who is worst.
LEVELS = dict(zip(STEMS, (120, 40, 200, 80, 160), strict=True))


class Parsed(html.parser.HTMLParser):
  """A page's elements: (tag, attributes, text directly inside)."""

  def __init__(self, text: str):
    super().__init__()
    self.elements: list[tuple[str, dict, list[str]]] = []
    self._open: list[list[str]] = []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes), []))
    if tag not in ("meta", "img", "input"):
      self._open.append(self.elements[-1][2])

  def handle_endtag(self, tag):
    self._open.pop()

  def handle_data(self, data):
    if self._open:
      self._open[-1].append(data)

  def all(self, tag, **wanted):
    """The elements of a tag whose attributes have these values."""
    return [
      (attributes, "".join(text))
      for name, attributes, text in self.elements
      if name == tag and all(attributes.get(key) == value for key, value in wanted.items())
    ]

  @property
  def data(self):
    return json.loads(self.all("script", id="data")[0][1])

  @property
  def names(self):
    """The names in the table of pairs, from top to bottom."""
    return [text for attributes, text in self.all("button") if "aria-expanded" in attributes]


@pytest.fixture
def folders(tmp_path) -> list[Path]:
  """A, B (of which one is grey) and fused pictures of `STEMS`."""
  found = [tmp_path / name for name in ("a", "b", "fused")]
  for folder in found:
    folder.mkdir()
  rng = np.random.default_rng(0)
  for i, stem in enumerate(STEMS):
    noise = rng.integers(0, 40, (2, *SIZE, 3)).astype(np.uint8)
    Image.fromarray(noise[0, ..., 0]).save(found[0] / f"{stem}.png")
    Image.fromarray(noise[1, ..., 0] if i == 0 else noise[1]).save(found[1] / f"{stem}.png")
    Image.new("L", SIZE[::-1], LEVELS[stem]).save(found[2] / f"{stem}.png")
  return found


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
  """All metrics are the fused picture's brightness: nothing is compiled."""

  def metrics(a, b, fused, **options):
    return {name: np.asarray(fused, np.float32).mean((1, 2)) for name in NAMES}

  monkeypatch.setattr(measure, "compute_metrics", metrics)
  monkeypatch.setattr(measure, "compute_reader_metrics", lambda *images: {})


def write(folders, tmp_path, **options) -> tuple[int, Parsed]:
  code = write_report(folders, tmp_path / "out" / "report.html", **options)
  return code, Parsed((tmp_path / "out" / "report.html").read_text("utf-8"))


def picture_of(uri: str) -> np.ndarray:
  kind, encoded = uri.split(",", 1)
  assert kind == "data:image/webp;base64"
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def assert_self_contained(parsed: Parsed) -> None:
  for _, attributes, _ in parsed.elements:
    for name in ("src", "href", "action", "data", "poster", "srcset"):
      assert attributes.get(name, "data:").startswith("data:"), (name, attributes)
  policy = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
  assert policy.startswith("default-src 'none'; img-src data: blob:;")
  for _, style in parsed.all("style"):
    assert "url(" not in style
    assert "@import" not in style
  for attributes, script in parsed.all("script"):
    if attributes.get("type") != "application/json":
      assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\(", script)


def test_every_pair_is_there_worst_first(folders, tmp_path):
  code, parsed = write(folders, tmp_path)
  assert code == 0
  assert_self_contained(parsed)
  expected = sorted(STEMS, key=LEVELS.get)
  assert parsed.names == expected  # as text: no element was made of a name
  assert [pair["name"] for pair in parsed.data["pairs"]] == expected
  assert parsed.data["metrics"] == list(NAMES)
  for pair in parsed.data["pairs"]:
    assert pair["values"] == [LEVELS[pair["name"]]] * 15
  # Of each pair the strip and four pictures; the rest is drawn from these in the browser.
  assert len(parsed.all("img")) == 5 * len(STEMS)
  assert len(parsed.all("canvas", role="img")) == 2 * len(STEMS)
  assert len(parsed.all("svg", **{"class": "histogram"})) == 15
  assert parsed.all("h1")[0][1] == f"Fused: {folders[2]}"


def test_pictures_are_the_files(folders, tmp_path):
  _, parsed = write(folders, tmp_path)
  for folder, view in zip(folders, ("A", "B", "fused"), strict=True):
    for stem in STEMS:
      shown = picture_of(parsed.all("img", alt=f"{view} of {stem}")[0][0]["src"])
      stored = np.asarray(Image.open(folder / f"{stem}.png").convert("RGB"))
      np.testing.assert_array_equal(shown, stored)


def test_the_overlay_is_that_beside_the_fused_picture_or_made(folders, tmp_path):
  written = np.random.default_rng(2).integers(0, 256, (*SIZE, 3), np.uint8)
  Image.fromarray(written).save(folders[2] / "p3_overlay.png")
  _, parsed = write(folders, tmp_path)
  assert parsed.names == sorted(STEMS, key=LEVELS.get)
  for stem in STEMS:
    shown = picture_of(parsed.all("img", alt=f"overlay of {stem}")[0][0]["src"])
    sources = [pictures.read_image(folder / f"{stem}.png") for folder in folders[:2]]
    expected = written if stem == "p3" else panels.overlay(*sources, 0.5)
    np.testing.assert_array_equal(shown, expected)


def test_the_same_input_gives_the_same_bytes(folders, tmp_path):
  for name in ("1.html", "2.html"):
    write_report(folders, tmp_path / name, title="T")
  assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_a_page_for_many_pairs_stays_small(folders, tmp_path, monkeypatch):
  monkeypatch.setattr(shown, "LOSSLESS_PIXELS", 2 * 4 * 48 * 64 - 1)
  _, parsed = write(folders, tmp_path, max_pictures=2, title="Some <title>")
  assert parsed.all("h1")[0][1] == parsed.all("title")[0][1] == "Some <title>"
  assert parsed.names == sorted(STEMS, key=LEVELS.get)
  assert len(parsed.all("img")) == 5 * 2
  paragraphs = [text for _, text in parsed.all("p")]
  assert "Pictures are shown of the 2 worst of 5 pairs." in paragraphs
  assert any(text.startswith("The pictures of 2 pairs are compressed") for text in paragraphs)
  assert paragraphs.count("64 × 48 pixels, compressed with loss") == 2
  assert paragraphs.count("Not among the pairs that are shown in pictures.") == 3


def test_large_pictures_are_reduced(folders, tmp_path, monkeypatch):
  monkeypatch.setattr(shown, "MAX_SIDE", 32)
  _, parsed = write(folders, tmp_path)
  assert "64 × 48 pixels, reduced to 32 here" in [text for _, text in parsed.all("p")]
  assert picture_of(parsed.all("img", alt="A of p3")[0][0]["src"]).shape == (24, 32, 3)


def test_what_cannot_be_measured_is_named(folders, tmp_path, capsys):
  (folders[2] / "p3.png").write_bytes(b"no picture")
  (folders[1] / "a & b.png").unlink()
  code, parsed = write(folders, tmp_path)
  assert code == 1
  assert len(parsed.names) == 3
  assert parsed.data["failures"].keys() == {"p3", "a & b"}
  assert [text for _, text in parsed.all("b")][:2] == ["a & b", "p3"]
  assert "5 pairs" not in parsed.all("p")[0][1]
  assert parsed.all("p")[0][1].startswith("3 pairs measured, 2 not.")
  assert "pair p3: " in capsys.readouterr().err


def test_the_values_stand_beside_what_needs_no_network(folders, tmp_path):
  _, parsed = write(folders, tmp_path)
  link = parsed.all("a", download="metrics.csv")[0][0]["href"]
  rows = list(csv.reader(base64.b64decode(link.partition(",")[2]).decode().splitlines()))
  assert rows[0] == ["pair", "slice", "result", *NAMES]
  found = {(row[0], row[2]): float(row[3]) for row in rows[1:]}
  assert len(found) == len(rows) - 1 == 4 * len(STEMS)
  for stem in STEMS:
    a, b = (color.to_grey(pictures.read_image(folder / f"{stem}.png")) for folder in folders[:2])
    assert found[stem, "fused"] == LEVELS[stem]
    assert found[stem, "max"] == pytest.approx(np.maximum(a, b).mean(), rel=1e-5)
  means = {name: values["EN"] for name, values in parsed.data["baselines"].items()}
  assert means["max"] == pytest.approx(np.mean([found[stem, "max"] for stem in STEMS]))
  assert list(means) == ["max", "mean", "overlay"]
  assert ["fused", *means] == [text for _, text in parsed.all("th", scope="row")][:4]


def facts_of(parsed):
  names, values = ([text for _, text in parsed.all(tag)] for tag in ("dt", "dd"))
  return dict(zip(names, values, strict=True))


def test_the_model_and_the_options_are_those_of_the_records(folders, tmp_path):
  assert set(facts_of(write(folders, tmp_path)[1]).values()) == {"not recorded beside the results"}
  written = {"model-name": "runs/mine", "model": "0123456789abcdef", "seed": 3, "samples": 8}
  of_folder = written | {"overlay": 0.5, "window-b": [0, 7]}
  (folders[2] / ".dmfnet_fuse.json").write_text(json.dumps(of_folder))
  facts = facts_of(write(folders, tmp_path)[1])
  assert facts["Model"] == "mine · SHA-256 0123456789ab"
  assert facts["Seed"] == "3, mean of 8 noise draws"
  assert facts["Options"] == "--overlay=0.5 '--window-b=[0, 7]'"
  record = {"model": "small", "model_sha256": "ff", "seed": 4, "samples": None}
  record["options"] = "--model=small --seed=4 --lut=hot --window-b=0,9"
  for stem in STEMS:
    (folders[2] / f"{stem}.json").write_text(json.dumps(record))
  facts = facts_of(write(folders, tmp_path)[1])
  assert list(facts.values()) == ["small · SHA-256 ff", "4", "--lut=hot --window-b=0,9"]
  (folders[2] / "p3.json").write_text("{")
  assert facts_of(write(folders, tmp_path)[1])["Seed"] == "4; 3, mean of 8 noise draws"


def test_a_volume_has_a_line_a_slice(tmp_path):
  """Thick slices, of which two show nothing, without a record of how they were fused."""
  import nibabel

  shape, affine = (48, 50, 5), np.diag([1, 1, 2, 1])
  data = np.random.default_rng(0).integers(1, 255, shape).astype(np.uint8)
  data[..., :2] = 0
  for name, levels in (("a", data), ("b_pet", data), ("f", data // 2)):
    nibabel.save(nibabel.Nifti1Image(levels, affine), tmp_path / f"{name}.nii")
  code, parsed = write([tmp_path / f"{name}.nii" for name in ("a", "b_pet", "f")], tmp_path)
  assert code == 0
  assert sorted(parsed.names) == [f"f axial_{i:03d}" for i in (2, 3, 4)]
  assert "f: 3 of 5 slices" in [text for _, text in parsed.all("th", scope="row")]
  shown = picture_of(parsed.all("img", alt="A of f axial_003")[0][0]["src"])
  assert shown.shape == (50, 48, 3)
  notes = [text for _, text in parsed.all("p") if text.startswith("48 × 50 pixels; A ")]
  assert len(notes) == 3
  assert notes[0].endswith("B 0 to 254 (0 to the maximum, as PET)")


def test_three_files_are_a_pair(folders, tmp_path):
  files = [folder / "p4.png" for folder in folders]
  code, parsed = write(files, tmp_path)
  assert (code, parsed.names) == (0, ["p4"])
  assert parsed.data["pairs"][0]["distances"] == [None] * 15


@pytest.mark.parametrize(
  ("sources", "out", "message"),
  [
    (["a", "b", "fused"], "report.png", "report.png: a report is a web page"),
    (["a", "b"], "r.html", "2 sources: give three"),
    (["a"], "r.html", "a: not the workdir of a training run"),
    (["nothing"], "r.html", "nothing: no such folder"),
    (["a", "b", "nothing"], "r.html", "nothing: no such folder"),
    (["a", "b", "empty"], "r.html", "no file stem is in all three"),
    (["empty_run"], "r.html", "empty_run: no metrics.jsonl with a step in it"),
    (["a", "b", "fused"], "a/p3.png/r.html", "cannot make this folder"),
  ],
)
def test_mistakes(folders, tmp_path, monkeypatch, sources, out, message):
  monkeypatch.chdir(tmp_path)
  Path("empty").mkdir()
  Path("empty_run/checkpoints").mkdir(parents=True)
  with pytest.raises(UserError, match=re.escape(message)):
    write_report(sources, out)
  assert not Path("r.html").exists()


def test_the_command(monkeypatch, capsys):
  calls = []
  monkeypatch.setattr(report, "write_report", lambda *a, **k: calls.append((a, k)) or 1)
  assert main(["report", "a", "b", "f", "-o", "r.html", "--pictures", "9", "--title", "T"]) == 1
  assert main(["report", "run", "--out", "r.html"]) == 1
  assert calls == [
    ((["a", "b", "f"], "r.html"), {"title": "T", "max_pictures": 9}),
    ((["run"], "r.html"), {"title": None, "max_pictures": report.MAX_PICTURES}),
  ]
  assert main(["report", "a", "b", "f"]) == 2
  assert "required: -o/--out" in capsys.readouterr().err


# Scores.


def values_of(**columns):
  """Values of every metric, all alike but for those given."""
  count = len(next(iter(columns.values())))
  return {
    f"p{i}": {name: float(columns.get(name, [1.0] * count)[i]) for name in NAMES}
    for i in range(count)
  }


def test_distances_are_in_sample_deviations_and_minus_is_worse():
  en, mse = [1.0, 2.0, 6.0], [10.0, 40.0, 10.0]
  found = {score.stem: score for score in scores.worst_first(values_of(EN=en, MSE=mse))}
  for i in range(3):
    distances = found[f"p{i}"].distances
    assert distances["EN"] == pytest.approx((en[i] - 3) / np.std(en, ddof=1))
    assert distances["MSE"] == pytest.approx(-(mse[i] - 20) / np.std(mse, ddof=1))
    assert math.isnan(distances["MI"])  # all alike: no distance
    assert found[f"p{i}"].score == pytest.approx(distances["EN"])  # the MSE does not count


def test_infinite_values_count_for_nothing():
  found = scores.worst_first(values_of(PSNR=[10, math.inf, 30, 20], CC=[0.9, 0.8, 0.7, 0.8]))
  assert (found[0].stem, found[-1].stem) == ("p2", "p0")
  distances = {score.stem: score.distances["PSNR"] for score in found}
  assert distances == pytest.approx({"p0": -1, "p1": math.nan, "p2": 1, "p3": 0}, nan_ok=True)
  spread = scores.spreads(values_of(PSNR=[10, math.inf, 30, 20]))["PSNR"]
  assert spread == (20, 10, 10, 30)
  nothing = scores.spreads(values_of(PSNR=[math.inf, math.inf]))["PSNR"]
  assert all(map(math.isnan, nothing))


def test_equal_scores_are_in_the_order_of_their_stems():
  values = {stem: dict.fromkeys(NAMES, 0.1) for stem in "cab"}
  assert [(score.stem, score.score) for score in scores.worst_first(values)] == [
    ("a", 0),
    ("b", 0),
    ("c", 0),
  ]
  assert len(scores.ABOUT) == len(NAMES)


@pytest.mark.parametrize(
  ("value", "shown"),
  [(-0.04, "0.0"), (-1.25, "−1.2"), (math.inf, "∞"), (-math.inf, "−∞"), (math.nan, "–")],
)
def test_numbers(value, shown):
  assert page.number(value, 1) == shown


# Charts.


def test_a_histogram_counts_every_finite_value():
  svg = charts.histogram([0, 0, 0.5, 1, math.inf, math.nan], "x < y")
  assert sum(int(count) for count in re.findall(r": (\d+)</title>", svg)) == 4
  assert 'aria-label="x &lt; y"' in svg
  assert 'data-low="0.0" data-high="1.0"' in svg
  assert charts.histogram([math.inf], "none") == ""
  assert charts.histogram([3.0, 3.0], "one value").count("<rect") == 1


@pytest.mark.parametrize(
  ("values", "ticks"),
  [
    ([0.5, 0.9, 1.0], ["0.5", "0.6", "0.7", "0.8", "0.9", "1"]),
    ([1.0, 0.1, 0.01], ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]),
    ([2.0, 2.0, 2.0], ["1.9", "1.95", "2", "2.05", "2.1"]),
    ([0.0, 0.0, 0.0], ["−1", "−0.5", "0", "0.5", "1"]),
    ([-5.0, 5.0, 2e6], ["0", "500k", "1M", "1.5M", "2M"]),
    ([1e-5, 2e-5, 3e-5], ["1e−5", "1.5e−5", "2e−5", "2.5e−5", "3e−5"]),
  ],
)
def test_curves_stay_inside_and_have_round_ticks(values, ticks):
  svg = charts.curves({"training": list(enumerate(values, 1)), "validation": []}, "x")
  found = re.findall(r'<text x="52"[^>]*>([^<]+)<', svg)
  assert found == ticks
  (points,) = re.findall(r'<polyline class="s0" points="([^"]+)"', svg)
  for point in points.split():
    x, y = map(float, point.split(","))
    assert 58 <= x <= 548
    assert 12 <= y <= 212


def test_no_points_no_chart():
  assert charts.curves({"training": []}, "x") == ""


# Training runs.


@pytest.fixture
def workdir(tmp_path) -> Path:
  """A run of Stage II: damaged and empty lines, a value that was not finite, two pictures."""
  import orbax.checkpoint as ocp

  folder = tmp_path / "run <1>"
  (folder / "samples").mkdir(parents=True)
  lines = [
    {"step": 10, "loss": 0.5, "term<b>": 0.25, "grad_norm": None, "learning_rate": 1e-4},
    {"step": 10, "validation/loss": 0.6, "validation/term<b>": 0.3},
    {"step": 20, "loss": 0.25, "term<b>": 0.125, "grad_norm": 2.0, "steps_per_second": 13.004}
    | {"device_memory_gib": 2.5},
  ]
  text = "\n".join(map(json.dumps, lines))
  (folder / "metrics.jsonl").write_text(f'{text}\n\n[1]\nnull\n{{"loss": 1}}\n{{"step": 30, "lo')
  for step in (10, 20):
    Image.new("RGB", (90, 60), (step, 0, 0)).save(folder / "samples" / f"step_{step:08d}.png")
  (folder / "samples" / "other.png").write_bytes(b"not a sample")
  (folder / "parameters.txt").write_text("| unet/<b> | 3 |\n")
  config = {"stage": 2, "dataset": "<d>", "num_train_steps": 40, "unet": {"width": 8, "x": [1, 2]}}
  manager = ocp.CheckpointManager(folder / "checkpoints")
  for step in (10, 20):
    settings = ocp.args.JsonSave({**config, "seed": step})
    manager.save(step, args=ocp.args.Composite(config=settings))
  manager.close()
  return folder


def test_a_training_run(workdir, tmp_path):
  before = sorted(tmp_path.rglob("*"))
  code, parsed = write([workdir], tmp_path)
  assert code == 0
  assert_self_contained(parsed)
  assert parsed.all("h1")[0][1] == "Training run run <1>"
  assert parsed.data["series"] == {
    "loss": [[10, 0.5], [20, 0.25]],
    "term<b>": [[10, 0.25], [20, 0.125]],
    "learning_rate": [[10, 1e-4]],
    "validation/loss": [[10, 0.6]],
    "validation/term<b>": [[10, 0.3]],
    "grad_norm": [[20, 2.0]],
    "steps_per_second": [[20, 13.004]],
    "device_memory_gib": [[20, 2.5]],
  }
  facts = [text for _, text in parsed.all("dd")]
  assert facts == ["2", "<d>", "20 of 40", "0.2500", "0.6000 at step 10", "13"]
  names = [
    attributes["data-name"] for attributes, _ in parsed.all("figure") if attributes.get("data-name")
  ]
  rates = ["learning_rate", "grad_norm", "steps_per_second", "device_memory_gib"]
  assert names == ["loss", "term<b>", *rates]
  titles = [text for _, text in parsed.all("b")]
  assert [title for title in titles if title.startswith("Loss term")] == ["Loss term: term<b>"]
  samples = parsed.all("figure", **{"class": "sample"})
  assert [attributes["data-step"] for attributes, _ in samples] == ["10", "20"]
  rows = [text for _, text in parsed.all("td")]
  assert rows == ["2", "<d>", "40", "8", "[1, 2]", "20"]  # of the newest checkpoint
  assert "unet.x" in [text for _, text in parsed.all("th")]
  assert parsed.all("pre")[0][1] == "| unet/<b> | 3 |\n"
  added = set(tmp_path.rglob("*")) - set(before)
  assert added == {tmp_path / "out", tmp_path / "out" / "report.html"}  # the run was only read


def test_a_run_that_has_just_begun(workdir, tmp_path):
  import shutil

  for name in ("checkpoints", "samples"):
    shutil.rmtree(workdir / name)
  (workdir / "parameters.txt").unlink()
  (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
  code, parsed = write([workdir], tmp_path)
  assert code == 0
  assert parsed.data == {"series": {"loss": [[1, 2.0]]}, "config": {}}
  assert parsed.all("img") == []


def test_long_runs_are_thinned(workdir, tmp_path, monkeypatch):
  steps = range(1, 10001)
  (workdir / "metrics.jsonl").write_text(
    "".join(json.dumps({"step": step, "loss": float(step)}) + "\n" for step in steps)
  )
  monkeypatch.setattr(run, "MAX_SAMPLES", 1)
  _, parsed = write([workdir], tmp_path)
  points = parsed.data["series"]["loss"]
  assert len(points) <= 600
  assert points[0] == [17, 9.0]  # means of seventeen steps
  assert points[-1][0] == 10000
  assert len(parsed.all("img")) == 1


# In a browser.


def test_the_pairs_in_a_browser(folders, tmp_path):
  write(folders, tmp_path)
  with open_browser() as browser:
    browser.get((tmp_path / "out" / "report.html").as_uri())
    names = (
      "return [...document.querySelectorAll('#pairs th[scope=row]')].map((th) => th.textContent)"
    )
    expected = sorted(STEMS, key=LEVELS.get)
    assert browser.execute_script(names) == expected
    browser.find_element("css selector", "[data-key=name]").click()
    assert browser.execute_script(names)[-1] == "ZÜRICH 北京"
    browser.find_element("css selector", "[data-key=score]").click()
    assert browser.execute_script(names) == expected
    browser.find_element("css selector", "[data-key=MSE]").click()  # lower is better
    assert browser.execute_script(names) == expected[::-1]
    browser.find_element("name", "find").send_keys("zür")
    shown = "return [...document.querySelectorAll('#pairs tbody')].filter((b) => !b.hidden).length"
    assert browser.execute_script(shown) == 1
    browser.find_element("name", "find").send_keys("\ue003" * 3)  # backspace
    assert browser.execute_script(shown) == len(STEMS)

    # The worst pair is open; its drawings are compared with NumPy's.
    stem = expected[0]
    a, b, fused = (
      np.asarray(Image.open(folder / f"{stem}.png").convert("RGB")).astype(float)
      for folder in folders
    )
    pixels = """
      const canvas = document.querySelector(`#detail-0 [data-view=${arguments[0]}] canvas`);
      const {width, height} = canvas;
      return [...canvas.getContext('2d').getImageData(0, 0, width, height).data];"""
    ready = "return document.querySelector('#detail-0 [data-view=difference] canvas').width"
    wait_for(lambda: browser.execute_script(ready) == SIZE[1], "the drawings")
    drawn = np.array(browser.execute_script(pixels, "checker")).reshape(*SIZE, 4)
    y, x = np.indices(SIZE) // 8
    board = np.where(((y + x) % 2 == 1)[..., None], fused, a)
    np.testing.assert_array_equal(drawn[..., :3], board)
    drawn = np.array(browser.execute_script(pixels, "difference")).reshape(*SIZE, 4)
    luma = [image @ [0.299, 0.587, 0.114] for image in (a, b, fused)]
    size = np.clip(4 * (luma[2] - np.maximum(luma[0], luma[1])) / 255, 0, 1)
    np.testing.assert_allclose(drawn[..., 0], 255 * size, atol=1)

    browser.find_element("css selector", "#detail-0 [data-view=overlay]").click()
    caption = browser.find_element("css selector", "#viewer p")
    assert caption.text == f"{stem} overlay"
    browser.switch_to.active_element.send_keys("\ue014")
    wait_for(lambda: caption.text == f"{stem} fused", "the fused picture")
    browser.switch_to.active_element.send_keys("\ue014")  # the right arrow
    wait_for(lambda: caption.text == f"{stem} checkerboard", "the next view")
    assert errors_of(browser) == []
    assert {url.partition(":")[0] for url in requests_of(browser)} == {"file"}


def test_a_training_run_in_a_browser(workdir, tmp_path):
  write([workdir], tmp_path)
  with open_browser() as browser:
    browser.get((tmp_path / "out" / "report.html").as_uri())
    output = browser.find_element("css selector", ".charts output")
    assert output.text == "training 0.2500 at step 20 · validation 0.6000 at step 10"
    samples = browser.find_elements("class name", "sample")
    assert [sample.is_displayed() for sample in samples] == [False, True]
    browser.find_element("id", "step").send_keys("\ue012")  # the left arrow
    assert [sample.is_displayed() for sample in samples] == [True, False]
    assert errors_of(browser) == []
