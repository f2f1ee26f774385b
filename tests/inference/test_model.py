"""The public model object: every kind of input, the same picture whatever surrounds it, colour."""

import os
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
import tiny
from etils import epath
from PIL import Image

import dmfnet_jax
from dmfnet_jax.diffusion.schedule import make_schedule
from dmfnet_jax.errors import UserError
from dmfnet_jax.inference.engine import Engine, example_keys
from dmfnet_jax.inference.model import Model
from dmfnet_jax.io.color import replace_luma, rgb_to_luma
from dmfnet_jax.io.pictures import to_float
from dmfnet_jax.methods.dmfnet import features
from dmfnet_jax.training.checkpoint import Checkpointer
from dmfnet_jax.training.state import Optimizers, create_train_state
from dmfnet_jax.weights.files import save_weights

SIZE = (3, 5)  # padded to 4 x 6: the tiny UNet's stride is 2


@pytest.fixture(scope="module")
def net():
  return Model(*tiny.model())


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
  save_weights(path, *tiny.model())
  return path


def draw(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def grey():
  return draw(3, *SIZE), draw(3, *SIZE, seed=1)


@pytest.fixture(scope="module")
def colour():
  return draw(3, *SIZE), draw(3, *SIZE, 3, seed=1)


def test_a_list_of_pictures_of_any_sizes(net):
  """Each as it is alone: two padded sizes, grey and coloured, in the order given."""
  shapes = [(3, 5), (4, 6, 3), (7, 5), (3, 6)]
  a = [draw(*shape[:2], seed=i) for i, shape in enumerate(shapes)]
  b = [draw(*shape, seed=10 + i) for i, shape in enumerate(shapes)]
  names = list("wxyz")
  fused, std = net.fuse(a, b, names=names, samples=2, batch_size=2)
  for i, name in enumerate(names):
    alone, deviation = net.fuse(a[i], b[i], names=name, samples=2)
    assert fused[i].shape == b[i].shape
    assert np.abs(fused[i].astype(int) - alone).max() <= 1
    np.testing.assert_allclose(std[i], deviation, atol=1e-3)
  with pytest.raises(UserError, match=r"a must be \[H, W\] and b of the same shape"):
    net.fuse(a, b[::-1])
  with pytest.raises(UserError, match="4 pictures a and 3 pictures b"):
    net.fuse(a, b[1:])


def test_what_is_compiled_is_kept_for_the_next_process(model_file, tmp_path):
  """Also without the command, in a per-user folder."""
  program = (
    "import sys, numpy as np, dmfnet_jax; a = np.zeros((4, 6), np.uint8);"
    "dmfnet_jax.load_model(sys.argv[1]).fuse(a, a)"
  )
  environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
  del environment["JAX_COMPILATION_CACHE_DIR"]
  subprocess.run([sys.executable, "-c", program, str(model_file)], env=environment, check=True)
  (folder,) = (tmp_path / "dmfnet_jax").iterdir()
  assert any("fuse" in path.name for path in folder.iterdir())


def test_the_picture_is_the_documented_pipelines(net, colour):
  """Reflect-pad, noise, features, head, crop, round, and b's chroma: all by hand."""
  a, b = colour[0][0], colour[1][0]
  timesteps = net.config["features"]["timesteps"]
  schedule = make_schedule(**net.config["features"]["schedule"])
  padded = [
    np.pad(to_float(x), ((0, 1), (0, 1)), mode="reflect")[None, ..., None]
    for x in (a, rgb_to_luma(b))
  ]
  noisy_a, noisy_b, levels = features.noise_sources(
    schedule, timesteps, *padded, example_keys(7, ["left"])
  )
  fused = np.asarray(net.fuse_noisy(noisy_a, noisy_b, levels[:, 0]))
  assert fused.shape == (1, 4, 6, 1)
  assert fused.dtype == np.float32
  grey = np.round((fused[0, :3, :5, 0] + 1) / 2 * 255).astype(np.uint8)
  assert np.ptp(grey.astype(int)) > 20
  computed = net.fuse(a, b, seed=7, names="left")
  np.testing.assert_array_equal(computed, replace_luma(b, grey))


def test_grey_bytes(net, grey):
  fused = net.fuse(*grey)
  assert (fused.shape, fused.dtype) == ((3, *SIZE), np.uint8)
  one = net.fuse(grey[0][1], grey[1][1])
  assert (one.shape, one.dtype) == (SIZE, np.uint8)
  np.testing.assert_array_equal(one, fused[1])


def test_colour_bytes(net, colour):
  a, b = colour
  fused = net.fuse(a, b)
  assert (fused.shape, fused.dtype) == (b.shape, np.uint8)
  np.testing.assert_array_equal(fused, replace_luma(b, net.fuse(a, rgb_to_luma(b))))
  one = net.fuse(a[1], b[1])
  np.testing.assert_array_equal(one, fused[1])


def test_grey_floats_are_the_bytes_unrounded(net, grey):
  a, b = (to_float(x) for x in grey)
  fused = net.fuse(a, b)
  assert (fused.shape, fused.dtype) == ((3, *SIZE), np.float32)
  assert np.abs(fused).max() < 1
  np.testing.assert_array_equal(np.round((fused + 1) / 2 * 255), net.fuse(*grey))
  doubles = net.fuse(a.astype(np.float64), b.astype(np.float64))
  assert doubles.dtype == np.float32
  np.testing.assert_array_equal(doubles, fused)


def test_colour_floats_keep_their_chroma(net, colour):
  """The fused luma moves red, green and blue alike, where none of them meets its end."""
  a, b = to_float(colour[0]), to_float(colour[1])
  fused = net.fuse(a, b)
  assert (fused.shape, fused.dtype) == (b.shape, np.float32)
  assert np.abs(fused).max() <= 1
  inside = (np.abs(fused) < 1).all(-1)
  assert inside.sum() > 5
  moved = (fused - b)[inside]
  np.testing.assert_allclose(moved - moved[:, :1], 0, atol=1e-6)
  luma = fused[inside] @ [0.299, 0.587, 0.114]
  expected = net.fuse(a, (b @ [0.299, 0.587, 0.114]).astype(np.float32))[inside]
  np.testing.assert_allclose(luma, expected, atol=2e-3)  # its rounding goes through the networks


def test_grey_in_three_channels_stays_grey(net, grey):
  a, b = grey[0][0], grey[1][0]
  fused = net.fuse(a, np.repeat(b[..., None], 3, axis=-1))
  np.testing.assert_array_equal(fused, np.repeat(net.fuse(a, b)[..., None], 3, axis=-1))


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (3, 6)])
def test_any_size(net, size):
  fused = net.fuse(draw(*size), draw(*size, seed=1))
  assert fused.shape == size


