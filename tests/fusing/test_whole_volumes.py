"""Methods for whole volumes: arrays, files and blocks, with a method that compiles in no time."""

import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from PIL import Image

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import files
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.inference.model import Model
from dmfnet_jax.io import color, scaling
from dmfnet_jax.methods.method import Field, Method

AFFINE = np.array([[2.0, 0, 0, -20], [0, 2, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1]])


def fuse(config, compute):
  """Each voxel's mean; and what lies to its right is darker, so that orientation matters."""

  def apply(params, images, keys):
    mean = (images["a"] + images["b"]) / 2
    right = jnp.pad(images["a"], ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)), mode="edge")[:, 1:]
    return {"fused": mean - 0.1 * (right + 1)}

  return apply


def scale_by_whole(config):
  """A number of the whole volume, as a published program has it."""
  return lambda outputs: {
    "fused": outputs["fused"] / jnp.abs(outputs["fused"]).max((1, 2, 3, 4), keepdims=True)
  }


METHOD = Method(
  defaults=lambda stage: {},
  model=(),
  networks=(),
  sources=(Field("a"), Field("b", gives_colour=True)),
  fuse=fuse,
  after_crop=scale_by_whole,
  space=3,
  exact_size=True,
  tile_step=lambda config: 4,
)


@pytest.fixture
def model(users_method):
  return Model({}, {"method": users_method(METHOD)})


def volumes(size=(9, 10, 11)):
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, size, np.uint8) for _ in range(2)]


def test_arrays_of_three_axes_are_one_volume(model):
  a, b = volumes()
  fused = model.fuse(a, b)
  assert (fused.shape, fused.dtype) == (a.shape, np.uint8)
  both = model.fuse(np.stack([a, b]), np.stack([b, a]))
  np.testing.assert_array_equal(both[0], fused)
  listed = model.fuse([a, a[:5]], [b, b[:5]])
  np.testing.assert_array_equal(listed[0], fused)
  np.testing.assert_array_equal(listed[1], model.fuse(a[:5], b[:5]))


def test_blocks_are_the_whole_where_the_method_is_local(model):
  """Also what a number of the whole volume makes of it, and whatever the batch.

  Sides are multiples of the step: beyond the end of others a block has a reflection.
  """
  a, b = (x / np.float32(127.5) - 1 for x in volumes((72, 36, 44)))
  whole = model.fuse(a, b, tile="off")
  for batch_size in (1, 3):
    blocks = model.fuse(a, b, tile=32, batch_size=batch_size)
    np.testing.assert_allclose(blocks, whole, atol=1e-5)
  # Blocks begin at multiples of the method's step, where it is told a side that is none.
  assert model.block_size((72, 36, 44), 33) == 36
  assert model.block_size((30, 30, 30), 32) is None
  with pytest.raises(UserError, match="give auto, off or a side from 32"):
    model.block_size((72, 36, 44), 16)


def test_volumes_that_do_not_fit_are_fused_in_blocks(model, monkeypatch):
  monkeypatch.setattr(model._engine, "_fit", lambda padded: 0)
  assert model.block_size((129, 128, 129)) == 128
  assert model.block_size((128, 128, 128)) is None


def test_pictures_are_refused(model, tmp_path):
  a, b = volumes()
  with pytest.raises(
    UserError, match=r"a must be \[D, H, W\] or \[B, D, H, W\] and b of the same shape"
  ):
    model.fuse(a[0], b[0])
  for name, x in (("a", a), ("b", b)):
    Image.fromarray(x[0]).save(tmp_path / f"{name}.png")
  pairs, options = files.find_pairs(
    tmp_path / "a.png", tmp_path / "b.png", tmp_path / "out.png", FuseOptions()
  )
  with pytest.raises(UserError, match=r"a\.png: is a picture, and small-v2 fuses whole volumes"):
    files.fuse_pairs(model, pairs, tmp_path / "out.png", options)
  assert not (tmp_path / "out.png").exists()


def save(path, data, axes="RAS"):
  image = nibabel.Nifti1Image(data, AFFINE)
  turn = nibabel.orientations.ornt_transform(
    nibabel.io_orientation(AFFINE), nibabel.orientations.axcodes2ornt(axes)
  )
  nibabel.save(image.as_reoriented(turn), path)


@pytest.mark.parametrize("axes", ["RAS", "PSL"])
def test_files_are_fused_as_they_lie_in_space(model, tmp_path, axes):
  """However their voxels are ordered; the result has A's grid."""
  a, b = volumes()
  for name, x in (("a", a), ("b", b)):
    save(tmp_path / f"{name}.nii.gz", x, axes)
  options = FuseOptions(window_a="0,255", window_b="0,255")
  out = tmp_path / "out.nii.gz"
  pairs, options = files.find_pairs(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", out, options)
  assert not files.fuse_pairs(model, pairs, out, options)
  result, source = nibabel.load(out), nibabel.load(tmp_path / "a.nii.gz")
  np.testing.assert_array_equal(result.affine, source.affine)
  expected = model.fuse(a, b)
  straight = nibabel.as_closest_canonical(result)
  np.testing.assert_array_equal(np.asarray(straight.dataobj), expected)


def test_colours_of_b_go_back_into_the_whole(model, tmp_path):
  a, b = volumes()
  for name, x in (("a", a), ("b", b)):
    save(tmp_path / f"{name}.nii.gz", x)
  options = FuseOptions(window_a="0,255", window_b="0,255", lut="hot", rgb="4d")
  out = tmp_path / "out.nii.gz"
  pairs, options = files.find_pairs(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", out, options)
  assert not files.fuse_pairs(model, pairs, out, options)
  coloured = scaling.apply_lut(b, scaling.read_lut("hot"))
  luma = model.fuse(a, color.rgb_to_luma(coloured))
  np.testing.assert_array_equal(np.asarray(nibabel.load(out).dataobj), luma)
  rgb = np.asarray(nibabel.load(tmp_path / "out_rgb.nii.gz").dataobj)
  np.testing.assert_array_equal(rgb, color.replace_luma(coloured, luma))
  with pytest.raises(UserError, match="it is for one luma of pictures"):
    model.check_emphasis("tracer")


def test_nibabel_images_are_fused_whole(model):
  a, b = volumes()
  images = [nibabel.Nifti1Image(x, AFFINE) for x in (a, b)]
  told = []
  fused = model.fuse(*images, on_done=told.append)
  assert sum(told) == a.shape[2]
  np.testing.assert_array_equal(fused.affine, AFFINE)
  assert fused.get_data_dtype() == np.uint8
