"""Where voxels lie: slices and back, comparing grids, resampling; checked by world coordinates."""

import itertools

import nibabel
import numpy as np
import pytest

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import grids
from dmfnet_jax.io.grids import Volume

SHAPE = (5, 7, 4)
# Oblique, of unequal voxels, x running to the left.
TURN = np.array([[-0.98, 0.17, 0.05], [0.17, 0.98, 0.08], [0.04, -0.09, 0.99]])
AFFINE = nibabel.affines.from_matvec(TURN * [2.0, 1.0, 3.0], [10, -20, 30])
DATA = np.random.default_rng(0).random(SHAPE).astype(np.float32)
ALL_AXES = [
  "".join(codes)
  for order in itertools.permutations(("RL", "AP", "SI"))
  for codes in itertools.product(*order)
]


def _volume(data=DATA, affine=AFFINE, **fields) -> Volume:
  return Volume(data, np.asarray(affine, np.float64), **fields)


def _stored_as(axes: str, volume: Volume) -> Volume:
  """The same volume, with another order and direction of the array's axes."""
  image = nibabel.Nifti1Image(volume.data, volume.affine)
  turn = nibabel.orientations.ornt_transform(
    nibabel.io_orientation(volume.affine), nibabel.orientations.axcodes2ornt(axes)
  )
  image = image.as_reoriented(turn)
  return _volume(np.asarray(image.dataobj), image.affine)


def _world_of(volume: Volume, value: float) -> np.ndarray:
  """World coordinates [3] of the one voxel with a value."""
  return nibabel.affines.apply_affine(volume.affine, np.argwhere(volume.data == value)[0])


def test_slices_are_shown_as_radiology_shows_them():
  """In each plane, where the most right, front and upper voxels appear."""
  data = np.zeros(SHAPE, np.float32)
  ras = _volume(data, np.eye(4))
  data[4, 3, 2], data[2, 6, 2], data[2, 3, 3] = 1, 2, 3  # right, front, up
  axial = grids.to_pictures(data, ras.affine, "axial")
  assert axial.shape == (4, 7, 5)
  assert axial[2, 3, 0] == 1  # on the left
  assert axial[2, 0, 2] == 2  # nose up
  assert axial[3, 3, 2] == 3  # the last slice
  coronal = grids.to_pictures(data, ras.affine, "coronal")
  assert coronal.shape == (7, 4, 5)
  assert (coronal[3, 1, 0], coronal[6, 1, 2], coronal[3, 0, 2]) == (1, 2, 3)
  sagittal = grids.to_pictures(data, ras.affine, "sagittal")
  assert sagittal.shape == (5, 4, 7)
  assert (sagittal[4, 1, 3], sagittal[2, 1, 0], sagittal[2, 0, 3]) == (1, 2, 3)


@pytest.mark.parametrize("axes", ALL_AXES)
def test_slices_do_not_depend_on_how_the_axes_are_stored(axes):
  original, stored = _volume(), _stored_as(axes, _volume())
  assert stored.axes == axes
  for plane in grids.PLANES:
    pictures = grids.to_pictures(stored.data, stored.affine, plane)
    np.testing.assert_array_equal(
      pictures, grids.to_pictures(original.data, original.affine, plane)
    )
    np.testing.assert_array_equal(grids.from_pictures(pictures, stored.affine, plane), stored.data)
    expected_size = grids.pixel_size(original, plane)
    np.testing.assert_allclose(grids.pixel_size(stored, plane), expected_size)
    # The middle of the last slice is the same point, and lies in that slice.
    last = len(pictures) - 1
    np.testing.assert_allclose(
      grids.slice_position(stored, plane, last), grids.slice_position(original, plane, last)
    )
  turned = grids.resample(stored, original)
  np.testing.assert_array_equal(turned.data, original.data)  # reordered, not interpolated


def test_colours_are_cut_alike():
  coloured = np.stack([DATA, DATA + 1, DATA + 2], axis=-1)
  for plane in grids.PLANES:
    pictures = grids.to_pictures(coloured, AFFINE, plane)
    np.testing.assert_array_equal(
      pictures[..., 1], grids.to_pictures(coloured[..., 1], AFFINE, plane)
    )
    np.testing.assert_array_equal(grids.from_pictures(pictures, AFFINE, plane), coloured)


def test_pixel_sizes():
  volume = _volume(affine=np.diag([1, 2, 3, 1]))
  assert grids.pixel_size(volume, "axial") == (2, 1)
  assert grids.pixel_size(volume, "coronal") == (3, 1)
  assert grids.pixel_size(volume, "sagittal") == (3, 2)


def test_find_plane():
  volume = _stored_as("SRA", _volume())
  planes = [grids.find_plane(axis, volume) for axis in (0, 1, "2", "axial")]
  assert planes == ["axial", "sagittal", "coronal", "axial"]
  for axis in (3, -1, "x", ""):
    with pytest.raises(UserError, match="choose one of sagittal, coronal, axial, 0, 1 or 2"):
      grids.find_plane(axis, volume)


def _moved(offset, turn=0.0, scale=1.0) -> np.ndarray:
  angle = np.radians(turn)
  rotation = np.eye(4)
  rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  affine = rotation @ AFFINE @ np.diag([scale, scale, scale, 1])
  affine[:3, 3] += offset
  return affine


@pytest.mark.parametrize(
  "affine", [AFFINE, AFFINE + 1e-4, _moved([0.03, 0, 0]), _moved(0, turn=0.02)]
)
def test_grids_that_agree_within_the_tolerance(affine):
  assert grids.difference(_volume(), _volume(affine=affine)) == ""


