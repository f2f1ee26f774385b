"""The datasets: prepared once as ArrayRecord files, then read without TensorFlow.

`prepare` writes a dataset with its TFDS builder (this needs TensorFlow); `open_source` opens what
was written for random access (this does not). Every builder yields examples

  {"a": uint8 [H, W, 1], "b": uint8 [H, W, 3], "name": text, "modality": text}

where a is the luma of the MRI or of the infrared picture, b the other picture (grey ones have three
equal channels), `name` is unique in its split and `modality` is "CT", "PET", "SPECT",
"infrared-visible" or "other". Some have further pictures stored as b is, such as masks:
`paired_folder` those of further folders. In `triples_folder` a is stored as b is. The datasets of
MR contrasts have in place of a and b a field of each contrast, stored as a is.
"""

import contextlib
import importlib
import inspect
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmfnet_jax.data.datasets import DATASETS
from dmfnet_jax.data.source_files import describe_changes, leave_record
from dmfnet_jax.errors import UserError, one_line
from dmfnet_jax.io.color import to_grey
from dmfnet_jax.io.pictures import list_images, read_image
from dmfnet_jax.messages import say

_LAST_FILE = "dataset_info.json"  # a folder without it is not a prepared dataset
SPLITS = ("train", "validation", "test")  # of every dataset; one may have more
SPLIT_FOLDERS = {split: split for split in SPLITS} | {"val": "validation"}
"""The names of folders, in small letters, that say a split."""


def prepare(
  name: str,
  data_dir: str | Path,
  manual_dir: str | Path | None = None,
  *,
  workers: int = 1,
  beam_options: str = "",
  **options,
):
  """Writes a dataset under `data_dir/name/VERSION`; prints and returns its splits' lengths.

  The files are written into a folder named `incomplete.*`, which is renamed when everything is
  there: an interrupted preparation leaves nothing that could be taken for a prepared dataset. A
  dataset that is there already is left as it is; pictures that came since into `manual_dir`, are
  gone or have changed are told.

  Args:
    name: One of `DATASETS`.
    data_dir: Root of the prepared datasets; made if missing.
    manual_dir: Folder with the user's own pictures, for the builders that need one.
    workers: Processes of this machine, for the builders that divide their work: by Apache Beam.
    beam_options: Beam's own flags, such as those of a runner on a cluster, instead of `workers`.
    **options: Arguments of the builder's class.

  Raises:
    UserError: The name is unknown, TensorFlow or Beam is missing, there is no such option, or an
      input is missing or unusable.
  """
  _check_name(name)
  builder_class = getattr(importlib.import_module(f"{__name__}.{name}"), DATASETS[name].builder)
  offered = getattr(builder_class, "OPTIONS", ())
  known = offered or inspect.signature(builder_class).parameters
  if wrong := [option for option in options if option not in known]:
    raise UserError(f"{name} has no option {wrong[0]!r}; it has {', '.join(offered) or 'none'}")
  beam = None
  if workers > 1 or beam_options:
    if "beam" not in inspect.signature(builder_class).parameters:
      raise UserError(f"{name} is prepared by one process: --workers and --beam-options do nothing")
    beam = _beam_options(workers, beam_options)
    options["beam"] = True
  find_fields = getattr(builder_class, "find_fields", None)
  if find_fields is not None and manual_dir is not None:
    options.setdefault("fields", find_fields(Path(manual_dir)))
  builder = builder_class(data_dir=str(data_dir), file_format="array_record", **options)
  folder = builder.data_dir
  if (builder.data_path / _LAST_FILE).exists():
    print(
      f"{name} {builder.version} is prepared already in {folder}; delete that folder to redo it."
    )
    if manual_dir is not None and (told := describe_changes(builder.data_path, manual_dir)):
      say(f"warning: {manual_dir}: pictures differ from those that were prepared: {told}")
  else:
    if manual_dir is not None and not Path(manual_dir).is_dir():
      raise UserError(f"no such folder: {manual_dir}")
    _write(builder, manual_dir, beam)
    if hasattr(builder, "after_writing"):
      builder.after_writing()
    if manual_dir is not None:
      leave_record(builder.data_path, manual_dir)
    print(f"Prepared {name} {builder.version} in {folder}")
  for note in getattr(builder, "notes", ()):
    print(f"  note: {note}")
  counts = {split: info.num_examples for split, info in builder.info.splits.items()}
  for split, count in counts.items():
    print(f"  {split}: {count} examples")
  return counts


