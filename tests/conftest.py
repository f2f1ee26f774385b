"""Fixtures that several test files share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
  """The material beside the checkout (real atlas pairs); tests that need it skip without it."""
  folder = ROOT.parent / "shared"
  if not folder.is_dir():
    pytest.skip("no shared/ beside the checkout: real atlas pairs are not redistributed")
  return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
  """Small arrays computed by the published program."""
  return ROOT / "tests" / "golden"
