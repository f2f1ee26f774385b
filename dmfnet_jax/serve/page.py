"""The page of `dmfnet serve`: what is on it, and what it does with what is sent to it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import color, panels, pictures, scaling
from dmfnet_jax.serve import uploads
from dmfnet_jax.serve import view as view_lib

MAX_SAMPLES = 16
_MAX_SEED = 2**32 - 1
_MAX_WAITING = 16  # people in the queue; one picture is fused at a time
_KEEP_SECONDS = 3600  # of uploads
_OWN = "your own files"
_NO_LUT = "grey"

Sources = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Choice:
  """What is chosen on the page.

  Attributes:
    pair: one of the samples, or "your own files".
    file_a: the path of A's upload, or None.
    file_b: that of B.
    lut: the colours of a B that is grey, one of `scaling.LUT_NAMES`, or "grey".
    window_a: of a volume, in the words of `windows.parse_window`; "" for the default.
    window_b: of B.
    index: of the slice.
  """

  pair: str
  file_a: str | None
  file_b: str | None
  lut: str
  window_a: str = ""
  window_b: str = ""
  index: float = 0

  @property
  def is_complete(self) -> bool:
    """Whether there is an A and a B."""
    return self.pair != _OWN or bool(self.file_a and self.file_b)

  @property
  def is_of_volumes(self) -> bool:
    """Whether both uploads are volumes."""
    return self.pair == _OWN and all(f and uploads.is_volume(f) for f in (self.file_a, self.file_b))


@dataclasses.dataclass(frozen=True)
class Chosen:
  """A pair to be shown or fused.

  Attributes:
    a: uint8 [H, W].
    b: uint8 [H, W] or [H, W, 3].
    name: from which its noise is drawn, as by the command.
    file_name: that of its downloads.
    shown: how it is to be shown: titles, aspect and note of `view.result`.
  """

  a: np.ndarray
  b: np.ndarray
  name: str
  file_name: str
  shown: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def build_page(model: Any, samples: Mapping[str, Sources], *, title: str) -> Any:
  """Builds the page: a `gradio.Blocks`, to be given to `launch`.

  Args:
    model: has `fuse` as `Model`.
    samples: pairs to pick by their name: A, uint8 [H, W], and B, uint8 [H, W] or [H, W, 3].
    title: what is said about the model, plain text.
  """
  import gradio

  def checked(function: Callable[..., str]) -> Callable[..., str]:
    """Shows a `UserError` in place of the pictures: once, until what is chosen changes."""

    def run(*args: Any) -> str:
      try:
        return function(*args)
      except UserError as error:
        return view_lib.problem(str(error))

    return run

  def preview(*words: Any) -> str:
    choice = Choice(*words)
    if not choice.is_complete:
      files = choice.file_a, choice.file_b
      return view_lib.sources(
        *(uploads.read_picture(f) if f and not uploads.is_volume(f) else None for f in files)
      )
    chosen = choose_pair(samples, choice)
    return view_lib.sources(chosen.a, chosen.b, **chosen.shown)

  def fuse(seed: float, draws: float, *words: Any) -> str:
    chosen = choose_pair(samples, Choice(*words))
    number = _whole(draws, 1, MAX_SAMPLES, "the number of noise draws")
    options = {"seed": _whole(seed, 0, _MAX_SEED, "the seed"), "names": chosen.name}
    pair, shown = (chosen.a, chosen.b), {"name": chosen.file_name, **chosen.shown}
    if number == 1:
      return view_lib.result(*pair, model.fuse(*pair, **options), **shown)
    fused, std = model.fuse(*pair, samples=number, **options)
    spread = panels.deviation_map(fused, std, samples=number)
    return view_lib.result(*pair, fused, deviation=spread, **shown)

  def arrange(*words: Any) -> tuple[Any, Any]:
    """Shows the slider, in the middle of the volumes, and the windows where there are volumes."""
    choice, count = Choice(*words), 0
    if choice.is_of_volumes:
      try:
        count = len(_slices(choice).a)
      except UserError:  # `preview` says so
        count = 0
    slider = gradio.update(visible=count > 1, maximum=max(1, count - 1), value=count // 2)
    return slider, gradio.update(visible=choice.is_of_volumes)

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
        suffixes = [*pictures.READ_SUFFIXES, *uploads.VOLUME_SUFFIXES, ".gz"]
        with gradio.Column(visible=first == _OWN) as own:
          file_a, file_b = (
            gradio.File(label=label, file_types=suffixes, height=170, elem_id=elem_id)
            for label, elem_id in (("A: MRI", "file_a"), ("B: CT, PET or SPECT", "file_b"))
          )
        with gradio.Group(visible=False) as for_volumes:
          window_a, window_b = (
            gradio.Textbox(
              "",
              label=f"Window of {letter}",
              placeholder="default, or 0,100 · W80L40 · brain · suv:0,7 · 0%,99%",
              elem_id=f"window_{letter.lower()}",
            )
            for letter in "AB"
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
        index = gradio.Slider(0, 1, step=1, label="Slice", visible=False, elem_id="slice")
        view = gradio.HTML(elem_id="view")

    # Nothing here is an API: the page's own events only.
    hidden: dict[str, Any] = {"api_visibility": "private"}
    # What is shown last is what was chosen last, however quickly one thing follows the other.
    at_once = {**hidden, "show_progress": "hidden", "trigger_mode": "always_last"}
    sources = [choice, file_a, file_b, lut, window_a, window_b, index]
    choice.change(lambda value: gradio.update(visible=value == _OWN), choice, own, **at_once)
    for event in (choice.change, file_a.change, file_b.change):
      arranged = event(arrange, sources, [index, for_volumes], **at_once)
      arranged.then(checked(preview), sources, view, **at_once)
    for event in (page.load, lut.change, window_a.submit, window_b.submit):
      event(checked(preview), sources, view, **at_once)
    index.input(checked(preview), sources, view, **at_once)
    fused = button.click(
      checked(fuse), [seed, draws, *sources], view, concurrency_limit=1, **hidden
    )
    # On a phone the result would stand below the screen.
    fused.then(js=_SHOW_RESULT, **at_once)
  page.queue(max_size=_MAX_WAITING, api_open=False)
  return page


_SHOW_RESULT = """() => {
  const view = document.getElementById("view");
  if (view.getBoundingClientRect().top > window.innerHeight / 2)
    view.scrollIntoView({ behavior: "smooth", block: "start" });
}"""


def _label(name: str) -> str:
  """A sample pair's name for people: "PET axial" for pet_axial_096."""
  modality, plane, *rest = (*name.split("_"), "", "")
  return f"{modality.upper()} {plane}" if plane and any(rest) else name