def test_differences_are_spelled_out():
  a = _volume()
  for b, message in [
    (_volume(DATA[:4]), "5 x 7 x 4 against 4 x 7 x 4 voxels"),
    (_volume(affine=_moved([0.2, 0, 0])), r"same voxel up to 0.2 mm apart \(tolerance 0.05 mm\)"),
    (_volume(affine=_moved(0, turn=2)), "same voxel up to .* mm apart"),
    (_volume(affine=_moved(0, scale=1.1)), "voxels of .* against .* mm"),
    (_volume(affine=AFFINE * [-1, 1, 1, 1]), "axes stored as LAS against RAS"),
    (_stored_as("SAL", a), "axes stored as LAS against SAL"),
    (_volume(DATA[:4], _moved([5, 0, 0])), "first voxels 5 mm apart"),
  ]:
    with pytest.raises(AssertionError, match=message):
      assert not grids.difference(a, b), grids.difference(a, b)


def test_only_sizes_are_compared_where_a_place_is_unknown():
  elsewhere = _volume(affine=_moved([50, 0, 0]), placed=False)
  assert grids.difference(_volume(), elsewhere) == ""
  assert grids.difference(elsewhere, _volume()) == ""
  assert "voxels" in grids.difference(_volume(DATA[:4]), elsewhere)
  with pytest.raises(UserError, match="does not say where"):
    grids.resample(elsewhere, _volume(DATA[:4]))


def test_resampling_keeps_places():
  """A blob in a coarse B lies where it was, to a fraction of a voxel, on a finer oblique A."""
  axes = np.meshgrid(*map(np.arange, (20, 20, 20)), indexing="ij")
  centre = np.array([8.3, 11.2, 9.4])
  blob = np.exp(-sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True)) / 8)
  b = _volume(blob.astype(np.float32), np.diag([-3, 3, 4, 1.0]))
  a_affine = nibabel.affines.from_matvec(TURN * 1.5, [10, -10, -10])
  a = _volume(np.zeros((50, 60, 55), np.float32), a_affine)
  result = grids.resample(b, a)
  assert result.shape == a.shape
  np.testing.assert_array_equal(result.affine, a.affine)
  weights = result.data[..., None]
  indices = np.stack(np.meshgrid(*map(np.arange, a.shape), indexing="ij"), axis=-1)
  found = (nibabel.affines.apply_affine(a.affine, indices) * weights).sum((0, 1, 2)) / weights.sum()
  np.testing.assert_allclose(found, nibabel.affines.apply_affine(b.affine, centre), atol=0.1)


def test_resampling_fills_with_the_smallest_value():
  b = _volume(np.full((4, 4, 4), 5, np.float32) + DATA[:4, :4, :4], np.eye(4))
  a = _volume(np.zeros((8, 8, 8), np.float32), np.diag([1, 1, 1, 1.0]))
  assert grids.resample(b, a).data[6, 6, 6] == b.data.min()


def test_resampling_colours():
  rgb = np.random.default_rng(1).integers(0, 256, (4, 5, 6, 3), np.uint8)
  b = _volume(rgb, np.eye(4))
  shifted = np.eye(4)
  shifted[0, 3] = 1
  moved = grids.resample(b, _volume(np.zeros((3, 5, 6), np.float32), shifted))
  assert moved.is_rgb
  np.testing.assert_array_equal(moved.data, rgb[1:])


def test_volumes_apart_are_refused():
  with pytest.raises(UserError, match="do not overlap"):
    grids.resample(_volume(affine=_moved([500, 0, 0])), _volume())


def test_unusable_affines():
  assert grids.is_usable(AFFINE)
  assert grids.is_usable(np.diag([1e-6, 1e-6, 1e-6, 1]))
  flat = AFFINE.copy()
  flat[:3, 1] = flat[:3, 0]
  for affine in (np.zeros((4, 4)), np.diag([1, 1, 0, 1.0]), flat, AFFINE * np.nan):
    assert not grids.is_usable(affine)


def test_two_frames_of_reference_are_told_apart_where_both_are_known():
  known, other = (_volume(frame_uid=f"1.2.3.{n}00000000001") for n in (1, 2))
  assert grids.other_frame(known, known) == grids.other_frame(known, _volume()) == ""
  told = grids.other_frame(known, other)
  assert "...100000000001" in told
  assert "...200000000001" in told
  near, far = (_volume(frame_uid=f"1.{n}.100000000001") for n in (1, 2))
  assert "1.1.100000000001 and 1.2.100000000001" in grids.other_frame(near, far)


@pytest.mark.parametrize(
  ("axes", "plane", "letters"),
  [
    ("RAS", "axial", ("R", "L", "A", "P")),
    ("LPI", "axial", ("R", "L", "A", "P")),  # pictures lie alike, however a file stores them
    ("PSR", "coronal", ("R", "L", "H", "F")),
    ("SAL", "sagittal", ("A", "P", "H", "F")),
  ],
)
def test_edges_have_the_letters_of_the_patients_sides(axes, plane, letters):
  turn = np.eye(4)
  for i, code in enumerate(axes):
    turn[:3, i] = [(code == up) - (code == down) for down, up in ("LR", "PA", "IS")]
  volume = Volume(np.zeros((4, 5, 6), np.float32), turn)
  assert volume.axes == axes
  assert grids.edge_letters(volume, plane) == letters


def test_an_oblique_edge_has_two_letters():
  """The nose turned 30 degrees to the patient's right: what is right of it lies to the back."""
  turned = np.eye(4)
  angle = np.radians(30)
  turned[:2, :2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
  volume = Volume(np.zeros((4, 5, 6), np.float32), turned)
  assert grids.edge_letters(volume, "axial") == ("RP", "LA", "AR", "PL")
