"""Fixtures of the tests that fuse files."""

from collections.abc import Iterator

import pytest
from fake_model import FakeModel, in_place


@pytest.fixture
def model() -> Iterator[FakeModel]:
  """Stands in for every model: `load_model("fake")` and "small" give it, other names nothing."""
  with in_place(FakeModel()) as fake:
    yield fake
