"""Making missing pictures, with a stand-in for the model: one code path with fusing."""

import dataclasses
import json
import re

import nibabel
import numpy as np
import pytest
from fake_model import FakeModel, in_place
from skimage import metrics as skimage_metrics

from dmfnet_jax.cli import main
from dmfnet_jax.io import pictures
from dmfnet_jax.methods.method import MADE, Field
from dmfnet_jax.metrics import compare_volumes


class Making(FakeModel):
  """Makes the mean of both sources."""

  method = dataclasses.replace(
    FakeModel.method, sources=(Field("a"), Field("b")), outputs=(Field(MADE),), is_random=False
  )

  def fuse(self, a, b, *, names, on_done=None, **asked):
    self.calls.append({"names": list(names)})
    assert all(x.ndim == 2 for x in (*a, *b))
    if on_done is not None:
      on_done(len(a))
    return [mean_of(x, y) for x, y in zip(a, b, strict=True)]


def mean_of(a, b):
  return ((a.astype(int) + b) // 2).astype(np.uint8)


@pytest.fixture
def model():
  with in_place(Making()) as found:
    yield found


@pytest.fixture
def folders(tmp_path):
  """Slices of two subjects: T1, T2 (one of them stored in colour) and FLAIR."""
  rng = np.random.default_rng(0)
  found = {}
  for name in ("t1", "t2", "flair"):
    found[name] = {}
    (tmp_path / name).mkdir()
    for stem in [f"{subject}{i:03d}" for subject in ("07", "08") for i in range(8)]:
      picture = rng.integers(0, 256, (9, 10)).astype(np.uint8)
      picture[:2] = 0
      found[name][stem] = picture
      stored = picture if (name, stem) != ("t2", "07000") else np.stack([picture] * 3, axis=-1)
      pictures.write_image(tmp_path / name / f"{stem}.png", stored)
  return found


def run(tmp_path, *words, names=("t1", "t2"), out="made"):
  sources = [str(tmp_path / name) for name in names]
  return main(["synthesize", *sources, "-o", str(tmp_path / out), "--model", "fake", *words])


def expected_metrics(truth, made):
  """By scikit-image, of values in [0, 1] whose background is taken out."""
  truth, made = (np.stack(x).astype(np.float64) / 255 for x in (truth, made))
  made[truth == 0] = 0
  extent = max(truth.max(), made.max()) - min(truth.min(), made.min())
  return {
    "PSNR": skimage_metrics.peak_signal_noise_ratio(truth, made, data_range=extent),
    "SSIM": skimage_metrics.structural_similarity(truth, made, data_range=2),
    "NMSE": ((truth - made) ** 2).sum() / (truth**2).sum(),
  }


def test_a_folder_is_made_and_measured_by_subject(tmp_path, folders, model, capsys):
  code = run(
    tmp_path, "--target", str(tmp_path / "flair"), "--json", str(tmp_path / "x" / "m.json")
  )
  out, err = capsys.readouterr()
  assert code == 0
  assert "16 of 16 pairs made into" in err
  found = json.loads((tmp_path / "x" / "m.json").read_text())
  assert list(found["subjects"]) == ["07", "08"]
  for subject, values in found["subjects"].items():
    stems = [stem for stem in folders["t1"] if stem.startswith(subject)]
    made = [mean_of(folders["t1"][s], folders["t2"][s]) for s in stems]
    np.testing.assert_array_equal(pictures.read_image(tmp_path / f"made/{stems[0]}.png"), made[0])
    assert values == pytest.approx(expected_metrics([folders["flair"][s] for s in stems], made))
  assert [line.split()[0] for line in out.splitlines()] == ["PSNR", "07", "08", "mean", "A", "B"]
  of_b = [
    expected_metrics(
      *([folders[k][s] for s in folders["t1"] if s.startswith(x)] for k in ("flair", "t2"))
    )["PSNR"]
    for x in ("07", "08")
  ]
  assert found["mean"]["B"]["PSNR"] == pytest.approx(np.mean(of_b))


def test_volumes_are_made_with_the_place_of_a(tmp_path, model, capsys):
  rng = np.random.default_rng(1)
  affine = np.array([[-2.0, 0, 0, 5], [0, 2, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]])
  data = {
    name: rng.uniform(0, 500, (9, 10, 8)).astype(np.float32) for name in ("t1", "t2", "flair")
  }
  for name, values in data.items():
    values[:2] = 0
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / f"s_{name}.nii.gz")
  files = [f"s_{name}.nii.gz" for name in ("t1", "t2")]
  windows = ["--window-a=0,500", "--window-b=0,500"]
  truth = str(tmp_path / "s_flair.nii.gz")
  assert run(tmp_path, *windows, "--target", truth, names=files, out="s_made.nii.gz") == 0
  made = nibabel.load(tmp_path / "s_made.nii.gz")
  np.testing.assert_allclose(made.affine, affine, atol=1e-5)
  grey = [np.rint(data[name] / 500 * 255).astype(np.uint8) for name in ("t1", "t2")]
  np.testing.assert_allclose(np.asarray(made.dataobj), mean_of(*grey), atol=1)
  assert "s_t1" in capsys.readouterr().out


