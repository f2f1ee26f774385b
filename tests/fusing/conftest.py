"""Fixtures of the tests that fuse files."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def model() -> Iterator[Any]:
  """Stands in for every model: "fake" and the default's name give it, other names nothing."""
  # Not above: JAX comes with it, and must not before `pytest_configure` has set it up.
  from fake_model import FakeModel, in_place

  with in_place(FakeModel()) as fake:
    yield fake
