"""Volumes through `Model.fuse`: nibabel images and `Volume`s, in and out."""

import json
import warnings

import nibabel
import numpy as np
import pytest
import tiny
from fake_model import in_place

from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.model import Model
from dmfnet_jax.io.grids import Volume
from dmfnet_jax.io.nifti import read_nifti

AFFINE = nibabel.affines.from_matvec(np.diag([-2.0, 2, 3]), [20, -30, 5])
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.fixture(scope="module")
def net():
  return Model(*tiny.model())


@pytest.fixture(scope="module")
def pair():
  """Values as measured: int16 and float32, [6, 7, 3], the last slice black in both."""
  rng = np.random.default_rng(0)
  a, b = rng.integers(-50, 900, (6, 7, 3)).astype(np.int16), rng.gamma(2, 3e3, (6, 7, 3))
  a[..., 2], b[..., 2] = -50, 0
  return [nibabel.Nifti1Image(x, AFFINE) for x in (a, b.astype(np.float32))]


def coloured(image):
  data = np.random.default_rng(1).integers(0, 256, (*image.shape, 3), np.uint8)
  return nibabel.Nifti1Image(data.view(RGB)[..., 0], image.affine)


def test_nibabel_images_fuse_as_the_commands_files(net, pair, tmp_path):
  """The same voxels and place, with the pair's name; `Volume`s give a `Volume` of the same."""
  for name, image in zip(("a", "b"), pair, strict=True):
    nibabel.save(image, tmp_path / f"{name}.nii")
  files = [str(tmp_path / name) for name in ("a.nii", "b.nii", "out.nii", "out.json")]
  with in_place(net):
    assert main(["fuse", *files[:2], "-o", files[2]]) == 0
  written = nibabel.load(files[2])
  counts = []
  fused = net.fuse(*pair, names="a", on_done=counts.append)
  assert isinstance(fused, nibabel.Nifti1Image)
  assert (fused.shape, fused.get_data_dtype(), sum(counts)) == ((6, 7, 3), np.uint8, 3)
  np.testing.assert_array_equal(fused.affine, AFFINE)
  np.testing.assert_array_equal(np.asarray(fused.dataobj), np.asarray(written.dataobj))
  assert np.ptp(np.asarray(fused.dataobj)) > 20

  volume = net.fuse(read_nifti(files[0]), read_nifti(files[1]), names="a")
  assert isinstance(volume, Volume)
  assert volume.data.dtype == np.float32
  np.testing.assert_array_equal(volume.data, np.asarray(written.dataobj))
  np.testing.assert_array_equal(volume.affine, AFFINE)
  low, high = json.loads((tmp_path / "out.json").read_text())["window_a"]
  assert volume.notes[0] == f"window of a: {low:g} to {high:g}"


def test_samples_of_volumes(net, pair):
  mean, std = net.fuse(*pair, samples=2)
  assert (mean.get_data_dtype(), std.get_data_dtype()) == (np.uint8, np.float32)
  data = np.asarray(std.dataobj)
  assert (data[..., :2] > 0).any()
  assert not data[..., 2].any()


def test_colour_of_volumes(net, pair):
  """B's is kept; of A's only the luma is used, which is said."""
  a, b = pair[0], coloured(pair[1])
  fused = net.fuse(a, b)
  assert fused.get_data_dtype() == RGB
  assert net.fuse(Volume(pair[0].get_fdata("unchanged", np.float32), AFFINE), b).is_rgb
  with pytest.warns(UserWarning, match="a is coloured: of it only the luma"):
    assert net.fuse(b, pair[1]).get_data_dtype() == np.uint8


def test_a_volumes_own_window_is_used(net, pair):
  data = np.asarray(pair[0].dataobj, np.float32)
  shown = Volume(data, AFFINE, window=(0.0, 1e6))
  assert net.fuse(shown, shown).notes == ("window of a: 0 to 1000000", "window of b: 0 to 1000000")


def test_other_formats_and_shapes_of_nibabel(net, pair):
  """MGH, a trailing axis of one, a single sagittal slice, and an image without a place."""
  data = np.asarray(pair[0].dataobj).astype(np.float32)
  mgh = nibabel.MGHImage(data, AFFINE)
  expected = np.asarray(net.fuse(*pair).dataobj)
  np.testing.assert_array_equal(np.asarray(net.fuse(mgh, pair[1]).dataobj), expected)
  longer = nibabel.Nifti1Image(data[..., None], AFFINE)
  np.testing.assert_array_equal(np.asarray(net.fuse(longer, pair[1]).dataobj), expected)
  one = [image.slicer[2:3] for image in pair]
  assert net.fuse(*one).shape == (1, 7, 3)
  with pytest.warns(UserWarning, match="a: its header does not say where it lies"):
    fused = net.fuse(nibabel.Nifti1Image(data, None), pair[1])
  assert fused.header["sform_code"] == 0


def test_what_does_not_go_together_is_refused(net, pair):
  a, b = pair
  moved = nibabel.Nifti1Image(np.asarray(b.dataobj), np.diag([-2.0, 2, 3, 1]))
  four = nibabel.Nifti1Image(np.zeros((6, 7, 3, 2), np.int16), AFFINE)
  flat = nibabel.Nifti1Image(np.zeros((6, 7, 3), np.int16), AFFINE)
  grid = Volume(np.asarray(b.dataobj), AFFINE, frame_uid="1.2.3")
  other = Volume(np.asarray(b.dataobj), AFFINE, frame_uid="1.2.4")
  for sources, message in (
    ((a, moved), "different grids: .*resample_from_to"),
    ((four, b), "^a: holds 2 volumes"),
    ((a, flat), "^b: every value is 0"),
    ((a, np.zeros((6, 7, 3), np.uint8)), "^b must be a nibabel image or a Volume .* got ndarray"),
    ((grid, other), "different frames of reference .* frame_uid"),
    (([a], [b]), "one pair a call"),
    ((a, b, b), "give 2 volumes, a, b, got 3"),
  ):
    with pytest.raises(UserError, match=message) as caught:
      net.fuse(*sources)
    assert "\n" not in str(caught.value)
  with pytest.raises(UserError, match="give one name"):
    net.fuse(a, b, names=["x"])


def test_nothing_is_said_of_plain_volumes(net, pair):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    net.fuse(*pair)
