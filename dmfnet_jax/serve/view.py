"""What `dmfnet serve` shows: pieces of HTML, with the pictures inside them.

The blend slider needs no server: it sets one CSS variable, from -1 (A) over 0 (fused) to 1 (B),
which the opacity of the pictures laid over each other follows.
"""

import html

import numpy as np

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
.dmf .blend img + img { position: absolute; inset: 0; height: 100%; }
.dmf .blend .over-a { opacity: clamp(0, -1 * var(--t, 0), 1); }
.dmf .blend .over-b { opacity: clamp(0, var(--t, 0), 1); }
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


def sources(a: np.ndarray | None, b: np.ndarray | None) -> str:
  """The two pictures before they are fused, uint8 [H, W] or [H, W, 3]; None for a missing one."""
  figures = [_figure(_png(x), name) for x, name in ((a, "A"), (b, "B")) if x is not None]
  note = ""
  if len(figures) < 2:
    note = (
      '<p class="note">Upload A and B: two pictures of one size, registered to each other. PNG, '
      "JPEG, TIFF or BMP.</p>"
    )
  return f'<div class="dmf">{note}<div class="sources">{"".join(figures)}</div></div>'


def result(
  a: np.ndarray, b: np.ndarray, fused: np.ndarray, *, name: str, deviation: np.ndarray | None = None
) -> str:
  """The fused picture beside its sources, with a slider that blends it into either.

  All are uint8, A [H, W], the others [H, W] or [H, W, 3]; `deviation` is a picture of the deviation
  over the noise draws. The downloads are named after the pair's name, plain text.
  """
  uri_a, uri_b, uri_fused = _png(a), _png(b), _png(fused)
  parts = [
    '<div class="dmf"><div class="result"><div><div class="blend" role="img" '
    f'aria-label="the fused picture, blended with A or B"><img class="fused" src="{uri_fused}" '
    f'alt=""><img class="over-a" src="{uri_a}" alt=""><img class="over-b" src="{uri_b}" alt="">'
    '</div><label class="slider">A <input type="range" min="-1" max="1" step="0.02" value="0" '
    'list="dmf-middle" aria-label="blend: A, fused, B" oninput="this.closest(\'.dmf\')'
    ".querySelector('.blend').style.setProperty('--t', this.value)\"> B</label>"
    '<datalist id="dmf-middle"><option value="0"></option></datalist>'
    '<p class="note">In the middle of the slider stands the fused picture alone.</p>',
    _download(uri_fused, f"{name}.png", "Download the fused picture"),
  ]
  figures = [_figure(uri_a, "A"), _figure(uri_b, "B"), _figure(uri_fused, "fused")]
  if deviation is not None:
    uri_deviation = _png(deviation)
    parts.append(_download(uri_deviation, f"{name}_std.png", "Download the deviation"))
    figures.append(_figure(uri_deviation, "deviation over the noise draws"))
  parts.append(f'</div><div class="small">{"".join(figures)}</div></div></div>')
  return "".join(parts)


def _figure(uri: str, caption: str) -> str:
  return f'<figure><img src="{uri}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _download(uri: str, name: str, label: str) -> str:
  return f'<a class="download" href="{uri}" download="{html.escape(name)}">{label}</a>'


def _png(image: np.ndarray) -> str:
  """A picture as a data URI, without loss: what is downloaded is the result itself."""
  return data_uri(image, "png", compress_level=4)
