"""Windows: what is read from words, the defaults by modality, what is refused."""

from pathlib import Path

import numpy as np
import pytest

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import modalities, windows


@pytest.mark.parametrize(
  ("text", "window"),
  [
    ("0,100", (0, 100)),
    ("-160,240", (-160, 240)),
    (" 1.5e3 , 2e3 ", (1500, 2000)),
    ("auto", "auto"),
    (" AUTO", "auto"),
    ("W80L40", (0, 80)),
    ("w1500 l-600", (-1350, 150)),
  ],
)
def test_windows_are_parsed(text, window):
  assert windows.parse_window(text) == window


@pytest.mark.parametrize(
  "text",
  [
    *("", "1", "1,2,3", "a,b", "2,1", "1,1", "nan,1", "0,inf", "-inf,0", "1;2"),
    *("W0L40", "W80", "L40", "brains", "suv:", "suv:7", "suv:7,0", "9%,1%", "0%,101%", "%,1"),
  ],
)
def test_what_is_no_window_is_refused(text):
  with pytest.raises(UserError, match=r"^window "):
    windows.parse_window(text)


def test_percentiles_leave_out_zeros_and_what_is_not_finite():
  signal = np.arange(1, 1001, dtype=np.float32)
  data = np.concatenate([np.zeros(5000), signal, [np.nan, np.inf, -np.inf]])
  expected = np.percentile(signal, [0.5, 99.5])
  np.testing.assert_allclose(windows.percentile_window(data), expected, rtol=1e-5)


def test_percentiles_are_what_is_printed():
  data = np.random.default_rng(0).gamma(2, 300, (20, 20, 20)).astype(np.float32)
  window = windows.percentile_window(data)
  assert windows.parse_window(",".join(map(windows.number, window))) == window
  low, high = windows.describe(window).split(" to ")
  assert (float(low), float(high)) == window


@pytest.mark.parametrize("value", [0.1, -1e-300, 1e300, 3, -2.0, 1e15, 1 / 3])
def test_numbers_read_back_the_same(value):
  assert float(windows.number(value)) == value


def test_a_mask_takes_its_whole_range():
  mask = np.zeros((4, 4))
  mask[1, 1] = 7
  assert windows.percentile_window(mask) == (0, 7)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (np.zeros((2, 2)), "every value is 0"),
    (np.full((2, 2), -3.5), "every value is -3.5"),
    (np.full((2, 2), np.nan), "no finite value"),
    (np.zeros((0, 2)), "no finite value"),
  ],
)
def test_nothing_to_see(data, message):
  with pytest.raises(UserError, match=message):
    windows.percentile_window(data)


VALUES = np.arange(1001, dtype=np.float32)  # of which 0 counts for no percentile


@pytest.mark.parametrize(
  ("text", "unit", "window", "above"),
  [
    ("brain", "HU", (0, 80), 920),
    ("Bone", "HU", (-500, 1300), 0),
    ("lung", "", (-1350, 150), 850),  # of NIfTI nobody knows the unit
    ("suv:0,7", "SUV", (0, 7), 993),
    ("0%,99%", "BQML", (1, 990.01), 10),
    ("0,50%", "HU", (0, 500.5), 500),
  ],
)
def test_windows_in_words(text, unit, window, above):
  used = windows.choose_window(VALUES, "x", windows.parse_window(text), unit=unit)
  assert used.window == pytest.approx(window)
  assert used.above == above
  assert used.origin == text.lower()
  assert used.unit == (unit or "HU")


@pytest.mark.parametrize(
  ("text", "unit", "message"),
  [
    ("suv:0,7", "BQML", "x: window suv:0,7 is for values in SUV, and these are in BQML"),
    ("brain", "SUV", "x: window brain is for values in HU"),
    ("2000,99%", "", "x: window 2000,99%: of these values that is 2000 to 990.01"),
  ],
)
def test_a_window_that_does_not_fit_the_values(text, unit, message):
  with pytest.raises(UserError, match=message):
    windows.choose_window(VALUES, "x", windows.parse_window(text), unit=unit)


@pytest.mark.parametrize("modality", ["PET", "SPECT", "NM"])
def test_activity_begins_at_zero_and_reaches_the_brightest_spot(modality):
  """A lesion of ten voxels in a million is above the percentile, and must not be as white as it."""
  data = np.random.default_rng(0).gamma(2, 1, (100, 100, 100)).astype(np.float32)
  data[50, 50, :10] = np.linspace(40, 51.98765, 10)
  used = windows.choose_window(data, "x", modality=modality, unit="SUV")
  assert (used.window[0], used.above) == (0, 0)
  assert used.window[1] == pytest.approx(51.98765, rel=1e-5)
  assert windows.choose_window(data, "x").above > 1000
  assert windows.choose_window(data, "x", of_file=(0, 30), modality=modality).above == 10
  with pytest.raises(UserError, match="x: holds no value above 0"):
    windows.choose_window(-data, "x", modality=modality)


@pytest.mark.parametrize(
  ("path", "modality"),
  [
    ("sub-01/anat/sub-01_T1w.nii.gz", "T1w"),
    ("sub-01_space-T1w_pet.nii.gz", "PET"),
    ("ct.nii", "CT"),
    ("BraTS_001_t1ce.nii.gz", "T1ce"),
    ("pet/case 7.nii.gz", "PET"),
    ("pet_to_t1.nii.gz", ""),
    ("pt_01.nii", ""),
    ("trans-pet/01.nii", ""),
  ],
)
def test_names_tell_the_modality(path, modality):
  assert modalities.of_name(Path(path)) == modality


def test_tags_tell_the_modality():
  assert [modalities.of_code(code) for code in ("PT", "MR", "CT", "NM", "")] == [
    *("PET", "MRI", "CT", "NM", "")
  ]
  assert modalities.of_code("NM", "DERIVED\\PRIMARY\\RECON TOMO") == "SPECT"