def test_any_size_of_the_papers_depth():
  """Five levels, stride 16: smaller than it in one direction, between multiples in the other."""
  params, config = tiny.model(multipliers=(1, 1, 1, 1, 2))
  fused = Model(params, config).fuse(draw(7, 20), draw(7, 20, seed=1))
  assert fused.shape == (7, 20)
  assert np.ptp(fused.astype(int)) > 0


def test_a_picture_is_the_same_in_any_batch(net, grey):
  """Exactly, where pairs go one at a time (the default on CPU); else within one grey level."""
  alone = np.stack([net.fuse(a, b, batch_size=1) for a, b in zip(*grey, strict=True)])
  np.testing.assert_array_equal(net.fuse(*grey, batch_size=1), alone)
  together = net.fuse(*grey, batch_size=2)  # the last batch is filled up
  assert np.abs(together.astype(int) - alone).max() <= 1
  turned = net.fuse(grey[0][::-1], grey[1][::-1], batch_size=2)[::-1]
  assert np.abs(turned.astype(int) - alone).max() <= 1


def test_noise_follows_seed_and_name(net, grey):
  a, b = to_float(grey[0][0]), to_float(grey[1][0])
  first = net.fuse(a, b)
  np.testing.assert_array_equal(net.fuse(a, b, seed=0, names=""), first)
  others = [net.fuse(a, b, seed=1), net.fuse(a, b, names="x"), net.fuse(a, b, names=["y"])]
  for i, other in enumerate(others):
    for earlier in (first, *others[:i]):
      assert (other != earlier).any()
  together = net.fuse(np.stack([a] * 3), np.stack([b] * 3), names=["y", "", "x"])
  np.testing.assert_array_equal(together, np.stack([others[2], first, others[1]]))


def test_samples_are_further_draws(net, grey):
  """The mean and the deviation of K draws; eight begin with the four that four are."""
  a, b = (to_float(x[:1]) for x in grey)
  engine = Engine(net.params, net.config)
  sources = [{"a": a[0][..., None], "b": b[0][..., None]}]
  keys = [example_keys(5, [""], draw) for draw in range(8)]
  draws = np.stack([[r["fused"][..., 0] for r in engine.run(sources, key)] for key in keys])
  assert len(np.unique(draws.reshape(8, -1), axis=0)) == 8
  for count in (1, 4, 8):
    mean, deviation = net.fuse(a[0], b[0], seed=5, samples=count)
    assert (mean.shape, deviation.shape, deviation.dtype) == (SIZE, SIZE, np.float32)
    np.testing.assert_allclose(mean, draws[:count].mean(0)[0], atol=1e-6)
    np.testing.assert_allclose(deviation, draws[:count].std(0)[0] * 127.5, atol=1e-3)
  np.testing.assert_array_equal(net.fuse(a, b, seed=5), draws[0])


