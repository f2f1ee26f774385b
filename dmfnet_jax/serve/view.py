"""What `dmfnet serve` shows: pieces of HTML, with the pictures inside them.

The slider needs no server: it sets one CSS variable, from -1 (A) over 0 (fused) to 1 (B), which the
opacity of the pictures laid over each other follows. In the other mode it runs from A alone to B
laid over A.
"""

import html

import numpy as np

from dmfnet_jax.io import color, panels
from dmfnet_jax.report.page import data_uri

CSS = """
.gradio-container { max-width: 1500px !important; }
.dmf figure { margin: 0; min-width: 0; }
.dmf figcaption { text-align: center; padding: .3rem 0; }
.dmf img { display: block; width: 100%; height: auto; background: #000; }
.dmf .note { color: var(--body-text-color); opacity: .75; }
.dmf .sources { display: grid; grid-template-columns: repeat(2, minmax(0, 400px)); gap: .8rem; }
.dmf .result { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1rem; }
.dmf .small { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; align-content: start; }
.dmf .blend { position: relative; }
.dmf .blend img { aspect-ratio: var(--aspect); image-rendering: auto; }
.dmf .blend img + img { position: absolute; inset: 0; height: 100%; }
.dmf .blend .over-a { opacity: clamp(0, -1 * var(--t, 0), 1); }
.dmf .blend .over-b { opacity: clamp(0, var(--t, 0), 1); }
.dmf .blend .layer { opacity: 0; background: none; }
.dmf[data-mode=overlay] .over-a { opacity: 1; }
.dmf[data-mode=overlay] .over-b { opacity: 0; }
.dmf[data-mode=overlay] .layer { opacity: calc(.5 + .5 * var(--t, 0)); }
.dmf .modes { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: 0 0 .6rem; }
.dmf .problem { border-left: 4px solid #d9622b; padding: .4rem .9rem; overflow-wrap: anywhere; }
.dmf label.slider { display: flex; gap: .8rem; align-items: center; margin: .6rem 0; }
.dmf label.slider input { flex: 1; accent-color: var(--color-accent); }
.dmf a.download {
  display: inline-block; padding: .45rem 1rem; border-radius: 6px; text-decoration: none;
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color);
  border: 1px solid var(--border-color-primary); margin: 0 .5rem .5rem 0;
}
@media (max-width: 900px) { .dmf .result { grid-template-columns: 1fr; } }
"""


def heading(title: str) -> str:
  """The page's head; `title` is plain text."""
  return (
    '<div class="dmf"><h1>Fuse two medical images</h1><p class="note">An MRI (A) with a CT, PET or '
    f"SPECT (B) of the same section, by {html.escape(title)}. The pictures stay on the machine "
    "that runs this page. RESEARCH USE ONLY, not for diagnosis.</p></div>"
  )


def sources(
  a: np.ndarray | None,
  b: np.ndarray | None,
  *,
  titles: tuple[str, str] = ("A", "B"),
  aspect: float = 0,
  note: str = "",
) -> str:
  """The two pictures before they are fused, uint8 [H, W] or [H, W, 3]; None for a missing one.

  Titles and note are plain text; for `aspect` see `result`.
  """
  shown = [(x, title) for x, title in zip((a, b), titles, strict=True) if x is not None]
  figures = [_figure(_png(x), title, aspect) for x, title in shown]
  if len(figures) < 2:
    note = (
      "Upload A and B, registered to each other: two pictures of one size (PNG, JPEG, TIFF, BMP, "
      "GIF, WebP), two NIfTI volumes, or two zip files with the files of a DICOM series each."
    )
  return f'<div class="dmf">{_note(note)}<div class="sources">{"".join(figures)}</div></div>'


def problem(message: str) -> str:
  """What is wrong, plain text, in place of the pictures."""
  return f'<div class="dmf"><p class="problem" role="alert">{html.escape(message)}</p></div>'


def result(
  a: np.ndarray,
  b: np.ndarray,
  fused: np.ndarray,
  *,
  name: str,
  deviation: np.ndarray | None = None,
  titles: tuple[str, str] = ("A", "B"),
  aspect: float = 0,
  note: str = "",
) -> str:
  """The fused picture beside its sources, with a slider that blends it into either.

  Another choice lays B over A, as `panels.overlay` does, at the slider's opacity.

  Args:
    a: uint8 [H, W].
    b: uint8 [H, W] or [H, W, 3].
    fused: uint8 [H, W] or [H, W, 3].
    name: of the pair, plain text: the downloads are NAME_fused.png and NAME_std.png.
    deviation: a picture of the deviation over the noise draws, uint8.
    titles: of A and B, plain text.
    aspect: width over height at which pictures are shown; 0: their own.
    note: what else is to be known, plain text.
  """
  uri_a, uri_b, uri_fused = _png(a), _png(b), _png(fused)
  colours, is_above = panels.layer(color.drop_neutral(b))
  uri_layer = _png(np.dstack([colours, np.where(is_above, 255, 0).astype(np.uint8)]))
  blended = (("fused", uri_fused), ("over-a", uri_a), ("over-b", uri_b), ("layer", uri_layer))
  stack = "".join(f'<img class="{kind}" src="{uri}" alt="">' for kind, uri in blended)
  set_mode = "this.closest('.dmf').dataset.mode = this.value"
  parts = [
    f'<div class="dmf" data-mode="blend" style="--aspect:{aspect or "auto"}"><div class="result">'
    f'<div><div class="blend" role="img" aria-label="the fused picture, or B over A">{stack}</div>'
    '<label class="slider"><span>A</span> <input type="range" min="-1" max="1" step="0.02" '
    'value="0" list="dmf-middle" aria-label="blend" oninput="this.closest(\'.dmf\')'
    ".querySelector('.blend').style.setProperty('--t', this.value)\"> <span>B</span></label>"
    '<datalist id="dmf-middle"><option value="0"></option></datalist><p class="modes">'
    f'<label><input type="radio" name="dmf-mode" value="blend" checked oninput="{set_mode}"> A, '
    "fused in the middle, B</label> "
    f'<label><input type="radio" name="dmf-mode" value="overlay" oninput="{set_mode}"> B over A, '
    f"not fused</label></p>{_note(note)}",
    _download(uri_fused, f"{name}_fused.png", "Download the fused picture"),
  ]
  figures = [_figure(uri_a, titles[0], aspect), _figure(uri_b, titles[1], aspect)]
  figures.append(_figure(uri_fused, "fused", aspect))
  if deviation is not None:
    uri_deviation = _png(deviation)
    parts.append(_download(uri_deviation, f"{name}_std.png", "Download the deviation"))
    figures.append(_figure(uri_deviation, "deviation over the noise draws"))
  parts.append(f'</div><div class="small">{"".join(figures)}</div></div></div>')
  return "".join(parts)


def _note(text: str) -> str:
  return f'<p class="note">{html.escape(text)}</p>' if text else ""


def _figure(uri: str, caption: str, aspect: float = 0) -> str:
  """A picture with its caption, plain text."""
  words = html.escape(caption)
  shape = f' style="aspect-ratio:{aspect:.4f}"' if aspect else ""
  return f'<figure><img src="{uri}" alt="{words}"{shape}><figcaption>{words}</figcaption></figure>'


def _download(uri: str, name: str, label: str) -> str:
  return f'<a class="download" href="{uri}" download="{html.escape(name)}">{label}</a>'


def _png(image: np.ndarray) -> str:
  """A picture as a data URI, without loss: what is downloaded is the result itself."""
  return data_uri(image, "png", compress_level=4)
