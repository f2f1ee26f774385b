"""Fusing files with a stand-in for the model: pairing, messages, exit codes, what is written."""

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeModel, fuse, listing
from PIL import Image

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import panels, pictures, scaling
from dmfnet_jax.methods.method import Field


def _picture(seed: int, shape: tuple[int, ...]) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _folders(root: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[Path, Path]:
  """Writes a pair for each stem: A grey, B of the shape."""
  a, b = root / "a", root / "b"
  for folder in (a, b):
    folder.mkdir()
  for i, (stem, shape) in enumerate(shapes.items()):
    pictures.write_image(a / f"{stem}.png", _picture(2 * i, shape[:2]))
    pictures.write_image(b / f"{stem}.png", _picture(2 * i + 1, shape))
  return a, b


def _read_all(folder: Path) -> dict[str, np.ndarray]:
  return {name: pictures.read_image(folder / name) for name in listing(folder)}


def _assert_same_pictures(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
  assert list(first) == list(second)
  for name in first:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)


MIXED = {f"{i:02d}": [(8, 6), (8, 6, 3), (5, 9, 3)][i % 3] for i in range(13)}


def test_folders_give_one_png_a_pair(tmp_path, model, capsys):
  a, b = _folders(tmp_path, MIXED)
  out = tmp_path / "new" / "out"
  assert fuse(a, b, out, seed=3) == 0
  written = _read_all(out)
  assert list(written) == [f"{stem}.png" for stem in MIXED]
  for stem, shape in MIXED.items():
    expected = model.fuse(
      pictures.read_image(a / f"{stem}.png")[None],
      pictures.read_image(b / f"{stem}.png")[None],
      seed=3,
      names=[stem],
    )[0]
    assert written[f"{stem}.png"].shape == shape
    np.testing.assert_array_equal(written[f"{stem}.png"], expected)
  assert "13 of 13 pairs fused" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_batches_are_of_one_padded_size_and_change_nothing(tmp_path, model, batch_size):
  a, b = _folders(tmp_path, MIXED)
  fuse(a, b, tmp_path / "alone")
  model.calls.clear()
  fuse(a, b, tmp_path / "batched", batch_size=batch_size)
  _assert_same_pictures(_read_all(tmp_path / "alone"), _read_all(tmp_path / "batched"))
  counts = {padded: [] for padded in ((8, 8), (8, 12))}
  for call in model.calls:
    counts[call["padded"]].append(call["shape"][0])
    assert call["batch_size"] == batch_size
  # Full batches, and at the end what remains: filling it up is the model's affair.
  for count, total in zip(counts.values(), (9, 4), strict=True):
    assert sum(count) == total
    assert all(x == batch_size for x in count[:-1])
  assert sorted(name for call in model.calls for name in call["names"]) == list(MIXED)


def test_two_files(tmp_path, model):
  a, b = _folders(tmp_path, {"x": (6, 5, 3)})
  pair = a / "x.png", b / "x.png"
  (tmp_path / "existing").mkdir()
  for out, written in [
    ("folder", "folder/x.png"),
    ("existing", "existing/x.png"),
    ("deep/er/folder", "deep/er/folder/x.png"),
    ("y.tif", "y.tif"),
    ("new/z.bmp", "new/z.bmp"),
  ]:
    assert fuse(*pair, tmp_path / out, seed=1) == 0
    assert (tmp_path / written).is_file()
  fuse(a, b, tmp_path / "as_folders", seed=1)
  alone = pictures.read_image(tmp_path / "y.tif")
  np.testing.assert_array_equal(alone, pictures.read_image(tmp_path / "as_folders" / "x.png"))
  assert {call["seed"] for call in model.calls} == {1}


def test_two_files_are_named_after_a(tmp_path, model):
  pictures.write_image(tmp_path / "mri 1.png", _picture(0, (4, 4)))
  pictures.write_image(tmp_path / "pet.jpg", _picture(1, (4, 4, 3)))
  assert fuse(tmp_path / "mri 1.png", tmp_path / "pet.jpg", tmp_path / "o") == 0
  assert model.calls[0]["names"] == ["mri 1"]
  assert listing(tmp_path / "o") == ["mri 1.png"]


def test_non_latin_names_match_across_suffixes(tmp_path, model):
  a, b = tmp_path / "a", tmp_path / "b"
  a.mkdir()
  b.mkdir()
  pictures.write_image(a / "脳 é.png", _picture(0, (4, 4)))
  pictures.write_image(b / "脳 e\u0301.TIF", _picture(1, (4, 4)))
  assert fuse(a, b, tmp_path / "out", strict=True) == 0
  assert listing(tmp_path / "out") == ["脳 é.png"]


def test_bad_pairs_are_named_and_the_others_written(tmp_path, model, capsys):
  a, b = _folders(tmp_path, {stem: (6, 6) for stem in ("1", "2", "3", "4", "5")})
  pictures.write_image(b / "2.png", _picture(0, (6, 7)))
  (a / "3.png").write_bytes(b"no picture")
  (b / "4.png").write_bytes((b / "4.png").read_bytes()[:60])
  assert fuse(a, b, tmp_path / "out") == 1
  assert set(listing(tmp_path / "out")) == {"1.png", "5.png"}
  err = capsys.readouterr().err
  assert "pair 2: A is 6 x 6 and B 7 x 6 pixels (width x height)" in err
  assert f"pair 3: {a / '3.png'}: not a readable PNG" in err
  assert f"pair 4: {b / '4.png'}: broken picture: the file is truncated" in err
  assert "2 of 5 pairs fused" in err


def test_one_pair_that_fails(tmp_path, model):
  a, b = _folders(tmp_path, {"x": (6, 6)})
  (a / "x.png").write_bytes(b"")
  assert fuse(a / "x.png", b / "x.png", tmp_path / "y.png") == 1
  assert not (tmp_path / "y.png").exists()


def test_a_failed_write_is_a_failed_pair(tmp_path, model, capsys):
  a, b = _folders(tmp_path, {stem: (6, 6) for stem in ("1", "2", "3")})
  out = tmp_path / "out"
  (out / "2.png" / "in the way").mkdir(parents=True)
  assert fuse(a, b, out) == 1
  assert listing(out) == ["1.png", "2.png", "3.png"]
  err = capsys.readouterr().err
  assert f"error: pair 2: {out / '2.png'}: cannot write: Is a directory" in err
  assert "2 of 3 pairs fused" in err


def test_files_without_a_partner(tmp_path, model, capsys):
  a, b = _folders(tmp_path, {"1": (6, 6), "2": (6, 6)})
  (a / "2.png").rename(a / "3.png")
  with pytest.raises(UserError, match=r"without a partner: .*a/3\.png, .*b/2\.png") as caught:
    fuse(a, b, tmp_path / "out", strict=True, model="unknown")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "out").exists()
  assert fuse(a, b, tmp_path / "out") == 0
  err = capsys.readouterr().err
  assert f"no partner for {a / '3.png'}" in err
  assert f"no partner for {b / '2.png'}" in err
  (b / "1.png").unlink()
  with pytest.raises(UserError, match=r"no file in .* has a partner"):
    fuse(a, b, tmp_path / "out")


