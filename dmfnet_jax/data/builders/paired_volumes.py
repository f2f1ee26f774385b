"""Registered volumes of the user's, cut into slices: subject by subject, in processes or a cluster.

Laid out under `manual_dir` as one of

- `a` and `b`, with NIfTI files or a folder per DICOM series, paired by their names;
- a BIDS dataset: A is what lies in `anat`, B what lies in `pet` or `ct`;
- `pairs.csv`: the paths of A and of B, and if wanted a name, one pair a line;

or of the first two one each under `train`, `val` (or `validation`) and `test`. `suffix_a` and
`suffix_b` name the endings where names alone do not tell, as `dmfnet fuse` takes them.

**No subject is in two splits.** A subject is BIDS' `sub-*`, and elsewhere a pair by its name: of
several scans of one patient either begin all names with `sub-PATIENT_`, or divide them yourself.
Where the folders do not divide them, files `train.txt`, `validation.txt` and `test.txt` list
subjects, one a line; without these a hash of the subject sends about every tenth to validation.

Volumes are shown as `dmfnet fuse` shows them: windows by the same rules, PET in SUV where its
DICOM tags allow, B resampled onto A's grid if asked. Of the slices along `axis` those stay in which
at least `MIN_SHARE` of the pixels are brighter than `DARK` in A, and in B.

A subject that cannot be read is named and left out, with its reason in `left_out.json` beside the
dataset. What is done of a preparation that stops is kept in `data_dir/paired_volumes/work` until
all is there, and not done again.
"""

import contextlib
import functools
import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from dmfnet_jax.data import builders
from dmfnet_jax.data.builders import paired_folder
from dmfnet_jax.errors import UserError, why_failed
from dmfnet_jax.fusing import pairing, stream
from dmfnet_jax.fusing.kinds import PICTURE
from dmfnet_jax.fusing.pairing import Naming, Source
from dmfnet_jax.fusing.volumes import on_one_grid, read_volume
from dmfnet_jax.inference.volumes import by_plane, show
from dmfnet_jax.io import color, grids, modalities, paths
from dmfnet_jax.io.windows import Asked, parse_window
from dmfnet_jax.messages import first_of, say

DARK = 10
"""Grey levels, of 255, up to which a pixel shows nothing."""
MIN_SHARE = 0.02
"""Of a slice's pixels that show something, in A and in B each; a slice with less is left out."""

_LOOK_SECONDS = 2  # between two looks at how far it is

_LISTS = {f"{split}.txt": split for split in builders.SPLITS}
_SUBJECT = re.compile(r"sub-[^_]+")
_LAYOUTS = (
  "a/ and b/ with volumes, a BIDS dataset, or pairs.csv; at the top, or the first two under "
  "train/, val/ and test/"
)

Pairs = dict[str, tuple[Source, Source]]


class Settings(NamedTuple):
  """How volumes become slices; see `dmfnet fuse`.

  Attributes:
    axis: across which slices are cut; None as the command chooses.
    window_a: of A, as `parse_window` reads it; None as the command chooses.
    window_b: of B.
    resample: B onto A's grid where they differ.
    same_frame: go on where two series name different frames of reference.
  """

  axis: str | None = None
  window_a: Asked = None
  window_b: Asked = None
  resample: bool = False
  same_frame: bool = False


