"""From measured values to pictures, through a window and a colour map.

A window (lo, hi), see `windows`, maps lo and all below to 0, hi and all above to 255, linearly
between, rounded. That is a pure function of the values and the window, so a window that was printed
and stored gives the same bytes again. What is not a number (NaN) counts as no signal and becomes 0.

Colour maps are uint8 [256, 3], red first. Those of `LUT_NAMES` are linear between knots: DICOM's
Hot Iron and PET palettes (PS3.6 annex B.1; the same but for rounding) and the usual rainbow,
`spectrum`. Others are DICOM's own (by pydicom), matplotlib's, and files of other programs.
The network sees the luma of the coloured picture. Of the three only `hot` grows in luma all the
way; the other two turn back on themselves, as rainbows do.
"""

import numpy as np
from PIL import ImageColor

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths
from dmfnet_jax.io.windows import Window

# Positions of 0..255 and colours.
_KNOTS = {
  "hot": {0: "#000000", 128: "#ff0000", 192: "#ff8000", 255: "#ffffff"},
  "pet": {0: "#000000", 64: "#008080", 128: "#8000ff", 192: "#ff8000", 255: "#ffffff"},
  "spectrum": {
    0: "#000000",
    43: "#0000ff",
    85: "#00ffff",
    128: "#00ff00",
    170: "#ffff00",
    213: "#ff0000",
    255: "#ffffff",
  },
}
LUT_NAMES = tuple(_KNOTS)
# PS3.6 annex B; pydicom warns where they are asked for by name.
_DICOM_UIDS = {
  "HOT_IRON": "1.2.840.10008.1.5.1",
  "PET": "1.2.840.10008.1.5.2",
  "HOT_METAL_BLUE": "1.2.840.10008.1.5.3",
  "PET_20_STEP": "1.2.840.10008.1.5.4",
}
_REVERSED = "_r"

_MAX_LUT_BYTES = 1 << 20  # a table of 256 lines has some thousand


def to_uint8(data: np.ndarray, window: Window) -> np.ndarray:
  """Maps values [N, ...] of any real dtype through a window (lo, hi), lo < hi, to uint8.

  NaN becomes 0, infinities the ends.
  """
  low, high = window
  result = np.empty(data.shape, np.uint8)
  for i, part in enumerate(data):  # a plane at a time: a volume in float64 would be large
    # Halves first: the distance between two huge ends may overflow.
    scaled = (part.astype(np.float64) / 2 - low / 2) / (high / 2 - low / 2)
    result[i] = np.rint(np.nan_to_num(np.clip(scaled, 0, 1) * 255, nan=0.0))
  return result


def read_lut(name: str) -> np.ndarray:
  """Returns a colour map by its name, or from a file.

  A name is one of `LUT_NAMES`; or one of DICOM's, HOT_IRON, PET, HOT_METAL_BLUE and PET_20_STEP, in
  any case and with any of " ", "-" and "_" (but pet in small letters is that of `LUT_NAMES`); or
  one of matplotlib's (but for hot). With _r behind it the map is reversed.

  A file holds either text, one colour a line (three numbers, 0..255, or 0..1 where none is larger
  than 1, between spaces or commas; a fourth in front is taken for the line's number; headings and
  lines that begin with # are passed over; any number of lines from two, spread evenly), or the 768
  bytes of ImageJ: 256 of red, of green, of blue. So do FSLeyes' .cmap files. In 3D Slicer's .ctbl
  files a line is a number, which says where in the map its colour stands, a name, and red, green,
  blue and alpha of 0..255; the alpha is dropped.

  Returns:
    uint8 [256, 3].

  Raises:
    UserError: no such name or file, or not a table of colours.
  """
  base = name.removesuffix(_REVERSED)
  table = _named(base)
  if table is not None:
    return table if base == name else table[::-1].copy()
  try:
    path = paths.as_path(name)
    if path.is_file() and path.stat().st_size > _MAX_LUT_BYTES:
      raise UserError(f"{name}: too large for a colour map")
    data = path.read_bytes()
  except OSError:
    listed = [", ".join(names) for names in (LUT_NAMES, _DICOM_UIDS, _matplotlib_names())]
    raise UserError(
      f"{name}: no colour map of this name and no readable file: give a table, or {listed[0]}, "
      f"DICOM's {listed[1]}, or matplotlib's {listed[2]} (each also reversed: NAME{_REVERSED})"
    ) from None
  if len(data) == 3 * 256:
    return np.frombuffer(data, np.uint8).reshape(3, 256).T.copy()
  if path.suffix.lower() == ".ctbl":
    return _spread(*_parse_ctbl(name, data))
  colours = _parse_colours(name, data)
  if colours.max() <= 1:
    colours *= 255
  return _spread(np.linspace(0, 255, len(colours)), colours)