def test_colour_of_a_is_dropped_with_one_warning(tmp_path, model, capsys):
  a, b = _folders(tmp_path, {stem: (6, 6) for stem in ("1", "2", "3")})
  grey = _picture(0, (6, 6))
  pictures.write_image(a / "1.png", np.stack([grey] * 3, axis=-1))  # neutral: nothing is lost
  coloured = _picture(1, (6, 6, 3))
  pictures.write_image(a / "2.png", coloured)
  pictures.write_image(a / "3.png", coloured)
  assert fuse(a, b, tmp_path / "out") == 0
  err = capsys.readouterr().err
  assert err.count("only the luma is used") == 1
  assert f"{a / '2.png'} is coloured" in err


def test_an_overlay_is_written_beside(tmp_path, model):
  """Of a grey B in the map's colours, of a coloured one in its own; it is no picture to fuse."""
  a, b = _folders(tmp_path, {"1": (6, 5), "2": (6, 5, 3)})
  assert fuse(a, b, tmp_path / "out", overlay=0.3) == 0
  names = {f"{stem}{end}" for stem in "12" for end in (".png", "_overlay.png")}
  assert set(listing(tmp_path / "out")) == names
  assert list(pictures.list_images(tmp_path / "out")) == ["1", "2"]
  for stem in "12":
    sources = [pictures.read_image(folder / f"{stem}.png") for folder in (a, b)]
    laid = pictures.read_image(tmp_path / "out" / f"{stem}_overlay.png")
    np.testing.assert_array_equal(laid, panels.overlay(*sources, 0.3))
  one = a / "1.png", b / "1.png", tmp_path / "y.jpg"
  assert fuse(*one, overlay=0.3, lut="pet") == 0
  laid, table = pictures.read_image(tmp_path / "y_overlay.png"), scaling.read_lut("pet")
  sources = [pictures.read_image(path) for path in one[:2]]
  np.testing.assert_array_equal(laid, panels.overlay(*sources, 0.3, table=table))
  (tmp_path / "1_overlay.png").write_bytes((b / "1.png").read_bytes())
  with pytest.raises(UserError, match=r"1_overlay\.png: the output would replace a source"):
    fuse(a / "1.png", tmp_path / "1_overlay.png", tmp_path / "1.png", overlay=0.3)
  with pytest.raises(UserError, match="results of another overlay"):
    fuse(a, b, tmp_path / "out", overlay=0.4, resume=True)


