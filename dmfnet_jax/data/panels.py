"""Contact sheets: rows of pictures with titles, as one uint8 RGB array."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 4
_BACKGROUND = 24
_INK = 230


def panel(
  rows: Sequence[Sequence[np.ndarray]],
  *,
  column_titles: Sequence[str],
  row_titles: Sequence[str] | None = None,
) -> np.ndarray:
  """Draws a grid of pictures with titles above the columns and left of the rows.

  Args:
    rows: uint8 pictures, [H, W] or [H, W, 3]; sizes may differ (each sits centred in its cell).
    column_titles: one title a column.
    row_titles: one title a row.

  Returns:
    uint8 [height, width, 3].
  """
  font = ImageFont.load_default(16)
  cell_height = max(picture.shape[0] for row in rows for picture in row)
  cell_width = max(picture.shape[1] for row in rows for picture in row)
  top = 26
  left = 0
  if row_titles:
    left = int(max(font.getlength(title) for title in row_titles)) + 3 * _GAP
  width = left + len(column_titles) * (cell_width + _GAP) + _GAP
  height = top + len(rows) * (cell_height + _GAP)
  sheet = Image.new("RGB", (width, height), (_BACKGROUND,) * 3)
  draw = ImageDraw.Draw(sheet)
  ink = (_INK,) * 3
  for column, title in enumerate(column_titles):
    x = left + _GAP + column * (cell_width + _GAP) + cell_width // 2
    draw.text((x, top // 2), title, ink, font, anchor="mm")
  for index, row in enumerate(rows):
    y = top + index * (cell_height + _GAP)
    if row_titles:
      draw.text((2 * _GAP, y + cell_height // 2), row_titles[index], ink, font, anchor="lm")
    for column, picture in enumerate(row):
      x = left + _GAP + column * (cell_width + _GAP)
      offset = ((cell_width - picture.shape[1]) // 2, (cell_height - picture.shape[0]) // 2)
      sheet.paste(Image.fromarray(picture).convert("RGB"), (x + offset[0], y + offset[1]))
  return np.asarray(sheet)