def test_what_cannot_be_compared_is_told_and_the_rest_is(tmp_path, folders, model, capsys):
  (tmp_path / "flair" / "07003.png").unlink()
  pictures.write_image(tmp_path / "flair" / "08001.png", np.ones((4, 4), np.uint8))
  assert run(tmp_path, "--target", str(tmp_path / "flair")) == 1
  out, err = capsys.readouterr()
  assert "pair 07003: not compared: there is no true one of that name" in err
  assert "pair 08001: not compared: " in err
  assert "is 4 x 4 and what was made 10 x 9 pixels" in err
  assert out.splitlines()[1].startswith("07 ")


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--target", "nowhere"], "nowhere: no such file or folder"),
    (["--target", "one.png"], "one.png: one picture for 16 pairs: give a folder"),
    (["--target", "empty"], "has nothing of the name of 07000: .* --suffix-target"),
    (["--json", "x.json"], "--json and --suffix-target need true ones to compare with"),
  ],
)
def test_nothing_is_made_where_there_is_nothing_to_compare_with(
  tmp_path, folders, model, capsys, words, message, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  pictures.write_image(tmp_path / "one.png", np.ones((4, 4), np.uint8))
  (tmp_path / "empty").mkdir()
  assert run(tmp_path, *words) == 2
  err = capsys.readouterr().err
  assert len(err.splitlines()) == 1
  assert re.search(message, err)
  assert not (tmp_path / "made").exists()


def test_each_command_says_which_model_is_the_others(tmp_path, folders, capsys):
  files = [str(tmp_path / name) for name in ("t1", "t2")]
  with in_place(Making()):
    assert main(["fuse", *files, "-o", str(tmp_path / "fused"), "--model", "fake"]) == 2
  assert "dmfnet synthesize A B -o OUT --model fake" in capsys.readouterr().err
  with in_place(FakeModel()):
    assert run(tmp_path) == 2
  assert "fake makes no missing picture: it fuses, as dmfnet fuse does" in capsys.readouterr().err
  assert not (tmp_path / "fused").exists()
  assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("shape", [(9, 12, 11), (3, 12, 11)])
def test_the_metrics_are_scikit_images(shape):
  """In three dimensions where there are seven slices, and else slice by slice."""
  rng = np.random.default_rng(2)
  truth, made = rng.random((2, *shape))
  found = compare_volumes(truth, made)
  extent = max(truth.max(), made.max()) - min(truth.min(), made.min())
  assert found["PSNR"] == pytest.approx(
    skimage_metrics.peak_signal_noise_ratio(truth, made, data_range=extent)
  )
  stacks = [truth, made] if shape[0] > 6 else list(zip(truth, made, strict=True))
  pairs = [stacks] if shape[0] > 6 else stacks
  ssim = [skimage_metrics.structural_similarity(t, m, data_range=2) for t, m in pairs]
  assert found["SSIM"] == pytest.approx(np.mean(ssim))
  assert compare_volumes(truth, truth) == {"PSNR": np.inf, "SSIM": pytest.approx(1), "NMSE": 0}
  with pytest.raises(ValueError, match="0 everywhere"):
    compare_volumes(0 * truth, made)