def test_samples_write_the_deviation_too(tmp_path, model):
  a, b = _folders(tmp_path, {"1": (6, 5), "2": (6, 5, 3)})
  assert fuse(a, b, tmp_path / "out", samples=4, batch_size=8) == 0
  names = {f"{stem}{end}" for stem in "12" for end in (".png", "_std.tiff", "_std.png")}
  assert set(listing(tmp_path / "out")) == names
  # What is beside the pictures is not taken for pictures.
  assert list(pictures.list_images(tmp_path / "out")) == ["1", "2"]
  for stem in ("1", "2"):
    with Image.open(tmp_path / "out" / f"{stem}_std.tiff") as image:
      std = np.asarray(image)
    assert std.dtype == np.float32
    np.testing.assert_array_equal(std, np.full((6, 5), 0.5))
  assert fuse(a / "1.png", b / "1.png", tmp_path / "y.jpg", samples=2) == 0
  assert (tmp_path / "y_std.tiff").is_file()
  assert {call["samples"] for call in model.calls} == {2, 4}


def test_a_picture_that_does_not_fit_the_memory_is_named(tmp_path, model, capsys):
  a, b = _folders(tmp_path, {f"{i}": (6, 6) for i in range(9)} | {"large": (20, 20)})
  model.memory = 36
  assert fuse(a, b, tmp_path / "out", batch_size=8, tile="off") == 1
  assert set(listing(tmp_path / "out")) == {f"{i}.png" for i in range(9)}
  assert "pair large: a picture does not fit the memory" in capsys.readouterr().err


def test_a_picture_that_does_not_fit_the_memory_is_fused_in_tiles(tmp_path, model, capsys):
  a, b = _folders(tmp_path, {"1": (6, 6), "2": (20, 20), "3": (20, 20)})
  model.memory = 36
  assert fuse(a, b, tmp_path / "out", batch_size=8, window_a="0,255", seed=3) == 0
  assert {call["padded"]: call["tile"] for call in model.calls} == {(8, 8): "off", (20, 20): 4}
  told = capsys.readouterr().err
  assert told.count("20 x 20 pixels (height x width): fused in tiles of 4") == 1
  options = {
    name: json.loads((tmp_path / "out" / f"{name}.json").read_text())["options"] for name in "12"
  }
  assert "--tile=4" in options["2"]
  assert "--tile" not in options["1"]