class PreparedSource(Sequence):
  """Random access to the decoded examples of one split; see the module's docstring.

  `name` and `modality` of an example are bytes. In another process a copy opens the files anew.

  Attributes:
    name: Dataset, version and split, such as "harvard_mmif/2.0.0 train".
  """

  def __init__(self, folder: str, split: str):
    self._arguments = (folder, split)
    with _no_masked_tensorflow():
      import tensorflow_datasets as tfds

      builder = tfds.builder_from_directory(folder)
      splits = list(builder.info.splits)
      if re.split(r"[\[+]", split)[0] not in splits:
        raise UserError(f"no split {split!r} in {folder}; it has {', '.join(splits)}")
      self.name = f"{builder.info.full_name} {split}"
      self._source = builder.as_data_source(split)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, record):
    return self._source[range(len(self))[record]]

  def __reduce__(self):
    return PreparedSource, self._arguments


def open_source(name: str, data_dir: str | Path, split: str = "train") -> PreparedSource:
  """Opens a prepared dataset for random access, without TensorFlow.

  Args:
    name: One of `DATASETS`.
    data_dir: Root of the prepared datasets: a local or mounted folder, or a `gs://` address where
      `gcsfs` is installed. The newest version there is read.
    split: A split's name, or a slice of one in TFDS's notation, such as `train[:10%]`.

  Raises:
    UserError: The name is unknown, nothing is prepared there, or it has no such split.
  """
  from etils import epath

  _check_name(name)
  try:
    folder = epath.Path(data_dir).expanduser() / name
    versions = [
      child
      for child in (folder.iterdir() if folder.is_dir() else ())
      if re.fullmatch(r"\d+\.\d+\.\d+", child.name) and (child / _LAST_FILE).exists()
    ]
  except ImportError as error:
    raise UserError(
      f"cannot open {data_dir}: {error}. Install gcsfs, or mount the bucket as a folder."
    ) from error
  if not versions:
    command = f"dmfnet data prepare {name} --data-dir {data_dir}"
    if not DATASETS[name].brings:
      command += " --manual-dir FOLDER"
    raise UserError(f"no prepared dataset {name!r} in {data_dir}; prepare it with: {command}")

  newest = max(versions, key=lambda folder: tuple(map(int, folder.name.split("."))))
  return PreparedSource(os.fspath(newest), split)


def pair_features(further: Sequence[str] = ()):
  """The features of pairs, and of further pictures in three channels."""
  return picture_features({"a": 1, "b": 3} | dict.fromkeys(further, 3))


def picture_features(channels: Mapping[str, int]):
  """The feature dict that every builder declares, of pictures with these numbers of channels."""
  import tensorflow_datasets as tfds

  return tfds.features.FeaturesDict(
    {
      name: tfds.features.Image(shape=(None, None, count), encoding_format="png")
      for name, count in channels.items()
    }
    | {"name": tfds.features.Text(), "modality": tfds.features.Text()}
  )


def match_stems(a_dir: Path, b_dir: Path) -> dict[str, tuple[Path, Path]]:
  """Pairs the pictures of two folders: a dict from stem to (A's path, B's path), sorted by stem.

  Raises:
    UserError: A folder is missing, or a picture has no partner.
  """
  a_files, b_files = list_images(a_dir), list_images(b_dir)
  for files, others, folder in ((a_files, b_files, b_dir), (b_files, a_files, a_dir)):
    lonely = sorted(set(files) - set(others))
    if lonely:
      more = f" (and {len(lonely) - 1} more)" if len(lonely) > 1 else ""
      raise UserError(f"{files[lonely[0]]} has no partner of the same stem in {folder}{more}")
  return {stem: (a_files[stem], b_files[stem]) for stem in sorted(a_files)}


