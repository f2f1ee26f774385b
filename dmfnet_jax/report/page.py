"""The frame that both reports share: one HTML file that asks nothing of any network.

Style and scripts come from `assets/` and are put into the page, pictures are data URIs, and a
content security policy forbids everything else. Nothing in a page depends on the time or the
machine: the same input gives the same bytes.
"""

import base64
import html
import importlib.resources
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

import dmfnet_jax
from dmfnet_jax.io import finite_json

_POLICY = (
  "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
  "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def document(title: str, body: Iterable[str], *, data: Any, scripts: Sequence[str]) -> str:
  """Returns the HTML file's text.

  Args:
    title: plain text.
    body: pieces of HTML, escaped where they show text from outside.
    data: what the scripts (and other programs) read: JSON in the element `data`.
    scripts: names of files in `assets/`.
  """
  # "<" could end the script element or begin a comment.
  encoded = finite_json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
  return "".join(
    [
      '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
      f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n',
      '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
      '<meta name="color-scheme" content="light dark">\n',
      f'<meta name="generator" content="dmfnet_jax {dmfnet_jax.__version__}">\n',
      f"<title>{text(title)}</title>\n<style>\n{_asset('report.css')}</style>\n",
      # Without scripts nothing can be opened, so everything is shown.
      "<noscript><style>.detail[hidden] { display: table-row } .js { display: none }</style>"
      "</noscript>\n</head>\n<body>\n",
      *body,
      "<footer><p>RESEARCH USE ONLY, not for diagnosis. "
      f"Made by dmfnet_jax {dmfnet_jax.__version__}.</p></footer>\n",
      f'<script type="application/json" id="data">{encoded}</script>\n',
      *(f"<script>\n{_asset(name)}</script>\n" for name in scripts),
      "</body>\n</html>\n",
    ]
  )


def text(value: object) -> str:
  """Returns a value as HTML text that is safe in elements and in quoted attributes."""
  return html.escape(str(value), quote=True)


def number(value: float | None, digits: int = 4) -> str:
  """Formats a number for people: a real minus sign, an infinity sign, a dash for none."""
  if value is None or math.isnan(value):
    return "–"
  if math.isinf(value):
    return "∞" if value > 0 else "−∞"
  # Rounding first, lest a small negative number reads -0.0.
  return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def data_uri(image: np.ndarray, kind: str, **options: Any) -> str:
  """A picture, uint8 [H, W] or [H, W, 3], as a data URI; options are Pillow's for this kind."""
  encoded = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(encoded, kind, **options)
  return data_of(encoded.getvalue(), f"image/{kind}")


def data_of(content: bytes, kind: str) -> str:
  """A file's content as a data URI; the kind is its MIME type."""
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def webp(image: np.ndarray, *, lossless: bool = False, quality: int = 85) -> str:
  """The data URI of a picture as `data_uri` takes it; the quality, 0..100, is of the lossy kind."""
  options = {"lossless": True, "method": 3} if lossless else {"quality": quality}
  return data_uri(image, "webp", **options)


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
  """Returns a uint8 picture whose longer side is at most `longest`, by area averaging."""
  picture = Image.fromarray(image)
  picture.thumbnail((longest, longest), Image.Resampling.BOX, reducing_gap=None)
  return np.asarray(picture)


def _asset(name: str) -> str:
  return (importlib.resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")