def test_what_the_method_cannot_do_is_refused(tmp_path, model, capsys):
  a, b = _folders(tmp_path, {"1": (6, 6)})
  three = tuple(map(Field, ("t1", "t2", "pet")))
  for changes, options, message in (
    ({"is_random": False}, {"samples": 2}, "fake draws no noise: leave out --samples"),
    ({"sources": three}, {}, r"fake takes 3 sources \(t1, t2, pet\), and 2 are given"),
  ):
    model.method = dataclasses.replace(FakeModel.method, **changes)
    with pytest.raises(UserError, match=message):
      fuse(a, b, tmp_path / "out", **options)
  assert not (tmp_path / "out").exists()


def test_other_errors_of_the_model_are_not_hidden(tmp_path, model):
  a, b = _folders(tmp_path, {"1": (6, 6)})
  model.errors[0] = RuntimeError("a bug")
  with pytest.raises(RuntimeError, match="a bug"):
    fuse(a, b, tmp_path / "out")


def test_an_interrupted_run_leaves_whole_files_and_no_threads(tmp_path, model):
  a, b = _folders(tmp_path, {f"{i}": (6, 6) for i in range(9)})
  model.errors[3] = KeyboardInterrupt()
  threads = threading.active_count()
  with pytest.raises(KeyboardInterrupt):
    fuse(a, b, tmp_path / "out", batch_size=1)
  assert threading.active_count() == threads
  assert all(name.endswith(".png") and name[0] != "." for name in listing(tmp_path / "out"))
  assert len(_read_all(tmp_path / "out")) <= 3


def _wrong_calls() -> dict[str, tuple[str, str, str, str]]:
  return {
    "no A": ("none", "b", "out", "none: no such file or folder"),
    "no B": ("a/1.png", "none.png", "out", r"none\.png: no such file or folder"),
    "file and folder": ("a/1.png", "b", "out", "two files or two folders"),
    "folders into a file": ("a", "b", "out.png", "several pairs need a folder"),
    "folders into an existing file": ("a", "b", "file", "several pairs need a folder"),
    "into A": ("a", "b", "a", "the output folder is a source folder"),
    "into B by another name": ("a", "b", "a/../b", "the output folder is a source folder"),
    "over A": ("a/1.png", "b/1.png", "a/1.png", "would replace a source"),
    "over A by its folder": ("a/1.png", "b/1.png", "a", "would replace a source"),
    "over B by a link": ("a/1.png", "b/1.png", "link.png", "would replace a source"),
    "format": ("a/1.png", "b/1.png", "x.gif", "cannot write this format"),
    "over an odd file": ("a/1.png", "b/1.png", "file", "cannot write this format"),
    "below a file": ("a/1.png", "b/1.png", "file/x.png", "cannot make this folder"),
    "duplicates": ("twice", "b", "out", "have the same stem"),
    "no pictures": ("empty", "b", "out", "no file in"),
    "one folder": ("a", "b/../a", "out", "A and B are one folder"),
  }


@pytest.mark.parametrize("name", _wrong_calls())
def test_wrong_calls_write_nothing(tmp_path, model, monkeypatch, name):
  a, b, out, message = _wrong_calls()[name]
  _folders(tmp_path, {"1": (6, 6)})
  for folder in ("twice", "empty"):
    (tmp_path / folder).mkdir()
  (tmp_path / "twice" / "1.png").touch()
  (tmp_path / "twice" / "1.jpg").touch()
  (tmp_path / "file").touch()
  (tmp_path / "link.png").symlink_to(tmp_path / "b" / "1.png")
  before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=message):
    fuse(a, b, out)
  after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  assert after == before


def test_an_unknown_model_writes_nothing(tmp_path, model):
  a, b = _folders(tmp_path, {"1": (6, 6)})
  with pytest.raises(UserError, match="no released model"):
    fuse(a, b, tmp_path / "out", model="unknown")
  assert not (tmp_path / "out").exists()