def apply_lut(grey: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Colours uint8 [...] with a map, uint8 [256, 3]: uint8 [..., 3]."""
  return table[grey]


def _spread(positions: np.ndarray, colours: np.ndarray) -> np.ndarray:
  """Interpolates colours [N, 3] at positions [N] of 0..255 to uint8 [256, 3]."""
  channels = [np.interp(np.arange(256), positions, channel) for channel in colours.T]
  return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _named(name: str) -> np.ndarray | None:
  """A colour map by its name, or None where there is none of it."""
  if name in _KNOTS:
    colours = np.array([ImageColor.getrgb(colour) for colour in _KNOTS[name].values()])
    return _spread(np.array(list(_KNOTS[name])), colours)
  palette = name.upper().replace(" ", "_").replace("-", "_")
  if palette in _DICOM_UIDS:
    from pydicom.pixels import apply_color_lut

    return apply_color_lut(np.arange(256, dtype=np.uint8), palette=_DICOM_UIDS[palette])
  if name in _matplotlib_names():
    from matplotlib import colormaps

    colours = colormaps[name](np.linspace(0, 1, 256))[:, :3]
    return np.rint(colours * 255).astype(np.uint8)
  return None


def _matplotlib_names() -> list[str]:
  """Its colour maps' names, without the reversed ones and those that are ours; loads it."""
  from matplotlib import colormaps

  names = (x for x in colormaps if not x.endswith(_REVERSED) and x not in _KNOTS)
  return sorted(names, key=str.lower)


def _parse_ctbl(name: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
  """Reads a table of 3D Slicer: positions [N] within 0..255 and colours [N, 3]."""
  rows: dict[int, list[int]] = {}
  for number_of_line, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
    if not line.strip() or line.lstrip().startswith("#"):
      continue
    fields = line.split()  # the name in the middle may hold spaces
    try:
      index, *colour = (int(field) for field in (fields[0], *fields[2:][-4:]))
    except ValueError:
      colour = []
    if len(colour) != 4 or not all(0 <= value <= 255 for value in colour):
      raise UserError(f"{name}: line {number_of_line} is not: number, name, and RGBA of 0 to 255")
    rows[index] = colour[:3]
  if len(rows) < 2:
    raise UserError(f"{name}: not a colour map: fewer than two lines of colours")
  indices = np.array(sorted(rows))
  positions = (indices - indices[0]) * 255 / (indices[-1] - indices[0])
  return positions, np.array([rows[i] for i in indices])


def _parse_colours(name: str, data: bytes) -> np.ndarray:
  """Reads a table's text: float64 [N, 3] within 0..255."""
  rows: list[list[float]] = []
  for number_of_line, line in enumerate(data.decode("latin-1").splitlines(), start=1):
    fields = line.partition("#")[0].replace(",", " ").replace(";", " ").split()
    try:
      values = [float(field) for field in fields]
    except ValueError:
      if rows:
        raise UserError(f"{name}: line {number_of_line} holds no colour") from None
      continue  # a heading
    if not values:
      continue
    if len(values) not in (3, 4) or not all(0 <= value <= 255 for value in values[-3:]):
      raise UserError(f"{name}: line {number_of_line} is not three numbers from 0 to 255")
    rows.append(values[-3:])
  if len(rows) < 2:
    raise UserError(f"{name}: not a colour map: fewer than two lines of three numbers")
  return np.array(rows, np.float64)
