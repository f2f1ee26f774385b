"""A stand-in for the model: fuses in no time, in a way that shows how it was called."""

import contextlib
import os
import zlib

import numpy as np
import pytest

from dmfnet_jax import DEFAULT_MODEL
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.files import fuse_files
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.io import color
from dmfnet_jax.methods.method import Method


class FakeModel:
  """Takes the larger luma and keeps B's colour; records how it was called.

  Attributes:
    calls: what each call was given.
    memory: pixels of a picture that still fits.
    errors: what to raise instead, by the number of the call from 0 on.
    weights: stands for the parameters and the config.
    trained_on: kinds of pairs.
  """

  method = Method(defaults=dict, model=(), fuse=max, networks=(), is_random=True)

  def __init__(self):
    self.config = {"method": "fake"}
    self.calls: list[dict] = []
    self.memory = 10**9
    self.errors: dict[int, BaseException] = {}
    self.weights = "weights"
    self.trained_on: tuple[str, ...] = ()

  def fingerprint(self):
    return f"SHA-256 of {self.weights}"

  def padded_size(self, height, width):
    return -(-height // 4) * 4, -(-width // 4) * 4

  def batch_size(self, padded_size, batch_size=None):
    return batch_size or 1

  def tile_size(self, height, width, tile="auto"):
    """Pictures that do not fit the memory are "fused" in tiles of 4."""
    fits = height * width <= self.memory or tile == "off"
    return None if fits else 4

  def fuse(
    self,
    a,
    b,
    *,
    seed=0,
    names=None,
    samples=None,
    batch_size=None,
    on_done=None,
    tile="off",
    emphasis=None,
  ):
    """Arrays of pictures, or lists of pictures of one padded size."""
    assert all(x.dtype == np.uint8 for x in (*a, *b))
    assert [x.shape for x in a] == [x.shape[:2] for x in b]
    assert len({self.padded_size(*x.shape) for x in a}) == 1
    if len(self.calls) in self.errors:
      raise self.errors[len(self.calls)]
    if a[0].size > self.memory and tile == "off":
      raise UserError("a picture does not fit the memory")
    self.calls.append(
      {
        "shape": (len(a), *b[0].shape),  # of a list, the first one's
        "padded": self.padded_size(*a[0].shape),
        "names": list(names),
        "seed": seed,
        "samples": samples,
        "batch_size": batch_size,
        "tile": tile,
      }
    )
    # The name and the seed show in the result, as the noise would.
    marks = [zlib.crc32(f"{seed}/{name}".encode()) % 3 for name in names]
    lumas = [color.to_grey(x) for x in b]
    fused = [np.maximum(x, y) ^ np.uint8(m) for x, y, m in zip(a, lumas, marks, strict=True)]
    images = [
      new if x.ndim == 2 else color.replace_luma(x, new) for x, new in zip(b, fused, strict=True)
    ]
    images = np.stack(images) if isinstance(a, np.ndarray) else images
    deviations = [np.full(x.shape, (samples or 0) / 8, np.float32) for x in a]
    if on_done is not None:
      on_done(len(a))
    return images if samples is None else (images, deviations)


@contextlib.contextmanager
def in_place(model):
  """Puts a stand-in in every model's place: its names are "fake" and that of the default."""

  def load_model(name, **options):
    if name not in ("fake", DEFAULT_MODEL):
      raise UserError(f"{name}: no released model of this name")
    return model

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("dmfnet_jax.inference.model.load_model", load_model)
    yield model


def fuse(a, b, out, model="fake", **options):
  """`fuse_files` with the options as arguments."""
  return fuse_files(a, b, out, FuseOptions(model=model, **options))


def listing(folder):
  """Sorted names in a folder, but for the hidden record that every run into a folder leaves."""
  return sorted(name for name in os.listdir(folder) if name != ".dmfnet_fuse.json")