class PairedVolumes(tfds.core.GeneratorBasedBuilder):
  """Slices of pairs of volumes; see the module's docstring.

  Args:
    axis: see `Settings`, as the others; windows are text, as on the command line.
    suffix_a: the ending of A's names.
    suffix_b: that of B's.
    beam: whether Beam divides the subjects over processes or a cluster; else one after the other.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Give the folder with the volumes as manual_dir: {_LAYOUTS}."
  OPTIONS = ("axis", "window_a", "window_b", "resample", "same_frame", "suffix_a", "suffix_b")

  def __init__(
    self,
    *,
    axis: str | None = None,
    window_a: str | None = None,
    window_b: str | None = None,
    resample: bool | str = False,
    same_frame: bool | str = False,
    suffix_a: str = "",
    suffix_b: str = "",
    beam: bool = False,
    **kwargs,
  ):
    asked_a, asked_b = (x if x is None else parse_window(x) for x in (window_a, window_b))
    flags = _as_flag("resample", resample), _as_flag("same_frame", same_frame)
    self._settings = Settings(axis, asked_a, asked_b, *flags)
    self._naming = Naming(suffix_a, suffix_b)
    self._beam = beam
    self._names: set[str] = set()
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="Slices of registered pairs of volumes from folders of the user's.",
      features=builders.pair_features(),
    )

  def _split_generators(self, dl_manager):
    divided = find_subjects(builders.manual_folder(self, dl_manager), self._naming)
    self._names = {name for pairs in divided.values() for name in pairs}
    self.notes = tuple(
      f"{split}: {len(pairs)} pairs of volumes: {first_of(sorted(pairs))}"
      for split, pairs in divided.items()
    )
    return {split: self._generate_examples(pairs) for split, pairs in divided.items()}

  def _generate_examples(self, pairs: Pairs):
    cut = functools.partial(cut_once, settings=self._settings, work=str(self.work))
    if not self._beam:
      return (example for pair in pairs.items() for example in cut(pair))
    import apache_beam as beam

    return beam.Create(list(pairs.items())) | beam.Reshuffle() | beam.FlatMap(cut)

  @contextlib.contextmanager
  def showing_progress(self) -> Iterator[None]:
    """A bar of the pairs that are cut, wherever Beam does so: of what they leave in `work`.

    Beam says nothing itself, and TFDS's own bar is of a builder in one process.
    """
    if not self._beam:
      yield
      return
    ended = threading.Event()

    def watch() -> None:
      while not self._names and not ended.wait(_LOOK_SECONDS):
        pass  # the subjects are not found yet
      with stream.Progress(len(self._names), unit="pair of volumes") as bar:
        shown = 0
        while True:
          is_last = ended.wait(_LOOK_SECONDS)
          count = min(len(self._names), self._count_finished())
          bar.done(count - shown)
          shown = count
          if is_last:
            return

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
      yield
    finally:
      ended.set()
      thread.join()

  def _count_finished(self) -> int:
    """Pairs that have left what they leave: their slices, or why they have none."""
    files = self.work.iterdir() if self.work.is_dir() else ()
    return sum(path.suffix in (".npz", ".json") for path in files)

  @property
  def work(self) -> Any:
    """Where finished pairs wait for the others."""
    return paths.as_path(self.data_dir).parent / "work"

  def after_writing(self) -> None:
    """Says which pairs were left out, writes it beside the dataset, and clears the work folder."""
    left_out: dict[str, str] = {}
    for path in sorted(self.work.glob("*.json")) if self.work.is_dir() else ():
      told = json.loads(paths.read_bytes(path))
      left_out |= {name: reason for name, reason in told.items() if name in self._names}
    for name, reason in left_out.items():
      say(f"warning: left out: {name}: {reason}")
    paths.write_bytes(self.data_path / "left_out.json", json.dumps(left_out, indent=1).encode())
    if left_out:
      self.notes += (f"left out: {len(left_out)} pairs; why is in left_out.json",)
    if self.work.is_dir():
      for path in self.work.iterdir():
        path.unlink()
      self.work.rmdir()


def _as_flag(name: str, value: bool | str) -> bool:
  known = {"true": True, "1": True, "false": False, "0": False}
  if isinstance(value, str) and value.lower() not in known:
    raise UserError(f"{name}={value}: say true or false")
  return value if isinstance(value, bool) else known[value.lower()]


def find_subjects(manual_dir: Path, naming: Naming = Naming()) -> dict[str, Pairs]:  # noqa: B008
  """The pairs of each split, none of which is empty, by their names.

  Raises:
    UserError: there are none, two splits share a subject, or a list names one that is not there.
  """
  if not manual_dir.is_dir():
    raise UserError(f"no such folder: {manual_dir}")
  folders = {
    builders.SPLIT_FOLDERS[child.name.lower()]: child
    for child in sorted(manual_dir.iterdir())
    if child.name.lower() in builders.SPLIT_FOLDERS and child.is_dir()
  }
  if folders:
    divided = {split: _pairs(folder, naming) for split, folder in folders.items()}
  else:
    divided = _divide(manual_dir, _pairs(manual_dir, naming))
  if not divided.get("train"):
    raise UserError(f"no volumes to train on under {manual_dir}; expected {_LAYOUTS}")
  seen: dict[str, str] = {}
  for split, pairs in divided.items():
    for name in pairs:
      other = seen.setdefault(subject_of(name), split)
      if other != split:
        raise UserError(f"{manual_dir}: {subject_of(name)} is in {other} and in {split}")
  return {split: divided[split] for split in builders.SPLITS if divided.get(split)}


def subject_of(name: str) -> str:
  """Whose scans a pair has: "sub-01" of "sub-01_ses-2_T1w", and of other names the whole."""
  found = _SUBJECT.match(name)
  return found[0] if found else name


def _pairs(folder: Path, naming: Naming) -> Pairs:
  """The pairs of volumes of one folder, in one of the layouts."""
  if (listed := folder / "pairs.csv").exists():
    found = pairing.read_list(naming._replace(pairs=str(listed)))
  else:
    both = [folder / "a", folder / "b"]
    if not both[0].is_dir():
      both = [folder, folder]
    if not both[1].is_dir():
      raise UserError(f"{both[1]}: no such folder; expected {_LAYOUTS}")
    try:
      found = pairing.match_folders(both, [paths.list_files(place) for place in both], naming)
    except UserError as error:
      raise UserError(_as_options(str(error))) from error
  for note in found.notes:
    say(_as_options(note))
  if found.alone:
    say(f"warning: without a partner: {first_of([str(path) for path in found.alone])}")
  pictures = [name for name, ((kind, _), _) in found.pairs.items() if kind == PICTURE]
  if pictures:
    raise UserError(f"{folder}: {first_of(pictures)}: pictures are for paired_folder")
  if not found.pairs:
    advice = _as_options(found.advice)
    raise UserError(f"no pairs of volumes in {folder}; expected {_LAYOUTS}. {advice}")
  return found.pairs


def _as_options(told: str) -> str:
  """What `dmfnet fuse` says of its options, in the words of `dmfnet data prepare`."""
  told = told.replace("--pairs takes a list", "pairs.csv lists pairs")
  with_value = re.sub(r"--suffix-([ab]) (?=[_-])", r"--option suffix_\1=", told)
  return re.sub(r"--suffix-([ab])", r"--option suffix_\1", with_value)


def _divide(folder: Path, pairs: Pairs) -> dict[str, Pairs]:
  """Divides pairs by their subjects, by the lists of a folder or else by a hash."""
  by_subject: dict[str, Pairs] = {}
  for name, pair in pairs.items():
    by_subject.setdefault(subject_of(name), {})[name] = pair
  lists = {split: folder / name for name, split in _LISTS.items() if (folder / name).exists()}
  if not lists:
    hashed = paired_folder.divide_by_hash(by_subject)
    return {split: _joined(subjects.values()) for split, subjects in hashed.items()}
  divided = {}
  for split, path in lists.items():
    subjects = paths.read_bytes(path).decode("utf-8-sig").split()
    if lacking := [subject for subject in subjects if subject not in by_subject]:
      raise UserError(f"{path}: there are no volumes of {first_of(lacking)}")
    divided[split] = _joined(by_subject[subject] for subject in subjects)
  return divided


def _joined(pairs) -> Pairs:
  return {name: pair for some in pairs for name, pair in some.items()}


def cut_once(
  pair: tuple[str, tuple[Source, Source]], *, settings: Settings, work: str
) -> Iterator[tuple[str, dict[str, Any]]]:
  """The examples of a pair, from the work folder where they are there already.

  A pair that cannot be cut has none; the reason goes into the work folder.

  Yields:
    (key, example) of every slice; pictures as PNG files in memory.
  """
  name, sources = pair
  folder = paths.make_folder(work)
  # By its name alone: a volume that was mended takes the place of its failure.
  failed = folder / f"{_digest(name)}.json"
  try:
    states = [_state(path) for _, path in sources]
    done = folder / f"{_digest(name, sources, states, settings)}.npz"
    slices = None if done.exists() else cut_pair(name, sources, settings)
  except (UserError, MemoryError) as error:
    reason = why_failed(error, "the volumes")
    say(f"warning: {name}: {reason}: left out")
    paths.write_bytes(failed, json.dumps({name: reason}).encode())
    return
  if slices is not None:
    file = io.BytesIO()
    np.savez_compressed(file, **slices)
    paths.write_bytes(done, file.getvalue())
  failed.unlink(missing_ok=True)
  with np.load(io.BytesIO(paths.read_bytes(done))) as slices:
    a, b, indices, modality = (slices[field] for field in ("a", "b", "index", "modality"))
  for i, index in enumerate(indices):
    key = f"{name}_{index:03d}"
    yield key, {"a": a[i][..., None], "b": b[i], "name": key, "modality": str(modality)}


def _digest(*values: Any) -> str:
  return hashlib.sha256(repr(values).encode()).hexdigest()[:32]


def _state(path: Any) -> list[tuple[int, float]]:
  """Size and time of a local file, or of a folder's files, by which a change is noticed."""
  if paths.is_remote(path):
    return []
  stats = [file.stat() for file in (paths.list_files(path) if path.is_dir() else [path])]
  return [(stat.st_size, stat.st_mtime) for stat in stats]