def test_samples_of_colour_bytes(net, colour):
  a, b = colour
  mean, deviation = net.fuse(a, b, samples=2)
  assert (mean.shape, mean.dtype, deviation.shape) == (b.shape, np.uint8, a.shape)
  assert deviation.max() > 0
  np.testing.assert_array_equal(mean, replace_luma(b, net.fuse(a, rgb_to_luma(b), samples=2)[0]))


X, F = np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.float32)


@pytest.mark.parametrize(
  ("a", "b", "options", "message"),
  [
    (X, np.zeros((4, 5), np.uint8), {}, r"got \(4, 6\) and \(4, 5\)"),
    (X, np.zeros((4, 6, 4), np.uint8), {}, r"got \(4, 6\) and \(4, 6, 4\)"),
    (np.zeros((4, 6, 4), np.uint8), X, {}, r"got \(4, 6, 4\) and \(4, 6\)"),
    (np.zeros(6, np.uint8), np.zeros(6, np.uint8), {}, r"got \(6,\) and \(6,\)"),
    (np.zeros((0, 6), np.uint8), np.zeros((0, 6), np.uint8), {}, "without pixels"),
    (X, F, {}, "both be uint8 or both float, got uint8 and float32"),
    (X.astype(np.int64), X.astype(np.int64), {}, "got int64 and int64"),
    (X.astype(bool), X.astype(bool), {}, "got bool and bool"),
    (F, F + 255, {}, r"b is float and must lie in \[-1, 1\], got 255"),
    (F - 1.1, F, {}, r"a is float and must lie in \[-1, 1\], got -1\.1"),
    (F + np.nan, F, {}, r"a is float and must lie in \[-1, 1\], got nan"),
    (X[None], X[None], {"names": ["x", "y"]}, "2 names for 1 pairs"),
    (np.stack([X, X]), np.stack([X, X]), {"names": "xy"}, "'xy' for 2 pairs"),
    (X, X, {"samples": 0}, "samples must be at least 1, got 0"),
    (X, X, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
  ],
)
def test_what_does_not_go_together_is_refused(net, a, b, options, message):
  with pytest.raises(UserError, match=message):
    net.fuse(a, b, **options)


def test_fuse_noisy_refuses_other_sizes_and_steps(net):
  noisy = np.zeros((3, 1, 4, 6, 1), np.float32)
  levels = np.ones(3, np.float32)
  with pytest.raises(ValueError, match="height and width must be multiples of 2"):
    net.fuse_noisy(noisy[:, :, :3], noisy[:, :, :3], levels)
  with pytest.raises(ValueError, match="the head is built for 3 timesteps"):
    net.fuse_noisy(noisy[:2], noisy[:2], levels[:2])


def test_two_rgb_arrays_are_two_pictures():
  """As np.array(Image.open(...)) gives them: not a batch of grey pictures of W x 3."""
  net, a, b = Model(*tiny.model()), draw(*SIZE, 3), draw(*SIZE, 3, seed=1)
  expected = net.fuse(rgb_to_luma(a), b)
  with pytest.warns(UserWarning, match=r"a is coloured: of it only the luma .*\[H, W, 3\]"):
    np.testing.assert_array_equal(net.fuse(a, b), expected)
  for sources, result in [
    (([a], [b]), [expected]),
    ((a[None], b[None]), [expected]),
    ((a, rgb_to_luma(b)), net.fuse(rgb_to_luma(a), rgb_to_luma(b))),
  ]:
    with pytest.warns(UserWarning, match="a is coloured: of it only the luma is used$"):
      np.testing.assert_array_equal(net.fuse(*sources), result)


def test_grey_in_three_channels_is_not_warned_of(net, colour):
  a, b = colour[0][0], colour[1][0]
  rgb = np.repeat(a[..., None], 3, axis=-1)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    np.testing.assert_array_equal(net.fuse(rgb, b), net.fuse(a, b))


def test_narrow_pictures_are_a_batch_where_something_shows_it(net):
  """In lists, or beside a batch in colour; one of other widths that are no colours is asked of."""
  a, b, rgb = draw(2, 5, 3), draw(2, 5, 3, seed=1), draw(2, 5, 3, 3, seed=2)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert [x.shape for x in net.fuse(list(a), list(b))] == [(5, 3)] * 2
    assert net.fuse(a, rgb).shape == (2, 5, 3, 3)
  for width, kind in ((1, "grey"), (2, "grey with alpha"), (4, "RGBA")):
    x = draw(2, 5, width)
    with pytest.raises(UserError, match=rf"\(2, 5, {width}\): one {kind} picture, or a batch"):
      net.fuse(x, x)


def test_floats_in_0_to_1_are_refused(net, grey):
  """All pictures of a source decide: a constant one among others is nothing unusual."""
  a, b = (to_float(x) for x in grey)
  for unit in (a / 2 + 0.5, b * 0):
    with pytest.raises(UserError, match=r"^b is float .* no negative value.*: give 2 \* b - 1, or"):
      net.fuse(a, unit)
    with pytest.raises(UserError, match=r"^b is float"):
      net.fuse(list(a), list(unit))
  assert net.fuse(a, np.stack([b[0] * 0, *b[1:]])).shape == b.shape
  assert len(net.fuse(list(a), [b[0] * 0, *b[1:]])) == 3
  with pytest.raises(UserError, match=r"^a is float and must lie in \[-1, 1\], got 4.0 to 248.0"):
    net.fuse(grey[0].astype(float), b)


def test_pillow_images_are_pictures(net, colour):
  """Grey and RGB; of other modes the array would be no picture, such as a palette's indices."""
  a, b = (Image.fromarray(x[0]) for x in colour)
  expected = net.fuse(colour[0][0], colour[1][0])
  np.testing.assert_array_equal(net.fuse(a, b), expected)
  np.testing.assert_array_equal(net.fuse([a], [b])[0], expected)
  for mode in ("P", "RGBA", "LA", "CMYK", "1", "I;16"):
    with pytest.raises(UserError, match=rf'^a Pillow image of mode {mode}: .*convert\("RGB"\)'):
      net.fuse(Image.new(mode, SIZE[::-1]), b)


def test_paths_are_read(net, colour, tmp_path):
  """With the command's name, and so its noise: the stem of A."""
  a, b = colour[0][0], colour[1][0]
  for name, x in (("x.png", a), ("b.png", b)):
    Image.fromarray(x).save(tmp_path / name)
  expected = net.fuse(a, b, names="x")
  files = tmp_path / "x.png", str(tmp_path / "b.png")
  np.testing.assert_array_equal(net.fuse(*files), expected)
  np.testing.assert_array_equal(net.fuse(files[0], b), expected)
  np.testing.assert_array_equal(net.fuse(*([x] for x in files), seed=0)[0], expected)
  np.testing.assert_array_equal(net.fuse(*files, names=""), net.fuse(a, b))
  with pytest.raises(UserError, match=r"none\.png"):
    net.fuse(tmp_path / "none.png", b)
  (tmp_path / "x.nii.gz").write_bytes(b"")
  with pytest.raises(UserError, match=r"x\.nii\.gz: a volume: give nibabel.load\(...\) of it"):
    net.fuse(tmp_path / "x.nii.gz", b)


def test_a_model_file_is_loaded(net, model_file, grey):
  model = dmfnet_jax.load_model(str(model_file))
  tiny.assert_same(model.params, net.params)
  assert model.config == net.config
  a, b = grey[0][0], grey[1][0]
  expected = net.fuse(a, b, seed=3)
  np.testing.assert_array_equal(model.fuse(a, b, seed=3), expected)
  np.testing.assert_array_equal(dmfnet_jax.fuse(a, b, model=str(model_file), seed=3), expected)


def test_memory_and_dtype_options(net, model_file, grey):
  """Fewer passes at a time change nothing that is seen; bfloat16 a little."""
  a, b = grey[0][0], grey[1][0]
  exact = net.fuse(a, b).astype(int)
  chunked = dmfnet_jax.load_model(str(model_file), parts_per_step=2).fuse(a, b)
  assert np.abs(chunked - exact).max() <= 1
  half = dmfnet_jax.load_model(str(model_file), compute_dtype="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype(np.float32)}
  difference = np.abs(half.fuse(a, b) - exact)
  assert 0 < difference.max() <= 8


def test_an_unknown_name_lists_the_known_ones():
  with pytest.raises(UserError, match=r"unknown model 'smal': give a released name \(fast, "):
    dmfnet_jax.load_model("smal")


def test_what_is_no_model_is_named(tmp_path):
  (tmp_path / "notes.txt").write_text("weights")
  (tmp_path / "empty").mkdir()
  for name, message in (
    ("notes.txt", r"notes\.txt is not a readable \.safetensors file"),
    ("missing.safetensors", r"missing\.safetensors: no such file"),
    ("empty", "no checkpoint in .*empty"),
  ):
    with pytest.raises(UserError, match=message):
      dmfnet_jax.load_model(str(tmp_path / name))


def test_a_stage1_workdir_cannot_fuse(tmp_path):
  checkpointer = Checkpointer(epath.Path(tmp_path), tiny.config(1), 1)
  params = {"unet": tiny.model()[0]["unet"]}
  state = create_train_state(params, Optimizers(tiny.config(1), params))
  checkpointer.save(jax.tree.map(np.asarray, state), {"next_batch": 0}, {"loss": 1.0})
  checkpointer.close()
  with pytest.raises(UserError, match="has no fusion_head: fusing needs a model of the method"):
    dmfnet_jax.load_model(str(tmp_path))
