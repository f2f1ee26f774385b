"""The pictures of a report: read, reduced and encoded."""

import concurrent.futures
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.measure import OVERLAY
from dmfnet_jax.io import color, panels, pictures
from dmfnet_jax.report.page import shrink, webp

MAX_SIDE = 512
"""Pictures with a longer side are reduced to it."""

VIEWS = {"a": "A", "b": "B", "overlay": "overlay", "fused": "fused"}
"""Those that are stored; the page computes others from them."""

LOSSLESS_PIXELS = 24_000_000
"""Of all pictures of a page together: about 20 MB. From there on they are compressed with loss."""

_STRIP_SIDE = 56


class Shown(NamedTuple):
  """What a page shows of one pair, or of one slice."""

  strip: str  # a thumbnail of A, B and fused side by side
  views: dict[str, str]  # data URIs of `VIEWS`
  note: str  # their size, and what was changed
  lossless: bool


def read_shown(pairs: Mapping[str, Pair], shown: Sequence[tuple[str, str]]) -> list[Shown]:
  """Reads and encodes pairs, of which the second word is a slice or "", in their order.

  Volumes are read once each.
  """
  wanted: dict[str, list[str]] = {}
  for name, one in shown:
    wanted.setdefault(name, []).append(one)
  found: dict[tuple[str, str], Shown] = {}

  def read_picture(name: str) -> None:
    pair = pairs[name]
    a, b, fused = (pictures.read_image(path) for path in (pair.a, pair.b, pair.out))
    written = pair.out_overlay
    laid = pictures.read_image(written) if written.exists() else _lay(a, b)
    found[name, ""] = _encode(a, b, fused, laid, len(shown))

  of_pictures = [name for name in wanted if not pairs[name].is_volume]
  with concurrent.futures.ThreadPoolExecutor(thread_name_prefix="pictures") as pool:
    for _ in pool.map(read_picture, of_pictures):
      pass
  for name in wanted:
    if not pairs[name].is_volume:
      continue
    from dmfnet_jax.fusing.slices import read_slices  # its libraries take half a second
    from dmfnet_jax.io import grids

    slices = read_slices(pairs[name], tell=lambda note: None)  # measuring has told it
    width, height = grids.square_size(slices.pixel, *slices.a.shape[1:])
    for one in wanted[name]:
      i = slices.names.index(one)
      a, b, fused = slices.a[i], slices.b[i], slices.fused[i]
      coloured = color.replace_luma(b, fused) if b.ndim == 3 else fused
      size = round(width), round(height)
      a, b, fused, laid = (_resize(x, size) for x in (a, b, coloured, _lay(a, b)))
      found[name, one] = _encode(a, b, fused, laid, len(shown), note=slices.note)
  return [found[place] for place in shown]


def _lay(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return panels.overlay(a, color.drop_neutral(b), OVERLAY)


def _resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  image = Image.fromarray(np.ascontiguousarray(picture))
  return np.asarray(image.resize(size, Image.Resampling.NEAREST))


def _encode(
  a: np.ndarray, b: np.ndarray, fused: np.ndarray, laid: np.ndarray, count: int, note: str = ""
) -> Shown:
  """Encodes one of `count` that are shown: A, B, what they were fused to, and B over A."""
  height, width = a.shape[:2]
  small = [shrink(picture, MAX_SIDE) for picture in (a, b, fused)]
  stored = dict(zip(("a", "b", "fused"), small, strict=True)) | {"overlay": shrink(laid, MAX_SIDE)}
  lossless = (
    count * sum(math.prod(picture.shape[:2]) for picture in stored.values()) <= LOSSLESS_PIXELS
  )
  coloured = [picture if picture.ndim == 3 else np.dstack([picture] * 3) for picture in small]
  strip = np.concatenate([shrink(picture, _STRIP_SIDE) for picture in coloured], axis=1)
  views = {view: webp(stored[view], lossless=lossless) for view in VIEWS}
  size = f"{width} × {height} pixels"
  if max(width, height) > MAX_SIDE:
    size += f", reduced to {MAX_SIDE} here"
  if not lossless:
    size += ", compressed with loss"
  return Shown(webp(strip, quality=70), views, f"{size}; {note}" if note else size, lossless)
