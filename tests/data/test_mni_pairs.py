"""The embedded dataset: the simulation's numbers, the splits, and reading it without TensorFlow."""

import dataclasses
import hashlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from scipy import ndimage

from dmfnet_jax.data.builders import mni_template, simulate, simulate_ct
from dmfnet_jax.errors import UserError
from dmfnet_jax.io.color import rgb_to_luma

# One slice of each plane through the middle of the brain.
SLICES = {"axial": 90, "coronal": 110, "sagittal": 112}
TRACERS = {"PET": simulate.PET, "SPECT": simulate.SPECT}


def run_python(code: str) -> str:
  """Runs code in a fresh interpreter where some module must be missing."""
  command = [sys.executable, "-c", textwrap.dedent(code)]
  return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("plane", mni_template.PLANES)
@pytest.mark.parametrize("modality", mni_template.MODALITIES)
def test_pair_is_two_full_pictures_of_one_head(modality, plane):
  a, b, name = mni_template.mni_pair(modality, plane, SLICES[plane])
  assert name == f"{modality.lower()}_{plane}_{SLICES[plane]:03d}"
  assert a.shape == (256, 256)
  assert b.shape == (256, 256, 3)
  assert a.dtype == b.dtype == np.uint8
  assert a.max() > 240  # the T1's white matter
  if modality == "CT":
    np.testing.assert_array_equal(b[..., 0], b[..., 1])
    np.testing.assert_array_equal(b[..., 0], b[..., 2])
  luma = rgb_to_luma(b)
  for image in (a, luma):
    border = np.concatenate([image[:3].ravel(), image[:, :3].ravel(), image[:, -3:].ravel()])
    assert border.max() == 0
  # Almost all of the brain shows in the other picture, in its place.
  assert (luma[a > 60] > 8).mean() > 0.95


def test_same_arguments_give_the_same_bytes_and_others_do_not():
  first, second = (mni_template.mni_pair("PET", "axial", 90) for _ in range(2))
  np.testing.assert_array_equal(first[0], second[0])
  np.testing.assert_array_equal(first[1], second[1])
  a, b, _ = mni_template.mni_pair("SPECT", "axial", 90)
  assert (a != first[0]).any()  # its own contrast and noise
  assert (b != first[1]).any()
  lower_case = mni_template.mni_pair("spect", "axial", 90)
  np.testing.assert_array_equal(lower_case[1], b)


def test_bytes_do_not_depend_on_the_process_or_the_order():
  printed = run_python("""
    import hashlib

    from dmfnet_jax.data.builders import mni_template
    mni_template.mni_pair("CT", "coronal", 100)
    a, b, _ = mni_template.mni_pair("PET", "axial", 90)
    print(hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest())
  """)
  a, b, _ = mni_template.mni_pair("PET", "axial", 90)
  assert printed.strip() == hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest()


def test_needs_neither_tensorflow_nor_tfds():
  printed = run_python("""
    import sys
    sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
    from dmfnet_jax.data.builders import mni_template
    print(len(mni_template.demo_pairs()), "jax" in sys.modules, "nilearn" in sys.modules)
  """)
  assert printed.split() == ["6", "False", "False"]


@pytest.mark.parametrize("plane", mni_template.PLANES)
def test_coordinates_agree_with_the_volume_and_with_radiology(plane):
  index = SLICES[plane]
  coordinates = mni_template.slice_coordinates(plane, index)
  template = mni_template._template()
  picture = mni_template._slice(template.t1, plane, index)
  voxels = coordinates.astype(int) - np.reshape(mni_template.ORIGIN_MM, (3, 1, 1))
  inside = ((voxels >= 0) & (voxels < np.reshape(mni_template.SHAPE, (3, 1, 1)))).all(axis=0)
  np.testing.assert_array_equal(picture[inside], template.t1[tuple(voxels[:, inside])])
  assert picture[~inside].max(initial=0) == 0

  x, y, z = coordinates
  top_to_bottom = {"axial": y, "coronal": z, "sagittal": z}[plane]
  left_to_right = {"axial": x, "coronal": x, "sagittal": y}[plane]
  assert (np.diff(top_to_bottom, axis=0) == -1).all()  # nose or vertex up
  assert (np.diff(left_to_right, axis=1) == -1).all()  # right side or nose on the left


def test_front_of_the_head_is_where_the_coordinates_say():
  """Anatomy, not arithmetic: the cerebellum lies low and at the back, which is on the right."""
  a, _, _ = mni_template.mni_pair("PET", "sagittal", 112)
  low = a[190:215]  # below the temporal lobe there is nothing but the cerebellum
  assert (low[:, 128:] > 60).sum() > 10 * (low[:, :128] > 60).sum()


