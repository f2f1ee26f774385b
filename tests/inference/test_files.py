"""Fusing files with a stand-in for the model: pairing, messages, exit codes, what is written."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_model import listing
from PIL import Image

from dmfnet_jax.data import images
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference import files


def _picture(seed: int, shape: tuple[int, ...]) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _folders(root: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[Path, Path]:
  """Writes a pair for each stem: A grey, B of the shape."""
  a, b = root / "a", root / "b"
  for folder in (a, b):
    folder.mkdir()
  for i, (stem, shape) in enumerate(shapes.items()):
    images.write_image(a / f"{stem}.png", _picture(2 * i, shape[:2]))
    images.write_image(b / f"{stem}.png", _picture(2 * i + 1, shape))
  return a, b


def _read_all(folder: Path) -> dict[str, np.ndarray]:
  return {name: images.read_image(folder / name) for name in listing(folder)}


def _assert_same_pictures(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
  assert list(first) == list(second)
  for name in first:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)


MIXED = {f"{i:02d}": [(8, 6), (8, 6, 3), (5, 9, 3)][i % 3] for i in range(13)}


def test_folders_give_one_png_a_pair(tmp_path, model, capsys):
  a, b = _folders(tmp_path, MIXED)
  out = tmp_path / "new" / "out"
  assert files.fuse_files("fake", a, b, out, seed=3) == 0
  written = _read_all(out)
  assert list(written) == [f"{stem}.png" for stem in MIXED]
  for stem, shape in MIXED.items():
    expected = model.fuse(
      images.read_image(a / f"{stem}.png")[None],
      images.read_image(b / f"{stem}.png")[None],
      seed=3,
      names=[stem],
    )[0]
    assert written[f"{stem}.png"].shape == shape
    np.testing.assert_array_equal(written[f"{stem}.png"], expected)
  assert "13 of 13 pairs fused" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_batches_are_of_one_padded_size_and_change_nothing(tmp_path, model, batch_size):
  a, b = _folders(tmp_path, MIXED)
  files.fuse_files("fake", a, b, tmp_path / "alone")
  model.calls.clear()
  files.fuse_files("fake", a, b, tmp_path / "batched", batch_size=batch_size)
  _assert_same_pictures(_read_all(tmp_path / "alone"), _read_all(tmp_path / "batched"))
  assert max(call["shape"][0] for call in model.calls) == min(batch_size, 9)
  # Two padded sizes, and one batch size each: a remainder is filled up, not recompiled.
  assert len({(call["shape"][0], call["padded"]) for call in model.calls}) == 2
  assert {name for call in model.calls for name in call["names"]} == set(MIXED)


def test_what_waits_is_bounded(tmp_path, model, monkeypatch):
  """As many sizes as pairs: no size fills a batch of eight, and memory must not fill up."""
  a, b = _folders(tmp_path, {f"{i:03d}": (4, 4 + 4 * i) for i in range(150)})
  read, most_waiting = [], 0
  load, fuse = files.load_pair, model.fuse

  def counted_load(pair, options):
    read.append(pair)
    return load(pair, options)

  def counted_fuse(*args, **kwargs):
    nonlocal most_waiting
    most_waiting = max(most_waiting, len(read) - len(model.calls))
    return fuse(*args, **kwargs)

  monkeypatch.setattr(files, "load_pair", counted_load)
  monkeypatch.setattr(model, "fuse", counted_fuse)
  assert files.fuse_files("fake", a, b, tmp_path / "out", batch_size=8) == 0
  assert most_waiting < 60  # until the last are read: four batches, and those being read ahead
  assert len(listing(tmp_path / "out")) == 150


def test_two_files(tmp_path, model):
  a, b = _folders(tmp_path, {"x": (6, 5, 3)})
  pair = ("fake", a / "x.png", b / "x.png")
  (tmp_path / "existing").mkdir()
  for out, written in [
    ("folder", "folder/x.png"),
    ("existing", "existing/x.png"),
    ("deep/er/folder", "deep/er/folder/x.png"),
    ("y.tif", "y.tif"),
    ("new/z.bmp", "new/z.bmp"),
  ]:
    assert files.fuse_files(*pair, tmp_path / out, seed=1) == 0
    assert (tmp_path / written).is_file()
  files.fuse_files("fake", a, b, tmp_path / "as_folders", seed=1)
  alone = images.read_image(tmp_path / "y.tif")
  np.testing.assert_array_equal(alone, images.read_image(tmp_path / "as_folders" / "x.png"))
  assert {call["seed"] for call in model.calls} == {1}


def test_two_files_are_named_after_a(tmp_path, model):
  images.write_image(tmp_path / "mri 1.png", _picture(0, (4, 4)))
  images.write_image(tmp_path / "pet.jpg", _picture(1, (4, 4, 3)))
  assert files.fuse_files("fake", tmp_path / "mri 1.png", tmp_path / "pet.jpg", tmp_path / "o") == 0
  assert model.calls[0]["names"] == ["mri 1"]
  assert listing(tmp_path / "o") == ["mri 1.png"]


def test_non_latin_names_match_across_suffixes(tmp_path, model):
  a, b = tmp_path / "a", tmp_path / "b"
  a.mkdir()
  b.mkdir()
  images.write_image(a / "脳 é.png", _picture(0, (4, 4)))
  images.write_image(b / "脳 e\u0301.TIF", _picture(1, (4, 4)))
  assert files.fuse_files("fake", a, b, tmp_path / "out", strict=True) == 0
  assert listing(tmp_path / "out") == ["脳 é.png"]


def test_bad_pairs_are_named_and_the_others_written(tmp_path, model, capsys):
  a, b = _folders(tmp_path, {stem: (6, 6) for stem in ("1", "2", "3", "4", "5")})
  images.write_image(b / "2.png", _picture(0, (6, 7)))
  (a / "3.png").write_bytes(b"no picture")
  (b / "4.png").write_bytes((b / "4.png").read_bytes()[:60])
  assert files.fuse_files("fake", a, b, tmp_path / "out") == 1
  assert set(listing(tmp_path / "out")) == {"1.png", "5.png"}
  err = capsys.readouterr().err
  assert "pair 2: A is 6 x 6 and B 7 x 6 pixels (width x height)" in err
  assert f"pair 3: {a / '3.png'}: not a readable PNG" in err
  assert f"pair 4: {b / '4.png'}: broken picture: the file is truncated" in err
  assert "2 of 5 pairs fused" in err


def test_one_pair_that_fails(tmp_path, model):
  a, b = _folders(tmp_path, {"x": (6, 6)})
  (a / "x.png").write_bytes(b"")
  assert files.fuse_files("fake", a / "x.png", b / "x.png", tmp_path / "y.png") == 1
  assert not (tmp_path / "y.png").exists()


def test_a_failed_write_is_a_failed_pair(tmp_path, model, monkeypatch, capsys):
  a, b = _folders(tmp_path, {stem: (6, 6) for stem in ("1", "2", "3")})
  replace = os.replace

  def full_disk(source, target):
    if Path(target).name == "2.png":
      raise OSError(28, "No space left on device")
    replace(source, target)

  monkeypatch.setattr(os, "replace", full_disk)
  assert files.fuse_files("fake", a, b, tmp_path / "out") == 1
  assert set(listing(tmp_path / "out")) == {"1.png", "3.png"}
  assert "cannot write: No space left on device" in capsys.readouterr().err


def test_files_without_a_partner(tmp_path, model, capsys):
  a, b = _folders(tmp_path, {"1": (6, 6), "2": (6, 6)})
  (a / "2.png").rename(a / "3.png")
  with pytest.raises(UserError, match=r"without a partner: .*a/3\.png, .*b/2\.png") as caught:
    files.fuse_files("unknown", a, b, tmp_path / "out", strict=True)
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "out").exists()
  assert files.fuse_files("fake", a, b, tmp_path / "out") == 0
  err = capsys.readouterr().err
  assert f"no partner for {a / '3.png'}" in err
  assert f"no partner for {b / '2.png'}" in err
  (b / "1.png").unlink()
  with pytest.raises(UserError, match=r"no file in .* has a partner"):
    files.fuse_files("fake", a, b, tmp_path / "out")


def test_colour_of_a_is_dropped_with_one_warning(tmp_path, model, capsys):
  a, b = _folders(tmp_path, {stem: (6, 6) for stem in ("1", "2", "3")})
  grey = _picture(0, (6, 6))
  images.write_image(a / "1.png", np.stack([grey] * 3, axis=-1))  # neutral: nothing is lost
  coloured = _picture(1, (6, 6, 3))
  images.write_image(a / "2.png", coloured)
  images.write_image(a / "3.png", coloured)
  assert files.fuse_files("fake", a, b, tmp_path / "out") == 0
  err = capsys.readouterr().err
  assert err.count("only the luma is used") == 1
  assert f"{a / '2.png'} is coloured" in err


def test_samples_write_the_deviation_too(tmp_path, model):
  a, b = _folders(tmp_path, {"1": (6, 5), "2": (6, 5, 3)})
  assert files.fuse_files("fake", a, b, tmp_path / "out", samples=4, batch_size=8) == 0
  names = {f"{stem}{end}" for stem in "12" for end in (".png", "_std.tiff", "_std.png")}
  assert set(listing(tmp_path / "out")) == names
  # What is beside the pictures is not taken for pictures.
  assert list(images.list_images(tmp_path / "out")) == ["1", "2"]
  for stem in ("1", "2"):
    with Image.open(tmp_path / "out" / f"{stem}_std.tiff") as image:
      std = np.asarray(image)
    assert std.dtype == np.float32
    np.testing.assert_array_equal(std, np.full((6, 5), 0.5))
  assert files.fuse_files("fake", a / "1.png", b / "1.png", tmp_path / "y.jpg", samples=2) == 0
  assert (tmp_path / "y_std.tiff").is_file()
  assert {call["samples"] for call in model.calls} == {2, 4}


def test_a_full_device_halves_the_batch(tmp_path, model, capsys):
  a, b = _folders(tmp_path, {f"{i}": (6, 6) for i in range(9)} | {"large": (20, 20)})
  model.memory = 36 * 3
  assert files.fuse_files("fake", a, b, tmp_path / "out", batch_size=8) == 1
  assert set(listing(tmp_path / "out")) == {f"{i}.png" for i in range(9)}
  assert "pair large: a picture of 20 x 20 does not fit the memory" in capsys.readouterr().err
  assert max(call["shape"][0] for call in model.calls) == 2


def test_a_remainder_that_fits_only_alone(tmp_path, model, monkeypatch):
  """Another program may take the memory in which the full batches ran."""
  a, b = _folders(tmp_path, {f"{i}": (6, 6) for i in range(9)})
  fuse = model.fuse

  def shrinking(*args, **kwargs):
    model.memory = 36 * (8 if not model.calls else 1)
    return fuse(*args, **kwargs)

  monkeypatch.setattr(model, "fuse", shrinking)
  assert files.fuse_files("fake", a, b, tmp_path / "out", batch_size=8) == 0
  assert [call["shape"][0] for call in model.calls] == [8, 1]


def test_other_errors_of_the_model_are_not_hidden(tmp_path, model, monkeypatch):
  a, b = _folders(tmp_path, {"1": (6, 6)})

  def fuse(*args, **kwargs):
    raise RuntimeError("a bug")

  monkeypatch.setattr(model, "fuse", fuse)
  with pytest.raises(RuntimeError, match="a bug"):
    files.fuse_files("fake", a, b, tmp_path / "out")


def test_an_interrupted_run_leaves_whole_files_and_no_threads(tmp_path, model, monkeypatch):
  a, b = _folders(tmp_path, {f"{i}": (6, 6) for i in range(9)})
  fuse, calls = model.fuse, []

  def interrupted(*args, **kwargs):
    calls.append(1)
    if len(calls) == 4:
      raise KeyboardInterrupt
    return fuse(*args, **kwargs)

  monkeypatch.setattr(model, "fuse", interrupted)
  threads = threading.active_count()
  with pytest.raises(KeyboardInterrupt):
    files.fuse_files("fake", a, b, tmp_path / "out", batch_size=1)
  assert threading.active_count() == threads
  assert all(name.endswith(".png") and name[0] != "." for name in listing(tmp_path / "out"))
  assert len(_read_all(tmp_path / "out")) <= 3


def _wrong_calls() -> dict[str, tuple[str, str, str, str]]:
  return {
    "no A": ("none", "b", "out", "none: no such file or folder"),
    "no B": ("a/1.png", "none.png", "out", r"none\.png: no such file or folder"),
    "file and folder": ("a/1.png", "b", "out", "two files or two folders"),
    "folders into a file": ("a", "b", "out.png", "two folders need a folder"),
    "folders into an existing file": ("a", "b", "file", "two folders need a folder"),
    "into A": ("a", "b", "a", "the output folder is a source folder"),
    "into B by another name": ("a", "b", "a/../b", "the output folder is a source folder"),
    "over A": ("a/1.png", "b/1.png", "a/1.png", "would replace a source"),
    "over A by its folder": ("a/1.png", "b/1.png", "a", "would replace a source"),
    "over B by a link": ("a/1.png", "b/1.png", "link.png", "would replace a source"),
    "format": ("a/1.png", "b/1.png", "x.gif", "cannot write this format"),
    "over an odd file": ("a/1.png", "b/1.png", "file", "cannot write this format"),
    "below a file": ("a/1.png", "b/1.png", "file/x.png", "cannot make this folder"),
    "duplicates": ("twice", "b", "out", "have the same stem"),
    "no pictures": ("empty", "empty", "out", "no file in"),
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
    files.fuse_files("fake", a, b, out)
  after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  assert after == before


def test_an_unknown_model_writes_nothing(tmp_path, model):
  a, b = _folders(tmp_path, {"1": (6, 6)})
  with pytest.raises(UserError, match="no released model"):
    files.fuse_files("unknown", a, b, tmp_path / "out")
  assert not (tmp_path / "out").exists()
