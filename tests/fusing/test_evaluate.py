"""Evaluation of folders: which pictures belong together, what is printed, written and refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import measure
from dmfnet_jax.fusing.evaluate import evaluate_folders, format_table
from dmfnet_jax.metrics import METRIC_NAMES, READER_NAMES

ALL_NAMES = METRIC_NAMES + READER_NAMES

SIZE = (44, 52)


def picture(seed, size=SIZE, channels=()):
  return np.random.default_rng(seed).integers(0, 256, (*size, *channels)).astype(np.uint8)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path, Path]:
  """Five good triples p0 to p4."""
  found = tuple(tmp_path / name for name in ("a", "b", "fused"))
  for n, folder in enumerate(found):
    folder.mkdir()
    for i in range(5):
      Image.fromarray(picture(10 * i + n)).save(folder / f"p{i}.png")
  return found


@pytest.fixture
def shapes(monkeypatch) -> list[tuple[int, ...]]:
  """Puts a cheap stand-in in place of the metrics; returns the shapes that it gets to see."""
  seen = []

  def stand_in(a, b, fused, ssim_range):
    assert a.shape == b.shape == fused.shape
    assert a.dtype == b.dtype == fused.dtype == np.uint8
    seen.append(fused.shape)
    a, b, fused = (x.astype(np.float32).mean(axis=(1, 2)) for x in (a, b, fused))
    return {name: a + 2 * b + 3 * fused + n for n, name in enumerate(METRIC_NAMES)}

  monkeypatch.setattr(measure, "compute_metrics", stand_in)
  return seen


def stand_in_value(folders, stem, metric):
  means = [np.asarray(Image.open(folder / f"{stem}.png"), float).mean() for folder in folders]
  return np.dot([1, 2, 3], means) + METRIC_NAMES.index(metric)


def run(folders, tmp_path, **options) -> tuple[int, dict]:
  code = evaluate_folders(*folders, json_file=tmp_path / "out.json", **options)
  return code, json.loads((tmp_path / "out.json").read_text("utf-8"))


@pytest.mark.parametrize("modality", ["ct", "pet", "spect"])
def test_the_released_pictures_have_their_published_values(modality, shared_dir, tmp_path, capsys):
  folder = shared_dir / "data" / "harvard" / "reference"
  published = json.loads((folder / "metrics.json").read_text())
  folders = [folder / modality / kind for kind in ("mri", "other", "fused")]
  code, got = run(folders, tmp_path)
  assert code == 0
  assert len(got["pairs"]) == 4
  for stem, values in got["pairs"].items():
    known = {name: values[name] for name in METRIC_NAMES}
    assert known == pytest.approx(published[f"{modality}/{stem}"], rel=1e-4), stem
  printed = capsys.readouterr()
  assert printed.err == ""  # no progress bar where nobody looks
  title, heading, row, reader_heading, reader_row = printed.out.splitlines()
  assert title == "4 pairs"
  assert heading.split() == list(METRIC_NAMES)
  assert reader_heading.split() == list(READER_NAMES)
  label, *numbers = row.split()
  assert label == "mean"
  numbers += reader_row.split()[1:]
  for name, number in zip(ALL_NAMES, numbers, strict=True):
    mean = np.mean([values[name] for values in got["pairs"].values()])
    assert got["mean"][name] == pytest.approx(mean, rel=1e-6)
    assert float(number) == pytest.approx(mean, abs=1e-4)


def test_ssim_as_cddfuse_s_tables_have_it(folders, tmp_path):
  mean = [run(folders, tmp_path, ssim_range=r)[1]["mean"] for r in (255, 2)]
  assert mean[0]["SSIM"] != mean[1]["SSIM"]
  assert mean[0] | {"SSIM": None} == mean[1] | {"SSIM": None}


def test_json_has_the_metrics_of_every_pair_in_order(folders, shapes, tmp_path):
  code, got = run(folders, tmp_path)
  assert code == 0
  assert list(got) == ["pairs", "mean"]
  assert list(got["pairs"]) == [f"p{i}" for i in range(5)]
  for stem, values in got["pairs"].items():
    assert list(values) == list(ALL_NAMES)
    known = {name: values[name] for name in METRIC_NAMES}
    assert known == pytest.approx({k: stand_in_value(folders, stem, k) for k in METRIC_NAMES})
  assert list(got["mean"]) == list(ALL_NAMES)


@pytest.mark.parametrize(
  ("batch_size", "want"), [(2, [2, 2, 2]), (1, [1] * 5), (4, [4, 4]), (5, [5]), (None, [5])]
)
def test_a_remainder_is_filled_up(batch_size, want, folders, shapes, tmp_path):
  _, got = run(folders, tmp_path, batch_size=batch_size)
  assert shapes == [(count, *SIZE) for count in want]
  for stem, values in got["pairs"].items():
    assert values["CC"] == pytest.approx(stand_in_value(folders, stem, "CC"))
  want_mean = np.mean([stand_in_value(folders, f"p{i}", "EN") for i in range(5)])
  assert got["mean"]["EN"] == pytest.approx(want_mean)


def test_each_size_has_its_batches(folders, shapes, tmp_path):
  for stem in ("p1", "p3"):
    for n, folder in enumerate(folders):
      Image.fromarray(picture(n, (60, 41))).save(folder / f"{stem}.png")
  code, got = run(folders, tmp_path, batch_size=2)
  assert code == 0
  assert sorted(shapes) == [(2, *SIZE), (2, *SIZE), (2, 60, 41)]
  assert list(got["pairs"]) == [f"p{i}" for i in range(5)]


def test_colour_counts_as_grey(folders, shapes, tmp_path):
  for n, folder in enumerate(folders):
    for i, picture_ in enumerate((picture(n), picture(n, channels=(3,)))):
      Image.fromarray(picture_).save(folder / f"c{i}.png")
    grey = Image.fromarray(np.repeat(picture(n)[..., None], 3, axis=2))
    grey.save(folder / "c2.png")
  _, got = run(folders, tmp_path)
  assert got["pairs"]["c2"] == got["pairs"]["c0"]  # three equal channels lose nothing
  luma = [picture(n, channels=(3,)) @ [0.299, 0.587, 0.114] for n in range(3)]
  want = np.dot([1, 2, 3], [np.rint(x).mean() for x in luma])
  assert got["pairs"]["c1"]["EN"] == pytest.approx(want, abs=0.01)


def test_what_fails_is_named_and_the_rest_is_done(folders, shapes, tmp_path, capsys):
  a, b, fused = folders
  (a / "p0.png").write_bytes(b"no picture")
  Image.fromarray(picture(0, (44, 53))).save(b / "p1.png")
  (fused / "p2.png").unlink()
  for folder in folders:
    Image.fromarray(picture(0, (40, 100))).save(folder / "small.png")
  Image.fromarray(picture(0)).save(fused / "stranger.png")
  code, got = run(folders, tmp_path)
  assert code == 1
  assert list(got["pairs"]) == ["p3", "p4"]
  printed = capsys.readouterr()
  assert printed.out.startswith("2 pairs\n")
  lines = printed.err.splitlines()
  assert len(lines) == 5
  assert all(line.startswith("dmfnet: error: pair ") for line in lines)
  for stem, reason in {
    "p0": f"{a / 'p0.png'}: not a readable",
    "p1": "A is 52 x 44, B 53 x 44 and the fused picture 52 x 44 pixels",
    "p2": f"not in {fused}",
    "small": "100 x 40 pixels",
    "stranger": "not among the sources",
  }.items():
    [line] = [line for line in lines if line.startswith(f"dmfnet: error: pair {stem}: ")]
    assert reason in line


def test_a_source_that_was_never_fused_is_only_named(folders, shapes, tmp_path, capsys):
  Image.fromarray(picture(0)).save(folders[0] / "lonely.png")
  Image.fromarray(picture(0)).save(folders[1] / "alone.png")
  code, got = run(folders, tmp_path)
  assert code == 0
  assert len(got["pairs"]) == 5
  assert capsys.readouterr().err.splitlines() == [
    f"dmfnet: warning: no partner for {folders[1] / 'alone.png'}",
    f"dmfnet: warning: no partner for {folders[0] / 'lonely.png'}",
  ]


def test_deviations_beside_the_fused_pictures_are_passed_over(folders, shapes, tmp_path, capsys):
  Image.fromarray(np.full(SIZE, 3.5, np.float32)).save(folders[2] / "p1_std.tiff")
  code, got = run(folders, tmp_path)
  assert code == 0
  assert list(got["pairs"]) == [f"p{i}" for i in range(5)]
  assert capsys.readouterr().err == ""


def test_suffixes_need_not_agree(folders, shapes, tmp_path):
  (folders[2] / "p0.png").unlink()
  Image.fromarray(picture(2)).save(folders[2] / "p0.jpg")
  code, got = run(folders, tmp_path)
  assert code == 0
  assert "p0" in got["pairs"]


def test_infinite_values_are_null(folders, tmp_path, capsys, monkeypatch):
  def p2_is_perfect(a, b, fused, ssim_range):
    return {
      name: np.float32([1, 1, np.inf if name == "PSNR" else 0, 1, 1]) for name in METRIC_NAMES
    }

  monkeypatch.setattr(measure, "compute_metrics", p2_is_perfect)
  code, got = run(folders, tmp_path)
  assert code == 0
  assert got["pairs"]["p2"]["PSNR"] is None
  assert got["mean"]["PSNR"] is None
  assert got["pairs"]["p1"]["PSNR"] == 1
  assert got["mean"]["MSE"] == pytest.approx(0.8)
  printed = capsys.readouterr()
  assert printed.err == "dmfnet: warning: PSNR is infinite, and so is its mean, because of p2\n"
  assert " inf " in printed.out.splitlines()[2]


def test_no_json_without_its_name(folders, shapes, tmp_path):
  assert evaluate_folders(*folders) == 0
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "fused"]


def test_the_json_file_is_replaced_whole(folders, shapes, tmp_path):
  target = tmp_path / "new" / "folder" / "out.json"
  evaluate_folders(*folders, json_file=target)
  first = target.read_text("utf-8")
  target.write_text("old")
  evaluate_folders(*folders, json_file=str(target))
  assert target.read_text("utf-8") == first
  assert [path.name for path in target.parent.iterdir()] == ["out.json"]


def test_where_json_cannot_be_written(folders, shapes, tmp_path):
  with pytest.raises(UserError, match="cannot write"):
    evaluate_folders(*folders, json_file=folders[0])
  with pytest.raises(UserError, match="cannot make this folder"):
    evaluate_folders(*folders, json_file=folders[0] / "p0.png" / "out.json")
  assert not list(tmp_path.glob(".*"))


def test_nothing_to_evaluate(folders, shapes, tmp_path):
  a, b, fused = folders
  with pytest.raises(UserError, match="no such folder"):
    evaluate_folders(a, b, tmp_path / "missing")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="no file stem is in all three"):
    evaluate_folders(a, b, tmp_path / "empty")
  for path in fused.iterdir():
    path.write_bytes(b"broken")
  with pytest.raises(UserError, match="none of the 5 pairs"):
    run(folders, tmp_path)
  assert not (tmp_path / "out.json").exists()
  assert not shapes


def test_a_table_is_aligned():
  rows = {
    "fused": dict.fromkeys(METRIC_NAMES, 1.23456),
    "max": dict.fromkeys(METRIC_NAMES, -1234.5),
    "mean": dict.fromkeys(METRIC_NAMES, math.inf),
  }
  heading, *lines = format_table(rows).splitlines()
  assert heading.split() == list(METRIC_NAMES)
  assert {len(line) for line in lines} == {len(heading)}
  assert lines[0].split() == ["fused", *["1.2346"] * 12]
  assert lines[1].split() == ["max", *["-1234.5000"] * 12]
