"""Volumes that were fused are measured slice by slice; a stand-in for the model and the metrics."""

import json

import dicom_phantoms as phantoms
import nibabel
import numpy as np
import pytest

from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import measure as measuring
from dmfnet_jax.fusing import slices
from dmfnet_jax.fusing.triples import find_triples
from dmfnet_jax.io import color, scaling
from dmfnet_jax.metrics import METRIC_NAMES, READER_NAMES

SHAPE = (12, 10, 8)  # of which two slices show little


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
  """Metrics are the fused slice's brightness, and the reader's that of A: nothing is compiled."""
  monkeypatch.setattr(measuring, "MIN_SIDE", 4)
  for function, names, which in (
    ("compute_metrics", METRIC_NAMES, 2),
    ("compute_reader_metrics", READER_NAMES, 0),
  ):

    def metrics(*images, names=names, which=which, **options):
      return dict.fromkeys(names, np.asarray(images[which], np.float32).mean((1, 2)))

    monkeypatch.setattr(measuring, function, metrics)


@pytest.fixture
def fused(tmp_path, model):
  """A pair of volumes, fused with windows and a colour map: the folders of A, B and the result."""
  rng = np.random.default_rng(0)
  for folder in ("a", "b"):
    values = rng.integers(300, 1000, SHAPE).astype(np.int16)
    values[:, :, :2] = 0
    values[..., 5] += 500 * (folder == "a")
    (tmp_path / folder).mkdir()
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 3, 1])), tmp_path / folder / "x.nii")
  folders = [tmp_path / name for name in ("a", "b", "out")]
  shown = ["--window-a", "0,1500", "--window-b=100,1100", "--lut", "hot"]
  assert main(["fuse", *map(str, folders[:2]), "-o", str(folders[2]), *shown]) == 0
  return folders


def test_slices_are_what_the_network_saw_and_gave(fused, model):
  found, _ = find_triples(*fused)
  got = slices.read_slices(found["x"])
  assert got.names == [f"axial_{i:03d}" for i in range(2, 8)]
  assert (got.total, got.pixel) == (8, (1, 1))
  assert got.note == "A 0 to 1500 (given), B 100 to 1100 (given)"
  b = np.asarray(nibabel.load(fused[1] / "x.nii").dataobj)[::-1, ::-1, 2:].T
  coloured = scaling.apply_lut(scaling.to_uint8(b, (100, 1100)), scaling.read_lut("hot"))
  np.testing.assert_array_equal(got.b, coloured)
  luma = np.maximum(got.a, color.rgb_to_luma(coloured))
  assert np.abs(got.fused.astype(int) - luma).max() <= 3  # but for the stand-in's mark
  assert len(model.calls) > 0


def test_the_command_tells_the_mean_and_the_worst_slice(fused, tmp_path, capsys):
  command = ["evaluate", "--json", str(tmp_path / "m.json")]
  for name, folder in zip(("a", "b", "fused"), fused, strict=True):
    command += [f"--{name}", str(folder)]
  (fused[0] / "y.mha").touch()
  assert main(command) == 0
  told = capsys.readouterr()
  assert "worst axial_005, lost_brightness " in told.out.splitlines()[-1]
  assert told.out.splitlines()[-1].startswith("x: mean of 6 of 8 slices")
  assert f"not measured: {fused[0] / 'y.mha'} (a MetaImage volume, which is not read" in told.err
  document = json.loads((tmp_path / "m.json").read_text())
  of_x = document["slices"]["x"]
  assert list(of_x) == [f"axial_{i:03d}" for i in range(2, 8)]
  assert document["pairs"]["x"]["EN"] == pytest.approx(np.mean([v["EN"] for v in of_x.values()]))
  assert document["mean"] == document["pairs"]["x"]


def test_baselines_are_measured_beside(fused):
  found, _ = find_triples(*fused)
  got = measuring.measure(found, with_baselines=True)
  shown = slices.read_slices(found["x"])
  b = np.stack([color.to_grey(x) for x in shown.b])
  expected = {"max": np.maximum(shown.a, b), "mean": np.round(shown.a / 2.0 + b / 2.0)}
  for name, pictures in expected.items():
    assert got.baselines[name]["x"]["EN"] == pytest.approx(pictures.mean(), rel=1e-5)
  assert got.pairs["x"]["EN"] == pytest.approx(shown.fused.mean(), rel=1e-5)
  assert got.baselines["overlay"]["x"]["EN"] < got.baselines["max"]["x"]["EN"]


def test_without_a_record_windows_are_the_defaults_and_that_is_told(fused, capsys):
  (fused[2] / "x.json").unlink()
  found, _ = find_triples(*fused)
  assert "percentiles" in slices.read_slices(found["x"]).note
  assert "no x.json beside it: A and B in default windows" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("values", "affine", "message"),
  [
    (np.full(SHAPE, 300, np.int16), np.diag([1, 1, 3, 1]), "is no fused volume: it holds 300"),
    (np.full(SHAPE, 0.5, np.float32), np.diag([1, 1, 3, 1]), "and not whole grey levels"),
    (np.zeros(SHAPE, np.uint8), np.eye(4), "lies on another grid than A"),
  ],
)
def test_what_is_no_result_is_refused(fused, values, affine, message):
  nibabel.save(nibabel.Nifti1Image(values, affine), fused[2] / "x.nii.gz")
  found, _ = find_triples(*fused)
  with pytest.raises(UserError, match=message):
    slices.read_slices(found["x"])


def test_series_are_measured_too(tmp_path, model):
  a = phantoms.write_series(tmp_path / "a", 3)
  out = tmp_path / "out"
  assert main(["fuse", str(a), str(a), "-o", str(out), "--window-a=0,900"]) == 0
  found, _ = find_triples(a, a, out)
  got = measuring.measure(found)
  assert got.totals == {"out": 3}
  assert got.worst_slice("out") in got.slices["out"]
