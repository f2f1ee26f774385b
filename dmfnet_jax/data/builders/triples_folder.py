"""Three folders of registered sources and one of fused pictures to imitate, all in colour.

Laid out under `manual_dir`, or under `train`, `validation` and, if wanted, `test` in it, as one of

- `a`, `b`, `c` and `target`, whose pictures have equal stems;
- `1_sr_L_R`, `2_sr_L_R`, `3_sr_L_R` and `hr_R`, as published sets for super-resolution have them:
  sources of L pixels that were enlarged to R. Their files belong together by their order, and that
  is taken where the stems differ. Others, such as `1_lr_L`, are left alone.

What is not divided is divided by a hash of the stem of `a`, which knows nothing of patients:
**where several pictures are slices of one patient, divide them yourself**.
"""

import re
from pathlib import Path

import tensorflow_datasets as tfds

from dmfnet_jax.data import builders
from dmfnet_jax.data.builders import paired_folder
from dmfnet_jax.errors import UserError
from dmfnet_jax.io.pictures import list_images, read_image

FIELDS = ("a", "b", "c", "target")
_PUBLISHED = (r"1_sr_\d+_\d+", r"2_sr_\d+_\d+", r"3_sr_\d+_\d+", r"hr_\d+")
_LAYOUTS = "a/, b/, c/ and target/, or 1_sr_L_R/, 2_sr_L_R/, 3_sr_L_R/ and hr_R/"

Examples = dict[str, tuple[Path, ...]]  # by stem, in the order of `FIELDS`


class TriplesFolder(tfds.core.GeneratorBasedBuilder):
  """Three sources and a target; see the module's docstring."""

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Give as manual_dir a folder with {_LAYOUTS} in it."

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="Registered triples with a fused picture, from folders of the user's.",
      features=builders.picture_features({name: 3 for name in FIELDS}),
    )

  def _split_generators(self, dl_manager):
    found, self.notes = find_examples(builders.manual_folder(self, dl_manager))
    return {split: self._generate_examples(examples) for split, examples in found.items()}

  def _generate_examples(self, examples):
    for stem, paths in examples.items():
      pictures = [builders.three_channels(read_image(path)) for path in paths]
      for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != pictures[0].shape:
          sizes = [f"{x.shape[1]} x {x.shape[0]}" for x in (picture, pictures[0])]
          raise UserError(f"{path} is {sizes[0]} but {paths[0]} is {sizes[1]}: give all one size")
      yield stem, dict(zip(FIELDS, pictures, strict=True)) | {"name": stem, "modality": "other"}


def find_examples(manual_dir: Path) -> tuple[dict[str, Examples], tuple[str, ...]]:
  """Finds what belongs together in one of the layouts of the module's docstring.

  Returns:
    For each split a dict from stem to the paths; and what to tell the user.

  Raises:
    UserError: a folder or a picture is missing, or there are none.
  """
  divided = {
    builders.SPLIT_FOLDERS[child.name.lower()]: child
    for child in sorted(manual_dir.iterdir())
    if child.name.lower() in builders.SPLIT_FOLDERS and child.is_dir()
  }
  if divided:
    found = {split: _together(folder) for split, folder in divided.items()}
    return {split: found[split] for split in builders.SPLITS if split in found}, ()
  note = (
    "every tenth file or so is for validation; where a patient has several slices, put whole "
    "patients into train/ and validation/ instead"
  )
  found = paired_folder.divide_by_hash(_together(manual_dir))
  return {split: examples for split, examples in found.items() if examples}, (note,)


def _together(root: Path) -> Examples:
  """The examples of one split."""
  folders = _folders(root)
  listed = [list_images(folder) for folder in folders]
  stems = list(listed[0])
  if not stems:
    raise UserError(f"no pictures in {folders[0]}")
  by_order = folders[0].name != FIELDS[0]
  for folder, files in zip(folders, listed, strict=True):
    if len(files) != len(stems) or not (by_order or list(files) == stems):
      raise UserError(f"{folder} has not one picture for each of the {len(stems)} in {folders[0]}")
  return {
    stem: tuple(paths) for stem, *paths in zip(stems, *(x.values() for x in listed), strict=True)
  }


def _folders(root: Path) -> list[Path]:
  """The folders of the fields, in their order."""
  names = sorted(child.name for child in root.iterdir() if child.is_dir())
  for patterns in (FIELDS, _PUBLISHED):
    found = [[n for n in names if re.fullmatch(pattern, n)] for pattern in patterns]
    if any(len(same) > 1 for same in found):
      several = next(same for same in found if len(same) > 1)
      raise UserError(f"{root} has {several[0]}/ and {several[1]}/: keep one of them")
    if all(found):
      return [root / same[0] for same in found]
  raise UserError(f"{root}: expected {_LAYOUTS}")
