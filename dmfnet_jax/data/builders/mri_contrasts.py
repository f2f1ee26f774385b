"""Registered contrasts of MR brain scans, for methods that make one of others: T1, T1ce, T2, FLAIR.

Laid out under `manual_dir`, or under `train`, `val` (or `validation`) and `test` in it, as one of

- folders `t1`, `t1ce`, `t2` and `flair` of pictures of equal stems, which are the subject and the
  slice's number: `01030.png`, `BraTS18_CBICA_AAB_1_045.png`. Of digits alone the last three are the
  slice's;
- a folder per subject, or those under `HGG` and `LGG`, with `SUBJECT_t1.nii.gz` and so on, as BraTS
  has them; also `-t1n`, `-t1c`, `-t2w` and `-t2f`, as since 2023. Their axial slices are taken in
  which every contrast shows something, through the window that the commands choose.

A folder that is missing is a contrast that is not there, but at least three are wanted. Slices of
240 x 240, first axis first, are cut to [40:200, 20:200], which is what the programs of this field
take of BraTS'.

Where the folders name no validation, about every tenth subject goes there, picked by a hash of its
name. No subject is in two splits.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from dmfnet_jax.data import builders
from dmfnet_jax.data.builders import paired_folder
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import grids, nifti, scaling
from dmfnet_jax.io.color import to_grey
from dmfnet_jax.io.pictures import list_images, read_image
from dmfnet_jax.io.slice_names import subject_and_slice
from dmfnet_jax.io.windows import choose_window

CONTRASTS = ("t1", "t1ce", "t2", "flair")
_NEWER = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
_VOLUME = re.compile(
  rf"(?P<subject>.+)[_-](?P<contrast>{'|'.join((*CONTRASTS, *_NEWER))})\.nii(\.gz)?", re.IGNORECASE
)
_WHOLE, _WINDOW = (240, 240), np.s_[40:200, 20:200]
_FEWEST = 3  # two inputs and what is to be made of them
_LAYOUTS = (
  "t1/, t1ce/, t2/ and flair/ with pictures, or a folder per subject with SUBJECT_t1.nii.gz and so "
  "on; at the top or under train/, val/ and test/"
)


class Scan(NamedTuple):
  """What one subject has: paths by contrast, a volume each, or of each slice a picture each.

  Attributes:
    paths: the name of an example, or of the subject where they are volumes, to paths by contrast.
    is_volume: whether they are volumes.
  """

  paths: dict[str, dict[str, Path]]
  is_volume: bool


Subjects = dict[str, Scan]


class MriContrasts(tfds.core.GeneratorBasedBuilder):
  """Contrasts of MR brain scans; see the module's docstring.

  Args:
    fields: The contrasts; by default all of `CONTRASTS`.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Give the folder with the scans as manual_dir: {_LAYOUTS}."

  def __init__(self, *, fields: tuple[str, ...] = CONTRASTS, **kwargs):
    self._fields = fields
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="Registered contrasts of MR brain scans from folders of the user's.",
      features=builders.picture_features(dict.fromkeys(self._fields, 1)),
    )

  def _split_generators(self, dl_manager):
    divided = find_subjects(builders.manual_folder(self, dl_manager))
    self.notes = (
      f"contrasts: {', '.join(self._fields)}",
      *(f"{split}: subjects {', '.join(subjects)}" for split, subjects in divided.items()),
    )
    return {split: self._generate_examples(subjects) for split, subjects in divided.items()}

  def _generate_examples(self, subjects: Subjects):
    for subject, scan in subjects.items():
      for name, slices in read_slices(subject, scan):
        yield name, slices | {"name": name, "modality": "MRI"}

  @staticmethod
  def find_fields(manual_dir: Path) -> tuple[str, ...]:
    """The contrasts that every subject has."""
    scans = next(iter(find_subjects(manual_dir).values())).values()
    paths = next(iter(next(iter(scans)).paths.values()))
    return tuple(contrast for contrast in CONTRASTS if contrast in paths)


