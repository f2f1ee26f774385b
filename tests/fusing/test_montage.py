"""The montage of a fused volume: which slices, how large, and what is written on it."""

import dataclasses

import numpy as np
import pytest

from dmfnet_jax.fusing import montage
from dmfnet_jax.fusing.volume_results import FusedVolume, ShownSource
from dmfnet_jax.io import panels, scaling
from dmfnet_jax.io.grids import Volume
from dmfnet_jax.io.windows import UsedWindow

SHAPE = (30, 32, 12)
FILLED = range(3, 9)  # of the axial slices


@pytest.fixture
def result() -> FusedVolume:
  """Voxels of 1 x 1 x 5 mm; all but some axial slices hold a single dim voxel."""
  a = np.zeros(SHAPE, np.uint8)
  a[15, 15] = 9
  a[5:25, 5:25, FILLED] = np.random.default_rng(0).integers(100, 200, (20, 20, len(FILLED)))
  window = UsedWindow((0.0, 7.0), "given", "SUV")
  volume = Volume(a.astype(np.float32), np.diag([1.0, 1, 5, 1]))
  return FusedVolume(
    sources=(
      ShownSource(volume, a, None),
      ShownSource(
        dataclasses.replace(volume, modality="PET"),
        scaling.apply_lut(a // 2, scaling.read_lut("hot")),
        window,
      ),
    ),
    overlay=None,
    luma=a,
    rgb=None,
    std=np.full(SHAPE, 1.5, np.float32),
    plane="axial",
    table=scaling.read_lut("hot"),
    record={"model": "runs/mine", "seed": 4, "samples": 8},
  )


@pytest.fixture
def drawn(monkeypatch) -> list:
  """What `panels.panel` is told to draw."""
  calls = []
  monkeypatch.setattr(panels, "panel", lambda rows, **more: calls.append((rows, more)))
  return calls


def test_what_is_written_on_it(result, drawn):
  montage.draw_montage(result)
  _, told = drawn[0]
  assert told["column_titles"] == ["A", "B: PET", "fused", "SD of 8 draws"]
  assert told["row_titles"] == [f"z {5 * i} mm" for i in FILLED]  # no row shows a dim voxel alone
  assert told["heading"] == [
    "model mine, seed 4",
    "6 of 12 axial slices, enlarged 8 times (nearest neighbour)",
    "RESEARCH USE ONLY, not for diagnosis",
  ]
  none, of_b, nothing, of_sd = told["bars"]
  assert none is nothing is None  # A is shown as stored
  assert of_b[1] == "0 to 7 SUV"
  np.testing.assert_array_equal(of_b[0][0], scaling.read_lut("hot"))
  assert of_sd[1] == "0 to 2 of 255 grey levels"


def test_voxels_are_square_and_shown_as_they_are(result, drawn):
  a, b = result.sources
  nowhere = a._replace(volume=dataclasses.replace(a.volume, placed=False))
  unplaced = dataclasses.replace(result, sources=(nowhere, b))
  for shown in (unplaced, result):
    montage.draw_montage(shown)
  (bare, told), (lettered, _) = drawn
  assert told["row_titles"] == [str(i) for i in FILLED]
  assert "which side is which" in told["heading"][2]
  picture = a.shown[::-1, ::-1, FILLED[0]].T  # right on the left, the nose up
  expected = picture.repeat(8, 0).repeat(8, 1)
  np.testing.assert_array_equal(bare[0][0], np.dstack([expected] * 3))
  changed = (lettered[0][0] != bare[0][0]).any(axis=-1)
  assert changed[:, :20].any()
  assert changed[:, -20:].any()
  assert not changed[20:-20, 20:-20].any()
  thick = dataclasses.replace(result, plane="coronal")
  montage.draw_montage(thick)
  assert drawn[-1][0][0][0].shape == (4 * 60, 4 * 30, 3)
