"""Fusing three sources and more, with a stand-in for the model."""

import dataclasses

import numpy as np
import pytest
from fake_model import FakeModel, fuse, in_place, listing

from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.files import fuse_files
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.io import pictures
from dmfnet_jax.methods.method import Field


class OfThree(FakeModel):
  """Takes the mean of three sources in colour."""

  method = dataclasses.replace(
    FakeModel.method, sources=tuple(Field(name, channels=3) for name in "abc")
  )

  def fuse(self, a, b, c, *, names, **asked):
    self.calls.append({"names": list(names)})
    return [mean_of(*sources) for sources in zip(a, b, c, strict=True)]


def mean_of(*sources):
  coloured = [x if x.ndim == 3 else np.repeat(x[..., None], 3, axis=-1) for x in sources]
  return np.rint(np.mean(coloured, axis=0)).astype(np.uint8)


@pytest.fixture
def model():
  with in_place(OfThree()) as found:
    yield found


@pytest.fixture
def folders(tmp_path):
  """a (in colour), b (grey) and c (in colour), of which c lacks "2"."""
  rng = np.random.default_rng(0)
  found = {}
  for name, shape in (("a", (6, 8, 3)), ("b", (6, 8)), ("c", (6, 8, 3))):
    found[name] = tmp_path / name
    found[name].mkdir()
    for stem in "1" if name == "c" else "12":
      pictures.write_image(
        found[name] / f"{stem}.png", rng.integers(0, 256, shape).astype(np.uint8)
      )
  return found


def test_three_pictures_become_one_with_all_their_colours(tmp_path, folders, model, capsys):
  files = [folders[name] / "1.png" for name in "abc"]
  words = [*map(str, files), "-o", str(tmp_path / "fused.png"), "--model", "fake"]
  assert main(["fuse", *words]) == 0
  expected = mean_of(*map(pictures.read_image, files))
  np.testing.assert_array_equal(pictures.read_image(tmp_path / "fused.png"), expected)
  assert "only the luma" not in capsys.readouterr().err


def test_of_three_folders_what_is_in_all_is_fused(tmp_path, folders, model, capsys):
  options = FuseOptions(model="fake")
  a, b, c = folders.values()
  assert fuse_files(a, b, tmp_path / "out", options, further=[c]) == 0
  assert listing(tmp_path / "out") == ["1.png"]
  assert model.calls == [{"names": ["1"]}]
  assert f"no partner for {a / '2.png'} (no picture 2 in {c})" in capsys.readouterr().err


def test_a_source_of_another_size_is_named(tmp_path, folders, model, capsys):
  files = [folders[name] / "1.png" for name in "abc"]
  pictures.write_image(files[2], np.zeros((6, 9), np.uint8))
  options = FuseOptions(model="fake")
  assert fuse_files(*files[:2], tmp_path / "x.png", options, further=files[2:]) == 1
  assert "A is 8 x 6 and C 9 x 6 pixels (width x height): register C" in capsys.readouterr().err
  assert not (tmp_path / "x.png").exists()


def test_what_does_not_go_together_is_refused(tmp_path, folders, model):
  a, b, c = folders.values()
  one = [folder / "1.png" for folder in (a, b, c)]
  volume, other = tmp_path / "v.nii.gz", tmp_path / "other"
  volume.touch()
  other.mkdir()
  options = FuseOptions(model="fake")
  out = tmp_path / "out"
  for sources, message in (
    (one[:2], r"fake takes 3 sources \(a, b, c\), and 2 are given"),
    ([*one, one[2]], r"fake takes 3 sources \(a, b, c\), and 4 are given"),
    ([*one[:2], tmp_path / "none.png"], "none.png: no such file or folder"),
    ([*one[:2], c], "A is a picture and .*c a folder: give all of a kind"),
    ([*one[:2], volume], "v.nii.gz a NIfTI volume: give all of a kind"),
    ([a, b, one[2]], "1.png: a file, where A and B are folders"),
    ([a, b, other], "what is in the folders behind B is named as the pairs are"),
  ):
    with pytest.raises(UserError, match=message):
      fuse_files(*sources[:2], out, options, further=sources[2:])
  with pytest.raises(UserError, match="the output folder is a source folder"):
    fuse_files(a, b, c, options, further=[c])
  with pytest.raises(UserError, match="the output would replace a source"):
    fuse_files(*one[:2], one[2], options, further=one[2:])
  with pytest.raises(UserError, match="a list of pairs has no further sources"):
    fuse_files(a, b, out, FuseOptions(model="fake", pairs="list.csv"), further=[c])
  assert not out.exists()


def test_two_sources_fuse_as_ever(tmp_path, folders):
  with in_place(FakeModel()) as model:
    assert fuse(folders["a"], folders["b"], tmp_path / "out") == 0
    assert [call["names"] for call in model.calls] == [["1"], ["2"]]
    with pytest.raises(UserError, match=r"fake takes 2 sources \(a, b\), and 3 are given"):
      fuse_files(
        folders["a"], folders["b"], tmp_path, FuseOptions(model="fake"), further=[folders["c"]]
      )
