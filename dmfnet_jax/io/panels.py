"""Contact sheets and maps over pictures, as one uint8 RGB array."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dmfnet_jax.io import color, scaling

_GAP = 4
_BACKGROUND = 24
_INK = 230
_BAR = 10  # the height of a colour bar


Bar = tuple[np.ndarray, str]
"""A colour bar: the colours from low to high, uint8 [1, 256] or [1, 256, 3], and what they mean."""


def panel(
  rows: Sequence[Sequence[np.ndarray]],
  *,
  column_titles: Sequence[str],
  row_titles: Sequence[str] | None = None,
  heading: Sequence[str] = (),
  bars: Sequence[Bar | None] | None = None,
) -> np.ndarray:
  """Draws a grid of pictures with titles above the columns and left of the rows.

  Args:
    rows: uint8 pictures, [H, W] or [H, W, 3]; sizes may differ (each sits centred in its cell).
    column_titles: as many as there are columns.
    row_titles: as many as there are rows, or None.
    heading: lines above all.
    bars: a colour bar below each column that has one, or None.

  Returns:
    uint8 [height, width, 3].
  """
  font, small, ink = ImageFont.load_default(16), ImageFont.load_default(13), (_INK,) * 3
  cell_height = max(picture.shape[0] for row in rows for picture in row)
  cell_width = max(picture.shape[1] for row in rows for picture in row)
  captions = [bar[1] for bar in bars or () if bar is not None]
  texts = [font.getlength(title) for title in column_titles]
  texts += [small.getlength(caption) for caption in captions]
  cell_width = max(cell_width, int(max(texts)) + _GAP)
  line = 20
  above = len(heading) * line + 2 * _GAP if heading else 0
  top, left = above + 26, 0
  if row_titles:
    left = int(max(font.getlength(title) for title in row_titles)) + 3 * _GAP
  width = left + len(column_titles) * (cell_width + _GAP) + _GAP
  width = max(width, *(int(small.getlength(text)) + 4 * _GAP for text in heading), 0)
  below = top + len(rows) * (cell_height + _GAP)
  height = below + (_BAR + line + 2 * _GAP if captions else 0)
  sheet = Image.new("RGB", (width, height), (_BACKGROUND,) * 3)
  draw = ImageDraw.Draw(sheet)
  for index, text in enumerate(heading):
    draw.text((2 * _GAP, _GAP + (index + 0.5) * line), text, ink, small, anchor="lm")
  for column, title in enumerate(column_titles):
    x = left + _GAP + column * (cell_width + _GAP)
    draw.text((x + cell_width // 2, above + 13), title, ink, font, anchor="mm")
    if bars and (bar := bars[column]):
      strip = Image.fromarray(bar[0]).convert("RGB").resize((cell_width, _BAR))
      sheet.paste(strip, (x, below + _GAP))
      place = (x + cell_width // 2, below + _BAR + _GAP + line // 2)
      draw.text(place, bar[1], ink, small, anchor="mm")
  for index, row in enumerate(rows):
    y = top + index * (cell_height + _GAP)
    if row_titles:
      draw.text((2 * _GAP, y + cell_height // 2), row_titles[index], ink, font, anchor="lm")
    for column, picture in enumerate(row):
      x = left + _GAP + column * (cell_width + _GAP)
      down, right = (cell_height - picture.shape[0]) // 2, (cell_width - picture.shape[1]) // 2
      sheet.paste(Image.fromarray(picture).convert("RGB"), (x + right, y + down))
  return np.asarray(sheet)


def overlay(
  a: np.ndarray, b: np.ndarray, alpha: float, *, table: np.ndarray | None = None
) -> np.ndarray:
  """Lays B over A as viewers of volumes do, to compare a fused picture with.

  A is grey (of a coloured one the luma). Where B is above black, the result is
  (1 - alpha) A + alpha B, and elsewhere A alone.

  Args:
    a: uint8 [H, W] or [H, W, 3].
    b: uint8 of the same height and width, in colour, or grey: then through the colour map.
    alpha: B's opacity, 0 to 1.
    table: the colour map of a grey B, uint8 [256, 3]; by default `hot`.

  Returns:
    uint8 [H, W, 3].
  """
  b, is_above = layer(b, table=table)
  opacity = np.where(is_above, np.float32(alpha), np.float32(0))[..., None]
  return np.rint(color.to_grey(a)[..., None] * (1 - opacity) + b * opacity).astype(np.uint8)


def layer(b: np.ndarray, *, table: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
  """B's colours as `overlay` lays them over A, uint8 [H, W, 3]; where B is above black, [H, W]."""
  if b.ndim == 3:
    return b, b.max(axis=-1) > 0
  colours = scaling.apply_lut(b, scaling.read_lut("hot") if table is None else table)
  return colours, b > 0


def deviation_map(fused: np.ndarray, std: np.ndarray, *, samples: int) -> np.ndarray:
  """Draws a deviation over the fused picture, with its scale below.

  The picture is shown in grey at half its brightness, the deviation in the colours of `hot`, the
  more opaque the larger it is. The scale ends at `deviation_top`.

  Args:
    fused: uint8 [H, W] or [H, W, 3].
    std: [H, W], in grey levels 0..255.
    samples: the number of draws, for the legend.

  Returns:
    uint8 [H + 34, at least W, 3].
  """
  top = deviation_top(std)
  picture = overlay_deviation(fused, std, top)
  font = ImageFont.load_default(12)
  legend = f"SD of {samples} draws: 0 to {top:g} of 255 grey levels"
  width = max(picture.shape[1], int(font.getlength(legend)) + 2 * _GAP)
  sheet = Image.new("RGB", (width, picture.shape[0] + 34), (_BACKGROUND,) * 3)
  sheet.paste(Image.fromarray(picture), ((width - picture.shape[1]) // 2, 0))
  ramp = np.broadcast_to(np.linspace(0, top, width - 2 * _GAP), (10, width - 2 * _GAP))
  bar = overlay_deviation(np.zeros(ramp.shape, np.uint8), ramp, top)
  sheet.paste(Image.fromarray(bar), (_GAP, picture.shape[0] + _GAP))
  place = (width // 2, picture.shape[0] + 24)
  ImageDraw.Draw(sheet).text(place, legend, (_INK,) * 3, font, anchor="mm")
  return np.asarray(sheet)


def deviation_top(std: np.ndarray) -> float:
  """Where the scale of a deviation map ends: its 99.5th percentile, rounded up to 1, 2 or 5."""
  high = float(np.percentile(std, 99.5))
  steps = [step * 10.0**power for power in range(-2, 3) for step in (1, 2, 5)]
  return next((step for step in steps if step >= high), steps[-1])


def overlay_deviation(fused: np.ndarray, std: np.ndarray, top: float) -> np.ndarray:
  """Lays a deviation over a picture: uint8 [H, W, 3]; see `deviation_map`."""
  grey = color.to_grey(fused).astype(np.float32)[..., None] / 2
  part = np.clip(np.asarray(std, np.float32) / top, 0, 1)
  colours = scaling.apply_lut(np.rint(part * 255).astype(np.uint8), scaling.read_lut("hot"))
  opacity = part[..., None]
  return np.rint(grey * (1 - opacity) + colours * opacity).astype(np.uint8)
