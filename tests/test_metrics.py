"""The fusion metrics against values by hand and against an independent float64 version."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import metrics_numpy
from PIL import Image
from scipy import ndimage
from skimage.metrics import structural_similarity

from dmfnet_jax import metrics
from dmfnet_jax.metrics import (
  METRIC_NAMES,
  READER_NAMES,
  compute_metrics,
  compute_reader_metrics,
  published,
)

# The public function of each metric, and whether it also takes the sources.
FUNCTIONS = {
  "EN": metrics.entropy,
  "MI": metrics.mutual_information,
  "VIFF": metrics.viff,
  "Qabf": metrics.qabf,
  "SSIM": metrics.ssim,
  "PSNR": metrics.psnr,
  "CC": metrics.correlation,
  "SCD": metrics.difference_correlation,
  "SD": metrics.standard_deviation,
  "SF": metrics.spatial_frequency,
  "AG": metrics.average_gradient,
  "MSE": metrics.mse,
}
OF_FUSED_ALONE = {"EN", "SD", "SF", "AG"}
SHAPE = (48, 64)


def call(name, a, b, fused):
  pictures = (fused,) if name in OF_FUSED_ALONE else (a, b, fused)
  return FUNCTIONS[name](*pictures)


def one(name, a, b, fused) -> float:
  [value] = np.asarray(call(name, a[None], b[None], fused[None]))
  return float(value)


def smooth(rng, shape, sigma, mean, deviation):
  """Correlated noise, in whole grey values."""
  noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
  return np.clip(np.rint(mean + deviation * noise / noise.std()), 0, 255)


def triples(shape=(61, 88)) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Pictures A, B and fused, hard in different ways; 61 x 88 is odd at two of VIF's scales."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
  head, skull = x**2 + y**2 < 0.7, np.abs(np.hypot(x, y) - 0.75) < 0.06
  tissue = smooth(rng, shape, 2, 90, 35)
  mri, ct = np.where(head, tissue, 0.0), np.where(skull, 255.0, np.where(head, 40.0, 0.0))
  noise = rng.integers(0, 256, (3, *shape)).astype(float)
  bright = smooth(rng, shape, 3, 250, 1.5)
  half_white = np.where(x < 0, 255.0, smooth(rng, shape, 1, 100, 40))
  real = rng.uniform(0, 255, (3, *shape))
  return {
    "noise": tuple(noise),
    "head": (mri, ct, np.maximum(mri, ct)),
    "average": (mri, ct, np.rint((mri + ct) / 2)),
    "bright and faint": (bright, smooth(rng, shape, 3, 250, 1), np.clip(bright + 1, 0, 255)),
    "partly saturated": (half_white, ct, np.rint(0.7 * half_white + 0.3 * ct)),
    "opposed": (mri, 255 - mri, np.rint(0.6 * mri + 50)),
    "fractions": (real[0], real[1], (real[0] + real[1] + 0.2 * real[2]) / 2.2),
  }


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
  """All the triples as batches A, B and fused."""
  return [np.stack(column) for column in zip(*triples().values(), strict=True)]


@pytest.fixture(scope="module")
def values(pictures) -> dict[str, np.ndarray]:
  return {name: np.asarray(value) for name, value in compute_metrics(*pictures).items()}


def test_the_names_come_in_the_contract_s_order(values):
  order = "EN MI VIFF Qabf SSIM PSNR CC SCD SD SF AG MSE".split()
  assert list(METRIC_NAMES) == order
  assert list(values) == order
  assert list(FUNCTIONS) == order
  assert all(value.shape == (len(triples()),) for value in values.values())
  assert all(value.dtype == np.float32 for value in values.values())


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_equals_the_float64_version(name, pictures, values):
  want = [metrics_numpy.compute_metrics(*triple)[name] for triple in zip(*pictures, strict=True)]
  np.testing.assert_allclose(values[name], want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_each_function_alone_equals_the_float64_version(name):
  a, b, fused = triples(SHAPE)["average"]
  want = metrics_numpy.compute_metrics(a, b, fused)[name]
  assert one(name, a, b, fused) == pytest.approx(want, rel=2e-5)


def test_real_pictures_equal_the_float64_version(shared_dir):
  batches: list[list[np.ndarray]] = [[], [], []]
  for modality in ("ct", "pet", "spect"):
    folder = shared_dir / "data" / "harvard" / "val" / modality
    path = min((folder / "mri").iterdir())
    a, b = (
      np.asarray(Image.open(folder / kind / path.name).convert("L"), float)
      for kind in ("mri", "other")
    )
    for fused in (np.maximum(a, b), np.rint((a + b) / 2)):
      for batch, picture in zip(batches, (a, b, fused), strict=True):
        batch.append(picture)
  got = compute_metrics(*batches)
  for i, triple in enumerate(zip(*batches, strict=True)):
    for name, want in metrics_numpy.compute_metrics(*triple).items():
      assert float(got[name][i]) == pytest.approx(want, rel=2e-5, abs=2e-6), name


def test_large_pictures_in_several_chunks():
  rng = np.random.default_rng(1)
  shape = (3, 350, 370)  # two pairs a chunk, so one is filled up
  assert 2 <= published._CPU_CHUNK_PIXELS / (350 * 370) < 3
  a, b = smooth(rng, shape, (0, 5, 5), 200, 20), smooth(rng, shape, (0, 2, 2), 230, 10)
  fused = np.rint((a + b) / 2)
  got = compute_metrics(a, b, fused)
  for i, triple in enumerate(zip(a, b, fused, strict=True)):
    for name, want in metrics_numpy.compute_metrics(*triple).items():
      assert float(got[name][i]) == pytest.approx(want, rel=2e-5), name


# By hand.

RAMP = np.broadcast_to(np.arange(64.0), SHAPE)
CHECKS = np.indices(SHAPE).sum(0) % 2 * 255.0


def test_two_levels_of_equal_share_are_one_bit():
  assert one("EN", CHECKS, CHECKS, CHECKS) == pytest.approx(1)
  assert one("EN", RAMP, RAMP, RAMP) == pytest.approx(6)  # 64 levels
  # Halves go to the even neighbour, as NumPy rounds: 0.5 joins 0 and 1.5 joins 2.
  halves = np.tile([0.0, 0.5, 1.5, 2.0], (48, 16))
  assert one("EN", halves, halves, halves) == pytest.approx(1)


def test_mutual_information_with_itself_is_the_entropy():
  assert one("MI", CHECKS, CHECKS, CHECKS) == pytest.approx(2 * math.log(2), rel=1e-6)
  rows = np.indices(SHAPE)[0] % 2 * 255.0
  assert one("MI", rows, rows, RAMP) == pytest.approx(0, abs=1e-5)  # independent
  assert one("MI", CHECKS, rows, CHECKS) == pytest.approx(math.log(2), rel=1e-5)


def test_a_picture_fused_with_itself():
  rng = np.random.default_rng(2)
  f = rng.integers(0, 256, SHAPE).astype(np.uint8)
  assert one("SSIM", f, f, f) == pytest.approx(2)
  assert one("VIFF", f, f, f) == pytest.approx(2, rel=1e-5)
  assert one("CC", f, f, f) == pytest.approx(1)
  assert one("SCD", f, f, f) == 0  # nothing is left of F without A or B
  assert one("MSE", f, f, f) == 0
  assert one("PSNR", f, f, f) == math.inf
  # Equal angles, equal strengths, of which the logistic curve of the strength is at its end.
  assert one("Qabf", f, f, f) == pytest.approx(0.9994 * 0.9879 / (1 + math.exp(-4.4)), rel=1e-4)


def test_differences_of_ten_levels():
  f = RAMP + 20
  assert one("MSE", f + 10, f - 10, f) == pytest.approx(100)
  assert one("MSE", f + 10, f, f) == pytest.approx(50)
  assert one("PSNR", f + 10, f - 10, f) == pytest.approx(20 * math.log10(83 / 10), rel=1e-6)
  assert one("CC", f + 10, 255 - f, f) == pytest.approx(0, abs=1e-6)  # 1 and -1
  assert one("CC", 255 - f, 255 - f, f) == pytest.approx(-1)


def test_what_f_adds_to_b_is_a():
  rng = np.random.default_rng(3)
  a, b = rng.integers(0, 128, (2, *SHAPE)).astype(np.uint8)
  assert one("SCD", a, b, a + b) == pytest.approx(2)


def test_a_ramp_s_gradients():
  assert one("SD", RAMP, RAMP, RAMP) == pytest.approx(math.sqrt((64**2 - 1) / 12))
  assert one("SF", RAMP, RAMP, 2 * RAMP) == pytest.approx(2)
  assert one("AG", RAMP, RAMP, 2 * RAMP) == pytest.approx(math.sqrt(2))
  assert one("SD", CHECKS, CHECKS, CHECKS) == pytest.approx(127.5)
  assert one("SF", CHECKS, CHECKS, CHECKS) == pytest.approx(255 * math.sqrt(2))
  # Central differences vanish on a chessboard but for its border.
  inner = (1 - 2 / 64) * (1 - 2 / 48)
  assert one("AG", CHECKS, CHECKS, CHECKS) < 255 * (1 - inner)


@pytest.mark.parametrize("grey", [0.0, 77.0, 127.3, 255.0])
def test_constant_pictures_give_what_the_docstring_says(grey):
  rng = np.random.default_rng(4)
  noise = rng.integers(0, 256, (61, 88)).astype(float)
  constant = np.full_like(noise, grey)
  cases = [
    (constant, constant, constant),
    (noise, noise, constant),
    (constant, constant, noise),
    (constant, noise, noise),
  ]
  cases += cases[:3]  # seven, a shape that is compiled already
  got = compute_metrics(*map(np.stack, zip(*cases, strict=True)))
  got = {name: np.asarray(value) for name, value in got.items()}
  assert not any(np.isnan(value).any() for value in got.values())
  for name in ("EN", "MI", "SD", "SF", "AG", "CC", "SCD"):
    np.testing.assert_allclose(got[name][0], 0, atol=1e-4, err_msg=name)
  np.testing.assert_allclose(got["VIFF"][:3], [2, 0, 2])
  np.testing.assert_allclose(got["CC"][1:4], [0, 0, 0.5], atol=1e-6)
  np.testing.assert_allclose(got["SCD"][1:3], [-2, 0], atol=1e-6)  # F - B is but -B
  # A constant that is not black ends at the border, which is an edge.
  assert got["Qabf"][0] == 0 if grey == 0 else got["Qabf"][0] > 0.97
  assert got["Qabf"][1] < 0.1
  assert got["SSIM"][0] == pytest.approx(2)
  assert got["PSNR"][0] == math.inf
  assert np.isfinite(got["PSNR"][2:4]).all()
  assert got["PSNR"][1] == -math.inf if grey == 0 else np.isfinite(got["PSNR"][1])


# Batches, types, compilations.


def test_a_pair_s_values_do_not_depend_on_its_batch(pictures, values):
  alone = compute_metrics(*[batch[2:3] for batch in pictures])
  for name in METRIC_NAMES:
    np.testing.assert_allclose(alone[name], values[name][2:3], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float64])
def test_any_real_type_will_do(dtype, pictures, values):
  got = compute_metrics(*[np.rint(batch).astype(dtype) for batch in pictures])
  whole = list(triples()).index("fractions")
  for name in METRIC_NAMES:
    np.testing.assert_array_equal(got[name][:whole], values[name][:whole], err_msg=name)


def test_the_pictures_are_left_as_they_are(pictures):
  before = [batch.copy() for batch in pictures]
  compute_metrics(*pictures)
  for batch, copy in zip(pictures, before, strict=True):
    np.testing.assert_array_equal(batch, copy)


def test_one_shape_is_compiled_once(pictures, values, caplog):
  def compilations(name, function, *batches):
    caplog.clear()
    function(*batches)
    return [x for x in caplog.records if x.getMessage().startswith(f"Compiling jit({name})")]

  whole = [np.rint(batch) for batch in pictures]
  with jax.log_compiles():
    assert compilations("standard_deviation", metrics.standard_deviation, np.ones((1, 5, 6)))
    assert not compilations("_all_metrics", compute_metrics, *pictures)
    types = (np.uint8, np.float32, np.int16)
    other = [batch.astype(dtype) for batch, dtype in zip(whole, types, strict=True)]
    assert not compilations("_all_metrics", compute_metrics, *other)


def test_both_ways_to_count_grey_levels_count_the_same():
  rng = np.random.default_rng(6)
  x, y = np.minimum(rng.integers(0, 256, (2, 3, 20, 30)), 255 * rng.integers(0, 2, (2, 3, 20, 30)))
  by_scatter = published._count_by_scatter(jnp.asarray(x), jnp.asarray(y))
  by_matmul = published._count_by_matmul(jnp.asarray(x), jnp.asarray(y))
  np.testing.assert_array_equal(by_scatter, by_matmul)
  for counts, one_x, one_y in zip(by_scatter, x, y, strict=True):
    want, _, _ = np.histogram2d(one_x.ravel(), one_y.ravel(), bins=256, range=[[0, 256]] * 2)
    np.testing.assert_array_equal(counts, want)


def test_the_polynomial_of_the_arctangent():
  gx, gy = (v.ravel() for v in np.meshgrid(np.arange(-1020.0, 1021, 17), np.arange(-1020.0, 1021)))
  with np.errstate(divide="ignore", invalid="ignore"):
    want = np.where(gx == 0, np.pi / 2, np.arctan(gy / gx))
  got = published._slope(jnp.asarray(gx, jnp.float32), jnp.asarray(gy, jnp.float32))
  np.testing.assert_allclose(got, want, atol=3e-7)


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_other_shapes_are_refused(name):
  picture = np.zeros((1, 48, 48), np.uint8)
  with pytest.raises(ValueError, match=r"\[B, H, W\]"):
    call(name, picture[0], picture[0], picture[0])
  with pytest.raises(ValueError, match=r"\[B, H, W\]"):
    call(name, picture[:0], picture[:0], picture[:0])
  if name not in OF_FUSED_ALONE:
    with pytest.raises(ValueError, match="one shape"):
      call(name, picture, picture[:, :40], picture)


def test_pictures_too_small_for_viff_are_refused():
  for shape in ((1, 40, 60), (1, 60, 40)):
    with pytest.raises(ValueError, match="41 x 41"):
      compute_metrics(*[np.zeros(shape)] * 3)
  smallest = np.random.default_rng(7).integers(0, 256, (3, 1, 41, 41))
  want = metrics_numpy.compute_metrics(*smallest[:, 0])["VIFF"]
  assert metrics.viff(*smallest)[0] == pytest.approx(want, rel=1e-5)


def test_every_public_function_says_its_symbol():
  for name, function in FUNCTIONS.items():
    assert inspect.getdoc(function).startswith(f"{name}: ")


def test_what_a_reader_sees_equals_the_float64_version(pictures):
  got = compute_reader_metrics(*pictures)
  assert tuple(got) == READER_NAMES
  for i, triple in enumerate(zip(*pictures, strict=True)):
    for name, want in metrics_numpy.compute_reader_metrics(*triple).items():
      # Where much is saturated, float32 sees as equal what float64 can order.
      tolerance = 1e-3 if name == "tracer_order" else 1e-5
      assert float(got[name][i]) == pytest.approx(want, rel=1e-4, abs=tolerance), (i, name)


def test_what_a_reader_sees_by_hand():
  a = np.zeros((1, 64, 64))
  a[:, 20:40, 20:40] = 200
  none = np.zeros_like(a)

  def measured(a, b, fused):
    return [float(value[0]) for value in compute_reader_metrics(a, b, fused).values()]

  assert measured(a, none, a) == [0, 0, 0]
  assert measured(none, none, none) == [0, 0, 0]
  # A black hole of one pixel within the square: lost, and darker than all its neighbours are.
  hole = a.copy()
  hole[0, 30, 30] = 0
  assert measured(a, none, hole) == pytest.approx([0, 1 / 400, 0])  # B is black: no invention
  assert measured(a, a, hole) == pytest.approx([200 / 64**2, 1 / 400, 0.99], abs=0.01)
  # A halo of 30 levels, two pixels off the square.
  halo = a.copy()
  halo[0, 17, 20:40] = 30
  assert measured(a, none, halo) == pytest.approx([30 * 20 / 64**2, 0, 0])


def test_tracer_order_falls_where_uptake_is_turned_round():
  uptake = np.linspace(25, 255, 64)[None, None].repeat(64, axis=1)
  assert compute_reader_metrics(uptake, uptake, uptake)["tracer_order"] == pytest.approx(1)
  assert compute_reader_metrics(uptake, uptake, 300 - uptake)["tracer_order"] == pytest.approx(-1)


def test_ssim_s_range_of_two_is_that_of_the_programs_that_leave_it_out():
  a, b, fused = triples(SHAPE)["average"]
  got = compute_metrics(a[None], b[None], fused[None], ssim_range=2)["SSIM"]
  want = sum(structural_similarity(fused, x, data_range=2) for x in (a, b))
  assert float(got[0]) == pytest.approx(want, rel=2e-5)