def find_subjects(manual_dir: Path) -> dict[str, Subjects]:
  """The subjects of each split.

  Raises:
    UserError: there are none, fewer than three contrasts, one that some subject or slice lacks, or
      a subject in two splits.
  """
  folders = {
    builders.SPLIT_FOLDERS[child.name.lower()]: child
    for child in (sorted(manual_dir.iterdir()) if manual_dir.is_dir() else ())
    if child.name.lower() in builders.SPLIT_FOLDERS and child.is_dir()
  }
  found = {split: _list_subjects(folders[split]) for split in builders.SPLITS if split in folders}
  if not found:
    found = {"train": _list_subjects(manual_dir)} if manual_dir.is_dir() else {}
  everyone = [
    (f"{split} {subject} {name}", paths)
    for split, subjects in found.items()
    for subject, scan in subjects.items()
    for name, paths in scan.paths.items()
  ]
  if not found.get("train"):
    raise UserError(f"no scans to train on under {manual_dir}; expected {_LAYOUTS}")
  known = [c for c in CONTRASTS if any(c in paths for _, paths in everyone)]
  if len(known) < _FEWEST:
    raise UserError(f"{manual_dir} has {', '.join(known)} alone; expected three of {_LAYOUTS}")
  for where, paths in everyone:
    if lacking := [contrast for contrast in known if contrast not in paths]:
      raise UserError(f"{manual_dir}: {where} has no {lacking[0]}, which others have")
  if "validation" not in found:
    found |= paired_folder.divide_by_hash(found["train"])
  seen: dict[str, str] = {}
  for split, subjects in found.items():
    for subject in subjects:
      if subject in seen:
        raise UserError(f"{manual_dir}: subject {subject} is in {seen[subject]} and in {split}")
      seen[subject] = split
  return {split: found[split] for split in builders.SPLITS if found.get(split)}


def read_slices(subject: str, scan: Scan) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
  """The examples of a subject: name, and uint8 [H, W, 1] by contrast.

  Raises:
    UserError: a file cannot be read, or the contrasts lie on different grids.
  """
  for name, paths in scan.paths.items():
    if scan.is_volume:
      yield from _of_volumes(subject, paths)
      continue
    pictures = {contrast: to_grey(read_image(path)) for contrast, path in paths.items()}
    sizes = {picture.shape for picture in pictures.values()}
    if len(sizes) > 1:
      told = ", ".join(
        f"{contrast} is {p.shape[1]} x {p.shape[0]}" for contrast, p in pictures.items()
      )
      raise UserError(f"{next(iter(paths.values()))}: {told}: contrasts must be registered")
    yield name, {contrast: _cut(picture)[..., None] for contrast, picture in pictures.items()}


def _of_volumes(
  subject: str, paths: dict[str, Path]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
  volumes = {contrast: nifti.read_nifti(path) for contrast, path in paths.items()}
  first, *others = volumes.values()
  for other, path in zip(others, list(paths.values())[1:], strict=True):
    if apart := grids.difference(first, other):
      raise UserError(f"{path}: lies on another grid than the first contrast: {apart}")
  stacks = {}
  for contrast, volume in volumes.items():
    window = choose_window(volume.data, paths[contrast], None).window
    shown = _cut(scaling.to_uint8(volume.data, window))
    stacks[contrast] = grids.to_pictures(shown, first.affine, "axial")
  for i in range(len(next(iter(stacks.values())))):
    slices = {contrast: stack[i, ..., None] for contrast, stack in stacks.items()}
    if all(x.any() for x in slices.values()):
      yield f"{subject}_{i:03d}", slices


def _cut(image: np.ndarray) -> np.ndarray:
  """What is left of a slice, or of a volume's first two axes."""
  return image[_WINDOW] if image.shape[:2] == _WHOLE else image


def _list_subjects(folder: Path) -> Subjects:
  """The subjects of one split by name, in one of the layouts."""
  folders = {child.name.lower(): child for child in folder.iterdir() if child.is_dir()}
  listed = {c: list_images(folders[c]) for c in CONTRASTS if c in folders}
  found: dict[str, dict[str, dict[str, Path]]] = {}
  for contrast, files in listed.items():
    for stem, path in files.items():
      subject, _ = subject_and_slice(stem)
      found.setdefault(subject, {}).setdefault(stem, {})[contrast] = path
  if found:
    return {subject: Scan(paths, False) for subject, paths in sorted(found.items())}
  volumes: dict[str, dict[str, Path]] = {}
  for path in sorted(folder.glob("*/*.nii*")) + sorted(folder.glob("[HL]GG/*/*.nii*")):
    if match := _VOLUME.fullmatch(path.name):
      contrast = match["contrast"].lower()
      volumes.setdefault(match["subject"], {})[_NEWER.get(contrast, contrast)] = path
  return {subject: Scan({subject: paths}, True) for subject, paths in sorted(volumes.items())}