def cut_pair(name: str, sources: Sequence[Source], settings: Settings) -> dict[str, Any]:
  """The slices of a pair that show something.

  Returns:
    "a": uint8 [N, H, W], "b": uint8 [N, H, W, 3], "index": [N], the slices' places in the volume,
    and "modality": what B is, "other" where nobody says.

  Raises:
    UserError: a volume cannot be read, the two do not lie on one grid, or no slice shows anything.
  """
  (kind_a, path_a), (kind_b, path_b) = sources
  tell = functools.partial(_tell, name)
  a, b = read_volume(path_a, kind_a, tell), read_volume(path_b, kind_b, tell)
  if (apart := grids.other_frame(a, b)) and not settings.same_frame:
    raise UserError(f"{apart}: set same_frame=true if B is registered to A all the same")
  b, _ = on_one_grid(a, b, settings.resample)
  plane = grids.find_plane(settings.axis, a)
  shown_a, _ = show(path_a, a, settings.window_a)
  if a.is_rgb:
    shown_a = by_plane(color.rgb_to_luma, shown_a)
  shown_b, _ = show(path_b, b, settings.window_b)
  of_a, of_b = (grids.to_pictures(x, a.affine, plane) for x in (shown_a, shown_b))
  luma_b = of_b.max(axis=-1) if of_b.ndim == 4 else of_b
  shares = [np.mean(x > DARK, axis=(1, 2)) for x in (of_a, luma_b)]
  index = np.flatnonzero(np.minimum(*shares) >= MIN_SHARE)
  if not len(index):
    raise UserError(f"no {plane} slice shows something in both")
  of_b = of_b if of_b.ndim == 4 else np.repeat(of_b[..., None], 3, axis=-1)
  modality = b.modality or modalities.of_name(path_b) or "other"
  return {
    "a": np.ascontiguousarray(of_a[index]),
    "b": np.ascontiguousarray(of_b[index]),
    "index": index,
    "modality": np.array(modality),
  }


def _tell(name: str, line: str) -> None:
  say(f"{name}: {line}")