@pytest.mark.parametrize(("modality", "ratio"), [("PET", 4.0), ("SPECT", 3.0)])
def test_grey_to_white_before_the_scanner(modality, ratio):
  """Measured in voxels of one tissue, without and with the regional pattern."""
  tracer = TRACERS[modality]
  tissue = mni_template.tissue_slab("axial", 90, 0)[:, 0]
  gain = simulate.regional_gain(tracer.regions, mni_template.slice_coordinates("axial", 90))
  for gains, tolerance in ((1.0, 0.02), (gain, 0.15)):
    true = simulate.activity(tracer, tissue, gains)
    grey, white, csf = (true[fraction > 0.99].mean() for fraction in tissue)
    assert grey / white == pytest.approx(ratio, rel=tolerance)
    assert csf < 0.05 * grey
  assert gain.min() > 0.7
  assert gain.max() < 1.5


@pytest.mark.parametrize("modality", ["PET", "SPECT"])
def test_point_spread_has_the_stated_width(modality):
  """A point, blurred as a study is: its width at half height across and in the slice."""
  tracer = TRACERS[modality]
  half = int(np.ceil(1.2 * tracer.fwhm))
  across = [
    simulate.through_plane(np.eye(2 * half + 1)[position], tracer.fwhm)
    for position in range(2 * half + 1)
  ]
  point = np.zeros((65, 65))
  point[32, 32] = 1
  in_plane = simulate.blur(simulate.blur(point, tracer.system_fwhm), tracer.filter_fwhm)
  assert in_plane.sum() == pytest.approx(1, rel=1e-3)
  assert sum(across) == pytest.approx(1, rel=1e-6)
  for profile in (np.array(across), in_plane[32], in_plane[:, 32]):
    assert width_at_half_height(profile) == pytest.approx(tracer.fwhm, rel=0.03)
  assert {"PET": 5 <= tracer.fwhm <= 6, "SPECT": 8 <= tracer.fwhm <= 10}[modality]


def width_at_half_height(profile: np.ndarray) -> float:
  fine = np.linspace(0, len(profile) - 1, 20001)
  # A Gaussian is a parabola in logarithms, so interpolate there.
  values = np.interp(fine, np.arange(len(profile)), np.log(np.maximum(profile, 1e-12)))
  above = fine[values >= np.log(profile.max() / 2)]
  return above[-1] - above[0]


def test_noise_of_a_uniform_region_is_as_documented():
  rng = np.random.default_rng(0)
  tissue = np.zeros((3, 13, 128, 128), np.float32)
  tissue[0] = 1
  far_from_any_region = np.full((3, 128, 128), 500.0)
  plain = dataclasses.replace(simulate.PET, variation=0.0)
  image = simulate.tracer_image(plain, tissue, far_from_any_region, np.zeros((128, 128)), rng)
  assert image.mean() == pytest.approx(1, rel=0.01)
  assert image.std() == pytest.approx(0.044, rel=0.1)


@pytest.mark.parametrize("modality", ["PET", "SPECT"])
def test_colours_come_from_the_table_and_order_the_tissues(modality):
  tracer = TRACERS[modality]
  table = simulate.colour_table(tracer.colours)
  assert table.shape == (256, 3)
  assert table[0].tolist() == [0, 0, 0]
  assert table[-1].tolist() == list(tracer.colours[-1][1:])
  assert len(np.unique(table, axis=0)) > 240  # so that colour can be read back as activity

  _, b, _ = mni_template.mni_pair(modality, "axial", 90)
  codes = {tuple(colour): i for i, colour in enumerate(table.tolist())}
  index = np.array([codes[tuple(pixel)] for pixel in b.reshape(-1, 3).tolist()]).reshape(256, 256)
  grey, white, _ = mni_template.tissue_slab("axial", 90, 0)[:, 0]
  assert index[grey > 0.9].mean() > 1.4 * index[white > 0.9].mean()
  assert index[white > 0.9].mean() > 20
  assert (index == 255).mean() < 0.01  # hardly anything is clipped


@pytest.mark.parametrize(("plane", "index"), [*SLICES.items(), ("axial", 40), ("coronal", 180)])
def test_ct_has_a_closed_skull_around_windowed_brain(plane, index):
  _, b, _ = mni_template.mni_pair("CT", plane, index)
  ct = b[..., 0]
  grey, white, csf = mni_template.tissue_slab(plane, index, 0)[:, 0]
  core = ndimage.binary_erosion(grey + white + csf > 0.5, iterations=5)
  # Bone saturates, and no path leads from outside into the head without crossing it.
  bone = ct == 255
  assert 0.03 < bone.mean() < 0.25
  regions, _ = ndimage.label(~bone)
  assert regions[0, 0] not in np.unique(regions[core & ~bone])
  # Brain lies within the window, grey above white above CSF, as in Hounsfield units.
  assert (bone & core).sum() < 0.01 * core.sum()
  means = [ct[core & (fraction > 0.9)].mean() for fraction in (grey, white)]
  expected = [hu / 80 * 255 for hu in (simulate_ct.HU_GREY, simulate_ct.HU_WHITE)]
  np.testing.assert_allclose(means, expected, atol=8)
  if plane != "coronal" or index == SLICES["coronal"]:  # the other coronal one has no ventricle
    off_the_falx = np.abs(mni_template.slice_coordinates(plane, index)[0]) > 3
    assert ct[core & (csf > 0.9) & off_the_falx].mean() < means[1] - 15


