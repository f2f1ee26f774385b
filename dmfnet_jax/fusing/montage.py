"""The montage of fused volumes: a few slices of the sources and the result, to be looked at."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dmfnet_jax.fusing.record import model_name
from dmfnet_jax.io import color, grids, panels

if TYPE_CHECKING:
  from dmfnet_jax.fusing.volume_results import FusedVolume

_ROWS = 6
_CELL = 256  # pixels: slices whose longer side has half of them or less are enlarged
_DARK = 0.1


def draw_montage(result: FusedVolume) -> np.ndarray:
  """Draws a few slices of the sources, the overlay if there is one, the result and its deviation.

  The slices are spread evenly over those that show something. Pixels are square, and small slices
  are enlarged by a whole number, without anything between the voxels. The letters say where the
  patient's sides are, by the affine: right and left, anterior and posterior, head and feet.

  Returns:
    uint8 [height, width, 3].
  """
  columns = {
    _title(letter, source.volume.modality): source.shown
    for letter, source in zip(string.ascii_uppercase, result.sources, strict=False)
  }
  columns |= {} if result.overlay is None else {"overlay": result.overlay}
  columns["fused"] = result.shown
  grey = np.arange(256, dtype=np.uint8)
  bars: list[panels.Bar | None] = [None] * len(columns)
  for i, source in enumerate(result.sources):
    if source.window is not None:
      is_last = i == len(result.sources) - 1
      table = result.table if is_last and result.table is not None else grey
      bars[i] = table[None], source.window.ends
  if result.std is not None:
    top = panels.deviation_top(result.std)
    overlaid = [
      panels.overlay_deviation(*plane, top) for plane in zip(result.luma, result.std, strict=True)
    ]
    columns[f"SD of {result.record['samples']} draws"] = np.stack(overlaid)
    ramp = np.linspace(0, top, 256)[None]
    bar = panels.overlay_deviation(np.zeros(ramp.shape, np.uint8), ramp, top)
    bars.append((bar, f"0 to {top:g} of 255 grey levels"))
  affine, plane = result.a.affine, result.plane
  stacks = [grids.to_pictures(data, affine, plane) for data in columns.values()]
  filled = choose_filled(*stacks[: len(result.sources)])
  # From the middle of equal parts: the outermost slices show little.
  count = min(_ROWS, filled.size)
  chosen = filled[((np.arange(count) + 0.5) * filled.size / count).astype(int)]
  height, width = stacks[0].shape[1:3]
  size, times = _cell_size(grids.square_size(grids.pixel_size(result.a, plane), height, width))
  letters = grids.edge_letters(result.a, plane) if result.a.placed else ("",) * 4
  rows = [[_cell(stack[i], size, letters) for stack in stacks] for i in chosen]
  drawn = f"{len(chosen)} of {len(stacks[0])} {plane} slices"
  if times > 1:
    drawn += f", enlarged {times} times (nearest neighbour)"
  heading = [
    f"model {model_name(result.record['model'])}, seed {result.record['seed']}",
    drawn,
    "RESEARCH USE ONLY, not for diagnosis",
  ]
  if not result.a.placed:
    heading.insert(2, "A's file does not say which side is which")
  return panels.panel(
    rows,
    column_titles=list(columns),
    row_titles=[_slice_title(result, i) for i in chosen],
    heading=heading,
    bars=bars,
  )


def _title(letter: str, modality: str) -> str:
  return f"{letter}: {modality}" if modality else letter


def choose_filled(*sources: np.ndarray) -> np.ndarray:
  """Returns the numbers of the slices of sources, [N, H, W] or [N, H, W, 3], that show something.

  That is at least a tenth of the light of the brightest slice.
  """
  light = np.array(
    [sum(color.to_grey(x).mean() for x in slices) for slices in zip(*sources, strict=True)]
  )
  return np.flatnonzero(light >= _DARK * light.max())


def _cell_size(square: tuple[float, float]) -> tuple[tuple[int, int], int]:
  """(width, height) of a slice on the sheet, and how often its pixels are repeated."""
  times = max(1, int(_CELL / max(square)))
  return (max(1, round(times * square[0])), max(1, round(times * square[1]))), times


def _cell(picture: np.ndarray, size: tuple[int, int], letters: tuple[str, ...]) -> np.ndarray:
  """A slice at its size, with the letters at its left, right, upper and lower edge."""
  image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
  image = image.resize(size, Image.Resampling.NEAREST)
  draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
  width, height = size
  places = (2, height / 2), (width - 2, height / 2), (width / 2, 2), (width / 2, height - 2)
  for letter, place, anchor in zip(letters, places, ("lm", "rm", "mt", "mb"), strict=True):
    draw.text(place, letter, "white", font, anchor, stroke_width=1, stroke_fill="black")
  return np.asarray(image)


def _slice_title(result: FusedVolume, index: int) -> str:
  """Where a slice lies: its middle along the nearest world axis, or its number."""
  if not result.a.placed:
    return str(index)
  axis = grids.PLANES.index(result.plane)
  middle = grids.slice_position(result.a, result.plane, index)[axis]
  return f"{'xyz'[axis]} {middle:.0f} mm"