def choose_pair(samples: Mapping[str, Sources], choice: Choice) -> Chosen:
  """Returns A and B as they are chosen on the page.

  Args:
    samples: see `build_page`.
    choice: what is chosen.

  Raises:
    UserError: nothing is uploaded, or it cannot be used.
  """
  if choice.pair in samples:
    (a, b), name = samples[choice.pair], choice.pair
    chosen = Chosen(a, b, name, name)
  elif not (choice.file_a and choice.file_b):
    raise UserError("upload both, A and B, or pick one of the sample pairs")
  elif choice.is_of_volumes:
    chosen = _choose_slice(choice)
  elif any(map(uploads.is_volume, (choice.file_a, choice.file_b))):
    raise UserError("A and B are a picture and a volume: upload two of a kind")
  else:
    a, b = color.to_grey(uploads.read_picture(choice.file_a)), uploads.read_picture(choice.file_b)
    if a.shape != b.shape[:2]:
      size_a, size_b = (f"{x.shape[1]} x {x.shape[0]}" for x in (a, b))
      raise UserError(f"A is {size_a} pixels and B {size_b}: register them to one grid first")
    name = uploads.stem_of(choice.file_a)
    chosen = Chosen(a, b, name, name)
  b = color.drop_neutral(chosen.b)  # a grey picture stored as colours
  if b.ndim == 2 and choice.lut != _NO_LUT:
    b = scaling.apply_lut(b, scaling.read_lut(choice.lut))
  return dataclasses.replace(chosen, b=b)


def _choose_slice(choice: Choice) -> Chosen:
  """The slice of two volumes that is chosen."""
  slices = _slices(choice)
  i = _whole(choice.index, 0, len(slices.a) - 1, "the slice")
  stem = uploads.stem_of(str(choice.file_a))
  note = f"{slices.plane} slice {i} of 0 to {len(slices.a) - 1}; {slices.note}"
  return Chosen(
    slices.a[i],
    slices.b[i],
    f"{stem}/{slices.plane}/{i}",
    f"{stem}_{slices.plane}_{i:03d}",
    {"titles": slices.titles, "aspect": slices.aspect, "note": note},
  )


def _slices(choice: Choice) -> uploads.Slices:
  return uploads.read_slices(
    str(choice.file_a), str(choice.file_b), choice.window_a, choice.window_b
  )


def _whole(value: float | None, low: int, high: int, what: str) -> int:
  """A number of the page as an int: the page's own limits bind only the page."""
  if value is None or value != int(value) or not low <= value <= high:
    raise UserError(f"{what} must be a whole number, {low} to {high}")
  return int(value)
