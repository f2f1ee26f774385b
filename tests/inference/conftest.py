"""Fixtures of the tests that fuse files."""

import pytest
from fake_model import FakeModel

from dmfnet_jax.errors import UserError


@pytest.fixture
def model(monkeypatch) -> FakeModel:
  """Stands in for every model: `load_model("fake")` and "small" give it, other names nothing."""
  fake = FakeModel()

  def load_model(spec, **options):
    if spec not in ("fake", "small"):
      raise UserError(f"{spec}: no released model of this name")
    return fake

  monkeypatch.setattr("dmfnet_jax.inference.model.load_model", load_model)
  return fake