def read_pair(a_path: Path, b_path: Path) -> tuple[np.ndarray, np.ndarray]:
  """Reads one pair as the builders store it: A's BT.601 luma, uint8 [H, W, 1], and B, [H, W, 3].

  Raises:
    UserError: A file cannot be read, or the two differ in size.
  """
  a, b = read_image(a_path), read_image(b_path)
  if a.shape[:2] != b.shape[:2]:
    sizes = [f"{image.shape[1]} x {image.shape[0]}" for image in (a, b)]
    raise UserError(f"{a_path} is {sizes[0]} but {b_path} is {sizes[1]}: a pair must be registered")
  return to_grey(a)[..., None], three_channels(b)


def three_channels(image: np.ndarray) -> np.ndarray:
  """A picture uint8 [H, W] or [H, W, 3] with three channels."""
  return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)


def manual_folder(builder, dl_manager) -> Path:
  """The user's folder that TFDS's download manager was given for a builder.

  Raises:
    UserError: It was not given, or is empty: what the builder's MANUAL_DOWNLOAD_INSTRUCTIONS say.
  """
  try:
    return Path(dl_manager.manual_dir)
  except AssertionError as error:
    raise UserError(
      f"{builder.name} needs --manual-dir FOLDER with your pictures in it. "
      f"{builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
    ) from error


def _check_name(name: str) -> None:
  if name not in DATASETS:
    raise UserError(f"unknown dataset {name!r}; known ones: {', '.join(DATASETS)}")


def _beam_options(workers: int, flags: str) -> Any:
  """How Beam runs: by its own flags, or in so many processes here."""
  try:
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UserError(
      f"several workers need Apache Beam ({error}): pip install 'dmfnet_jax[beam]'"
    ) from error
  here = f"--direct_num_workers={workers} --direct_running_mode=multi_processing"
  return PipelineOptions(shlex.split(flags or here))


def _write(builder, manual_dir: str | Path | None, beam: Any = None) -> None:
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # or its start-up notes fill the screen
  try:
    import tensorflow  # noqa: F401
  except ImportError as error:
    raise UserError(
      f"preparing a dataset needs TensorFlow ({error}): pip install 'dmfnet_jax[data]'"
    ) from error
  import tensorflow_datasets as tfds

  config = tfds.download.DownloadConfig(manual_dir=manual_dir, beam_options=beam)
  # TFDS announces its progress on standard output, which is for our own answer. It makes a folder
  # for downloads even where, as here, nothing is downloaded.
  progress = getattr(builder, "showing_progress", contextlib.nullcontext)
  with (
    contextlib.redirect_stdout(sys.stderr),
    tempfile.TemporaryDirectory() as downloads,
    progress(),
  ):
    try:
      builder.download_and_prepare(
        download_dir=downloads, download_config=config, file_format="array_record"
      )
    except OSError as error:
      raise UserError(f"cannot prepare {builder.name} in {builder.data_dir}: {error}") from error
    except AssertionError as error:
      if "No examples were yielded" not in str(error):
        raise
      raise UserError(
        f"{builder.name}: {one_line(error)} All that it would have had was left out."
      ) from error


@contextlib.contextmanager
def _no_masked_tensorflow() -> Iterator[None]:
  """Lifts `sys.modules["tensorflow"] = None`, with which tests hide TensorFlow, for a while.

  TFDS does not import TensorFlow to read, but it takes that entry for TensorFlow being in use.
  """
  masked = "tensorflow" in sys.modules and sys.modules["tensorflow"] is None
  if masked:
    del sys.modules["tensorflow"]
  try:
    yield
  finally:
    if masked:
      sys.modules["tensorflow"] = None  # type: ignore[assignment]
