"""What belongs to the process."""

import ctypes
import platform

import pytest

from dmfnet_jax import backend


class Libc:
  """Stands for the C library, and notes what it is told."""

  def __init__(self):
    self.told = []

  def mallopt(self, parameter, value):
    self.told.append((parameter, value))
    return 1


@pytest.fixture
def libc(monkeypatch):
  found = Libc()
  monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
  monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
  for name in ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX"):
    monkeypatch.delenv(name, raising=False)
  return found


def test_memory_is_kept_by_malloc(libc):
  """The numbers are those of malloc.h."""
  backend.keep_memory()
  assert dict(libc.told) == {-3: 2**30, -1: 2**31 - 1, -8: 1}


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_a_users_own_settings_of_malloc_win(libc, monkeypatch, name):
  monkeypatch.setenv(name, "1")
  backend.keep_memory()
  assert not libc.told


def test_another_libc_is_left_alone(libc, monkeypatch):
  monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
  backend.keep_memory()
  assert not libc.told
