"""`dmfnet synthesize`: makes the pictures that are missing, and measures them against true ones.

All but the measuring is `files.py`'s.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dmfnet_jax.errors import UserError, why_failed
from dmfnet_jax.fusing import kinds
from dmfnet_jax.fusing.evaluate import format_table
from dmfnet_jax.fusing.files import find_own_pairs, fuse_pairs, load
from dmfnet_jax.fusing.kinds import FOLDER, PICTURE
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.fusing.pairing import Source
from dmfnet_jax.io import color, finite_json, grids, paths, pictures
from dmfnet_jax.io.slice_names import subject_and_slice
from dmfnet_jax.messages import say
from dmfnet_jax.metrics import SYNTHESIS_NAMES, compare_volumes

Values = dict[str, float]  # by metric


@dataclasses.dataclass(frozen=True)
class Truth:
  """What was made is to be compared with this.

  Attributes:
    target: a file, or a folder of files that are named as the pairs.
    suffix: the ending of the names in the folder, cut off to find the pair.
    json_file: where the values go as well.
  """

  target: paths.PathLike
  suffix: str = ""
  json_file: paths.PathLike | None = None


def synthesize_files(
  a: paths.PathLike | None,
  b: paths.PathLike | None,
  out: paths.PathLike,
  options: FuseOptions,
  truth: Truth | None = None,
) -> int:
  """Makes the missing picture of two files or series, of all pairs of two folders or of a list.

  Args:
    a: see `files.fuse_files`, as for the next three.
    b: the same.
    out: the same.
    options: the same; its model makes a missing picture.
    truth: what to compare with, if anything: a table goes to stdout.

  Returns:
    0, or 1 where some pairs failed or could not be compared.

  Raises:
    UserError: nothing can be done, see `files.fuse_files`; or nothing to compare with.
  """
  pairs, options = find_own_pairs(a, b, out, options)
  if not pairs:
    return 0
  true = {} if truth is None else find_true(pairs, truth)
  if truth is not None and truth.json_file is not None:
    paths.make_folder(paths.as_path(truth.json_file).parent)
  failures = fuse_pairs(load(options, synthesis=True), pairs, out, options)
  if truth is None:
    return 1 if failures else 0
  made = [pair for pair in pairs if pair.stem not in failures]
  measured, apart = measure(made, true, options)
  if measured:
    print(format_table(_rows(measured), SYNTHESIS_NAMES))
  if truth.json_file is not None:
    document = {"subjects": {k: v["made"] for k, v in measured.items()}, "mean": _means(measured)}
    paths.write_bytes(truth.json_file, (finite_json.dumps(document, indent=1) + "\n").encode())
  return 1 if failures or apart else 0


def find_true(pairs: Sequence[Pair], truth: Truth) -> dict[str, Source]:
  """The true picture or volume of each pair that has one, by the pair's name.

  Raises:
    UserError: there is no such path, or nothing of the name of any pair.
  """
  place = paths.as_path(truth.target)
  if not place.exists():
    raise UserError(f"{place}: no such file or folder")
  files = paths.list_files(place) if place.is_dir() else []
  if (kind := kinds.kind_of(place, files)) != FOLDER:
    if len(pairs) > 1:
      raise UserError(f"{place}: one {kind} for {len(pairs)} pairs: give a folder")
    return {pairs[0].stem: (kind, place)}
  listed = {
    stem.removesuffix(truth.suffix): source
    for stem, source in kinds.list_sources(place, files).items()
    if stem.endswith(truth.suffix)
  }
  found = {pair.stem: listed[pair.stem] for pair in pairs if pair.stem in listed}
  if not found:
    raise UserError(
      f"{place} has nothing of the name of {pairs[0].stem}: true pictures are named as the pairs; "
      "--suffix-target cuts an ending off"
    )
  return found


def measure(
  pairs: Sequence[Pair], true: Mapping[str, Source], options: FuseOptions
) -> tuple[dict[str, dict[str, Values]], list[str]]:
  """Compares what was made, and each source in its place, with the truth.

  Slices of one subject and size are one volume, see `subject_and_slice`; so no value is lost to
  slices that show nothing. A volume is measured as it is shown, the truth through its own window.

  Args:
    pairs: what was made.
    true: see `find_true`.
    options: of the run.

  Returns:
    Of each subject or volume the values of "made", "A" and "B"; and the names of the pairs that
    could not be compared, each of which was told.
  """
  measured: dict[str, dict[str, Values]] = {}
  apart: list[str] = []
  waiting: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}

  def fail(name: str, reason: object) -> None:
    apart.append(name)
    say(f"error: pair {name}: not compared: {reason}")

  for pair in pairs:
    if pair.stem not in true:
      fail(pair.stem, "there is no true one of that name")
      continue
    try:
      if pair.is_volume:
        measured[pair.stem] = _compare(_read_volumes(pair, true[pair.stem], options))
        continue
      slices = _read_pictures(pair, true[pair.stem])
    except (UserError, MemoryError) as error:
      fail(pair.stem, why_failed(error, "the pictures"))
      continue
    height, width = slices["true"].shape
    subject, _ = subject_and_slice(pair.stem)
    found = waiting.setdefault((subject, f"{width} x {height}"), {})
    for name, one in slices.items():
      found.setdefault(name, []).append(one)
  subjects = [subject for subject, _ in waiting]
  for (subject, size), stacks in waiting.items():
    name = subject if subjects.count(subject) == 1 else f"{subject} ({size})"
    try:
      measured[name] = _compare({label: np.stack(stack) for label, stack in stacks.items()})
    except UserError as error:
      fail(name, error)
  return measured, apart


def _compare(volumes: Mapping[str, np.ndarray]) -> dict[str, Values]:
  """Compares grey levels uint8 [S, H, W] with those named "true"."""
  shown = {name: volume.astype(np.float32) / 255 for name, volume in volumes.items()}
  truth = shown.pop("true")
  try:
    return {name: compare_volumes(truth, volume) for name, volume in shown.items()}
  except ValueError as error:
    raise UserError(str(error)) from error


def _read_pictures(pair: Pair, true: Source) -> dict[str, np.ndarray]:
  kind, path = true
  if kind != PICTURE:
    raise UserError(f"{path} is a {kind} and {pair.out} a picture")
  files = {"made": pair.out, "A": pair.a, "B": pair.b, "true": path}
  found = {name: color.to_grey(pictures.read_image(file)) for name, file in files.items()}
  if found["true"].shape != found["made"].shape:
    told = [f"{found[name].shape[1]} x {found[name].shape[0]}" for name in ("true", "made")]
    raise UserError(f"{path} is {told[0]} and what was made {told[1]} pixels (width x height)")
  return found


def _read_volumes(pair: Pair, true: Source, options: FuseOptions) -> dict[str, np.ndarray]:
  from dmfnet_jax.fusing.slices import luma_of  # its libraries take half a second
  from dmfnet_jax.fusing.volumes import read_volume
  from dmfnet_jax.inference.volumes import show

  kind, path = true
  if kind == PICTURE:
    raise UserError(f"{path} is a picture and {pair.out} a volume")
  made = read_volume(pair.out, pair.out_kind, tell=_nobody)
  found = {"made": luma_of(pair.out, made)}
  for name, file, of_kind, window in (
    ("A", pair.a, pair.kind_a, options.windows["a"]),
    ("B", pair.b, pair.kind_b, options.windows["b"]),
    ("true", path, kind, None),
  ):
    volume = read_volume(file, of_kind, tell=_nobody)
    if apart := grids.difference(made, volume):
      if name == "true":
        raise UserError(f"{file}: lies on another grid than what was made: {apart}")
      volume = grids.resample(volume, made)  # as it was made
    found[name] = _grey(show(file, volume, window)[0])
  return {name: np.moveaxis(volume, -1, 0) for name, volume in found.items()}


def _grey(shown: np.ndarray) -> np.ndarray:
  from dmfnet_jax.inference.volumes import by_plane

  return by_plane(color.rgb_to_luma, shown) if shown.ndim == 4 else shown


def _nobody(note: str) -> None:
  """Notes of the sources were told when they were read to be used."""


def _means(measured: Mapping[str, Mapping[str, Values]]) -> dict[str, Values]:
  labels = next(iter(measured.values()), {})
  return {
    label: {
      name: float(np.mean([values[label][name] for values in measured.values()]))
      for name in SYNTHESIS_NAMES
    }
    for label in labels
  }


def _rows(measured: Mapping[str, Mapping[str, Values]]) -> dict[str, Values]:
  """What was made of each subject, the mean, and the means of the sources in its place."""
  means = _means(measured)
  rows = {name: values["made"] for name, values in measured.items()}
  rows |= {"mean": means["made"]} if len(measured) > 1 else {}
  return rows | {f"{label} in its place": means[label] for label in ("A", "B")}