def test_ct_window():
  hu = np.array([-1000.0, 0.0, 40.0, 80.0, 1300.0])
  assert simulate_ct.window(hu).tolist() == [0, 0, 128, 255, 255]


def test_skull_is_as_thick_as_measured_in_people():
  centre = np.zeros(3)
  directions = np.array([[50.0, 0, 0], [0, 50, 0], [0, 0, 50]]).T[..., None]
  bone, scalp = simulate_ct.skull_layers(np.zeros((3, 1)), directions, centre)
  # With the pixel on the envelope, the outer table lies a gap and the bone's thickness outward.
  np.testing.assert_allclose(-scalp[:, 0] - simulate_ct.SKULL_GAP, [4.7, 8.0, 7.0], rtol=1e-3)
  assert (bone < 0).all()


@pytest.mark.parametrize("plane", mni_template.PLANES)
def test_splits_are_blocks_with_gaps(plane):
  splits = mni_template.split_indices(plane)
  train, validation = set(splits["train"]), set(splits["validation"])
  first, last = mni_template.RANGES[plane]
  assert len(train) > len(validation) >= 5
  assert all(first <= i < last for i in train | validation)
  nearest = min(abs(i - j) for i in train for j in validation)
  assert nearest > mni_template.GAP - 1
  assert nearest > simulate.PET.fwhm
  for begin, end in mni_template.VALIDATION_BLOCKS[plane]:
    assert set(range(begin, end, mni_template.STEP)) <= validation
  # Every slice shows brain.
  for i in train | validation:
    assert (mni_template._slice(mni_template._template().t1, plane, i) > 0).sum() >= 2800


def test_no_slice_is_another_ones_mirror_image():
  """The template is symmetric: x and -x are one picture, so only one side may be used."""
  t1 = mni_template._template().t1
  np.testing.assert_array_equal(t1, t1[::-1])
  middle = (mni_template.SHAPE[0] - 1) // 2
  assert all(i > middle for split in mni_template.split_indices("sagittal").values() for i in split)


def test_demo_shows_each_modality_from_validation_slices():
  names = [name for _, _, name in mni_template.demo_pairs()]
  assert {name.split("_")[0] for name in names} == {"pet", "spect", "ct"}
  for name in names:
    _, plane, index = name.split("_")
    assert int(index) in mni_template.split_indices(plane)["validation"]


@pytest.mark.parametrize(
  ("arguments", "complaint"),
  [
    (("MRI", "axial", 90), "no simulation of MRI"),
    (("PET", "oblique", 90), "oblique plane"),
    (("PET", "axial", 5), "too little brain; choose 28 to 141"),
  ],
)
def test_wrong_arguments_are_named(arguments, complaint):
  with pytest.raises(UserError, match=complaint):
    mni_template.mni_pair(*arguments)


def test_missing_nilearn_is_named(monkeypatch):
  monkeypatch.setattr(mni_template.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install nilearn"):
    mni_template._template.__wrapped__()


def test_prepared_dataset_reads_without_tensorflow(tmp_path):
  pytest.importorskip("tensorflow")
  import tensorflow_datasets as tfds

  from dmfnet_jax.data.builders.mni_pairs import MniPairs

  builder = MniPairs(data_dir=str(tmp_path), file_format="array_record")
  config = tfds.download.DownloadConfig(max_examples_per_split=2)
  builder.download_and_prepare(download_config=config, file_format="array_record")
  assert set(builder.info.splits) == {"train", "validation"}
  printed = run_python(f"""
    import sys
    from importlib.machinery import PathFinder

    class Hiding(PathFinder):  # as if not installed; `sys.modules[...] = None` misleads TFDS
      @classmethod
      def find_spec(cls, name, path=None, target=None):
        return None if name == "tensorflow" else super().find_spec(name, path, target)

    sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
    import numpy as np
    import tensorflow_datasets as tfds
    from dmfnet_jax.data.builders import mni_template

    builder = tfds.builder_from_directory({str(builder.data_dir)!r})
    for split, source in builder.as_data_source().items():
      for example in (source[i] for i in range(len(source))):
        name = example["name"].decode()
        modality, plane, index = name.split("_")
        a, b, _ = mni_template.mni_pair(modality, plane, int(index))
        np.testing.assert_array_equal(example["a"], a[..., None])
        np.testing.assert_array_equal(example["b"], b)
        assert example["modality"].decode() == modality.upper()
        print(split, name)
    assert "tensorflow" not in sys.modules
  """)
  found = sorted(line.split()[0] for line in printed.splitlines())
  assert found == ["train", "train", "validation", "validation"]


def test_documented_number_of_examples():
  from dmfnet_jax.data.builders import mni_pairs

  totals = {"train": 0, "validation": 0}
  for split in totals:
    counts = [len(mni_template.split_indices(plane)[split]) for plane in mni_template.PLANES]
    totals[split] = 3 * sum(counts)
    row = f"| {split} | " + " | ".join(map(str, [*counts, sum(counts), totals[split]])) + " |"
    assert row in mni_pairs.__doc__
