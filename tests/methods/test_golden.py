"""Every method computes what its published program computed, by `golden_check.py`."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parents[1]
FILES = {
  "dmfnet": ("unet", "fusion", "losses", "sampler", "schedules"),
  "adafuse": ("adafuse",),
  "cddfuse": ("cddfuse",),
  "coconet": ("coconet",),
  "deform3d": ("deform3d",),
  "dfvo": ("dfvo",),
  "ddfm": ("ddfm",),
  "emma": ("emma",),
  "tfsdiff": ("tfsdiff",),
  "tformer": ("tformer",),
  "hinet": ("hinet",),
  "waveae": ("waveae",),
}
CHECKS = [(name, file) for name, files in FILES.items() for file in files]


def run(name, file, *options):
  """In a process of its own, and compiled as users' programs are."""
  done = subprocess.run(
    [sys.executable, str(TESTS / "methods" / "golden_check.py"), name, str(file), *options],
    env=os.environ | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), CHECKS)
def test_goldens_are_met(name, file):
  path = TESTS / "golden" / f"{file}.npz"
  code, output, errors = run(name, path)
  with np.load(path) as arrays:
    count = len(arrays.files)
  assert output.splitlines()[-1].startswith(f"{name}: compared {count} of {count} arrays"), errors
  assert code == 0, output


def test_other_weights_do_not_meet_them():
  code, output, _ = run("dmfnet", TESTS / "golden" / "unet.npz", "--prefix", "other.")
  assert code == 1
  assert "TOO FAR" in output


def test_an_array_that_nobody_computes_fails(tmp_path):
  with np.load(TESTS / "golden" / "losses.npz") as arrays:
    np.savez(tmp_path / "more.npz", **arrays, unknown=np.zeros(3))
  code, output, _ = run("dmfnet", tmp_path / "more.npz")
  assert code == 1
  assert "unknown" in output
  assert output.splitlines()[-1].startswith("dmfnet: compared 21 of 22 arrays")
