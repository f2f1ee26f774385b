"""Figures for notebooks, by matplotlib.

    fused = model.fuse(mri, pet)
    dmfnet_jax.plot.panel(mri, pet, fused)

Matplotlib is imported by the first figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import color, panels, pictures

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def panel(
  a: Any, b: Any, fused: Any, *, title: str | None = None, overlay: float | None = None
) -> Figure:
  """Draws a pair and its fused picture: A | B | overlay | fused | difference.

  The difference is that of `difference`: blue where fusion lost brightness, red where it added
  some, white where it kept the brighter source.

  Args:
    a: [H, W] or [H, W, 3]: uint8, or float in [-1, 1]; of a and b one in floats without any
      negative value is refused, as by `Model.fuse`.
    b: of the same height and width.
    fused: of the same height and width, such as `model.fuse` returns.
    title: over the figure.
    overlay: the opacity, 0 to 1, at which B is laid over A, see `io.panels.overlay`; without it
      the figure has no such column.

  Returns:
    The figure. It is not registered with pyplot, so a notebook shows it once and nothing has to be
    closed; `figure.savefig("panel.png")` writes it.

  Raises:
    UserError: matplotlib is not installed, the pictures do not fit together, or the opacity is out
      of range.
  """
  pictures = [_to_uint8(name, x) for name, x in (("a", a), ("b", b), ("fused", fused))]
  sizes = [picture.shape[:2] for picture in pictures]
  if len(set(sizes)) > 1:
    raise UserError(f"a, b and fused must be of one height and width, got {sizes}")
  if overlay is not None and not 0 <= overlay <= 1:
    raise UserError(f"overlay is an opacity, 0 to 1, got {overlay}")
  try:
    from matplotlib import pyplot
  except ImportError as error:
    raise UserError("figures need matplotlib: pip install matplotlib") from error

  shown = dict(zip(("A", "B", "fused"), pictures, strict=True))
  if overlay is not None:
    laid = panels.overlay(pictures[0], color.drop_neutral(pictures[1]), overlay)
    shown = {"A": shown["A"], "B": shown["B"], "overlay": laid, "fused": shown["fused"]}
  height, width = sizes[0]
  # The room beside the pictures holds the titles and the colour bar.
  figure, axes = pyplot.subplots(
    1,
    len(shown) + 1,
    figsize=(1.2 + 3.0 * (len(shown) + 1), max(1.5, 3.0 * height / width) + 0.6),
    layout="constrained",
  )
  pyplot.close(figure)  # else a notebook would show it twice, and pyplot keep it for ever
  for axis, (name, picture) in zip(axes, shown.items(), strict=False):
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_title(name)
  change = difference(*pictures)
  limit = max(1, int(np.abs(change).max()))
  drawn = axes[-1].imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
  axes[-1].set_title("fused − max(A, B)")
  figure.colorbar(drawn, ax=axes[-1], shrink=0.8, label="grey levels")
  for axis in axes:
    axis.set_axis_off()
  if title is not None:
    # Names are shown as they are: a "$" is no formula.
    figure.suptitle(title, parse_math=False)
  return figure


def difference(a: np.ndarray, b: np.ndarray, fused: np.ndarray) -> np.ndarray:
  """Returns the luma of the fused picture minus the larger of the sources' lumas.

  The pictures are uint8, [H, W] or [H, W, 3]; the result is int16 [H, W], -255..255.
  """
  luma_a, luma_b, luma_fused = (color.to_grey(x).astype(np.int16) for x in (a, b, fused))
  return luma_fused - np.maximum(luma_a, luma_b)


def _to_uint8(name: str, picture: Any) -> np.ndarray:
  picture = np.asarray(picture)
  if picture.shape[2:] not in ((), (3,)) or picture.ndim < 2 or 0 in picture.shape:
    raise UserError(f"{name} must be one picture, [H, W] or [H, W, 3], got {picture.shape}")
  if picture.dtype == np.uint8:
    return picture
  # Tolerates rounding; anything else is a picture in another range, such as 0..255 floats.
  top = 1 + pictures.ROUNDING
  if not (np.issubdtype(picture.dtype, np.floating) and np.all(np.abs(picture) <= top)):
    raise UserError(f"{name} must be uint8 or float in [-1, 1], got {picture.dtype}")
  if name != "fused":  # which may be brighter than its sources everywhere
    pictures.check_signed(name, float(picture.min()))
  return pictures.from_float(picture)
