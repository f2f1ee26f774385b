"""The page of `dmfnet serve`: what is on it, and what it does with what is sent to it."""

import html
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import color, panels, paths, pictures, scaling
from dmfnet_jax.serve import view as view_lib

MAX_PIXELS = 1024 * 1024
"""Of a picture that is fused here; the command line takes larger ones."""

MAX_SAMPLES = 16
_MAX_SEED = 2**32 - 1
_MAX_WAITING = 16  # people in the queue; one picture is fused at a time
_KEEP_SECONDS = 3600  # of uploads
_OWN = "your own files"
_NO_LUT = "grey"

Sources = tuple[np.ndarray, np.ndarray]


def build_page(model: Any, samples: Mapping[str, Sources], *, title: str) -> Any:
  """Builds the page: a `gradio.Blocks`, to be given to `launch`.

  Args:
    model: has `fuse` as `Model`.
    samples: pairs to pick by their name: A, uint8 [H, W], and B, uint8 [H, W] or [H, W, 3].
    title: what is said about the model, plain text.
  """
  import gradio

  def checked(function: Callable[..., str]) -> Callable[..., str]:
    """Shows a `UserError` as a message on the page."""

    def run(*args: Any) -> str:
      try:
        return function(*args)
      except UserError as error:
        # The message is shown as HTML, and it holds names of files.
        raise gradio.Error(html.escape(str(error)), duration=None, print_exception=False) from None

    return run

  def preview(choice: str, file_a: str | None, file_b: str | None, lut: str) -> str:
    if choice == _OWN and not (file_a and file_b):
      return view_lib.sources(*(read_upload(file) if file else None for file in (file_a, file_b)))
    a, b, _ = choose_pair(samples, choice, file_a, file_b, lut)
    return view_lib.sources(a, b)

  def fuse(
    choice: str, file_a: str | None, file_b: str | None, lut: str, seed: float, draws: float
  ) -> str:
    a, b, name = choose_pair(samples, choice, file_a, file_b, lut)
    number = _whole(draws, 1, MAX_SAMPLES, "the number of noise draws")
    options = {"seed": _whole(seed, 0, _MAX_SEED, "the seed"), "names": name}
    if number == 1:
      return view_lib.result(a, b, model.fuse(a, b, **options), name=name)
    fused, std = model.fuse(a, b, samples=number, **options)
    spread = panels.deviation_map(fused, std, samples=number)
    return view_lib.result(a, b, fused, name=name, deviation=spread)

  first = next(iter(samples), _OWN)
  with gradio.Blocks(
    title="dmfnet: image fusion",
    analytics_enabled=False,
    delete_cache=(_KEEP_SECONDS // 4, _KEEP_SECONDS),
  ) as page:
    gradio.HTML(view_lib.heading(title))
    with gradio.Row():
      with gradio.Column(scale=1, min_width=300):
        choices = [(_label(name), name) for name in (*samples, _OWN)]
        choice = gradio.Radio(choices, value=first, label="Pictures", elem_id="choice")
        suffixes = list(pictures.IMAGE_SUFFIXES)
        with gradio.Group(visible=first == _OWN) as own:
          file_a, file_b = (
            gradio.File(label=label, file_types=suffixes, height=110, elem_id=elem_id)
            for label, elem_id in (("A: MRI", "file_a"), ("B: CT, PET or SPECT", "file_b"))
          )
        luts = [_NO_LUT, *scaling.LUT_NAMES]
        lut = gradio.Dropdown(luts, label="Colours of B, where it is grey", elem_id="lut")
        # Its bounds are checked in `fuse`: Gradio's own check also fills the terminal.
        seed = gradio.Number(0, precision=0, label="Seed of the noise", elem_id="seed")
        info = "from two on: their mean and deviation"
        draws = gradio.Slider(
          1, MAX_SAMPLES, value=1, step=1, label="Noise draws", info=info, elem_id="draws"
        )
        button = gradio.Button("Fuse", variant="primary", elem_id="fuse")
      with gradio.Column(scale=3, min_width=320):
        view = gradio.HTML(elem_id="view")

    # Nothing here is an API: the page's own events only.
    hidden: dict[str, Any] = {"api_visibility": "private"}
    at_once = {**hidden, "show_progress": "hidden"}
    choice.change(lambda value: gradio.update(visible=value == _OWN), choice, own, **at_once)
    sources = [choice, file_a, file_b, lut]
    for event in (page.load, choice.change, file_a.change, file_b.change, lut.change):
      event(checked(preview), sources, view, **at_once)
    button.click(checked(fuse), [*sources, seed, draws], view, concurrency_limit=1, **hidden)
  page.queue(max_size=_MAX_WAITING, api_open=False)
  return page


def _label(name: str) -> str:
  """A sample pair's name for people: "PET axial" for pet_axial_096."""
  modality, plane, *rest = (*name.split("_"), "", "")
  return f"{modality.upper()} {plane}" if plane and any(rest) else name


def choose_pair(
  samples: Mapping[str, Sources], choice: str, file_a: str | None, file_b: str | None, lut: str
) -> tuple[np.ndarray, np.ndarray, str]:
  """Returns A and B as they are chosen on the page, as `samples` of `build_page`, and their name.

  The choice is one of the samples, or "your own files": then `file_a` and `file_b` are the uploads'
  paths. The colours `lut`, for a B that is grey, are one of `scaling.LUT_NAMES`, or "grey".

  Raises:
    UserError: nothing is uploaded, or it cannot be used.
  """
  if choice in samples:
    (a, b), name = samples[choice], choice
  elif not (file_a and file_b):
    raise UserError("upload both pictures, A and B, or pick one of the sample pairs")
  else:
    a, b = color.to_grey(read_upload(file_a)), read_upload(file_b)
    name = paths.file_stem(Path(file_a))
    if a.shape != b.shape[:2]:
      size_a, size_b = (f"{x.shape[1]} x {x.shape[0]}" for x in (a, b))
      raise UserError(f"A is {size_a} pixels and B {size_b}: register them to one grid first")
  if b.ndim == 3 and np.ptp(b, axis=-1).max() == 0:
    b = b[..., 0]  # a grey picture stored as colours
  if b.ndim == 2 and lut != _NO_LUT:
    b = scaling.apply_lut(b, scaling.read_lut(lut))
  return a, b, name


def read_upload(path: str) -> np.ndarray:
  """Reads an uploaded picture as `pictures.read_image`, if it is not too large for this page.

  Raises:
    UserError: it is no readable picture or has too many pixels. The message names the file as it
      was uploaded, without its place on this machine.
  """
  name = os.path.basename(path)
  try:
    # Only the header: the picture may claim any size.
    with Image.open(path) as image:
      width, height = image.size
  except Exception:  # Pillow raises anything; `read_image` says below what is wrong
    width = height = 0
  if width * height > MAX_PIXELS:
    raise UserError(
      f"{name}: {width} x {height} pixels; this page takes {MAX_PIXELS:,}, dmfnet fuse takes more"
    )
  try:
    return pictures.read_image(path)
  except UserError as error:
    raise UserError(str(error).replace(path, name)) from error


def _whole(value: float | None, low: int, high: int, what: str) -> int:
  """A number of the page as an int: the page's own limits bind only the page."""
  if value is None or value != int(value) or not low <= value <= high:
    raise UserError(f"{what} must be a whole number, {low} to {high}")
  return int(value)
