"""Registered infrared and visible photographs: A is the infrared picture, B the visible one.

The folders of `manual_dir` may be named as in the public sets, in small letters or capitals:

- infrared `infrared`, `ir` or `cropinfrared`, visible `visible`, `vi`, `vis` or `crop_LR_visible`:
  `ir` and `vi` as TNO is passed on, `Ir` and `Vis` of M3FD_Fusion and M3FD_Detection,
  `cropinfrared` and `crop_LR_visible` of RoadScene;
- the same two under `train`, `val` (or `validation`) and `test`: MSRS has `train/ir`, `train/vi`,
  `test/ir`, `test/vi`;
- `infrared/train`, `infrared/test`, `visible/train`, `visible/test`: LLVIP.

Other folders, such as labels, are left alone, and so is RoadScene's other visible folder,
`crop_HR_visible`. The two pictures of a pair have the same stem.

The split is what the folders say. Where they have no validation, about every tenth stem of the
training pictures is for it, picked by a hash as in `paired_folder`; "test" stays whole. The hash
knows nothing of videos: **where several pictures are frames of one video, divide them yourself**.

Sources: the folders of github.com/Linfeng-Tang/MSRS and what
huggingface.co/datasets/McCheng/LLVIP says of LLVIP's; RoadScene, M3FD and TNO as public programs
read them.
"""

from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from dmfnet_jax.data import builders
from dmfnet_jax.data.builders import paired_folder
from dmfnet_jax.data.builders.paired_folder import Pairs
from dmfnet_jax.data.datasets import DATASETS
from dmfnet_jax.errors import UserError

_INFRARED = ("infrared", "ir", "cropinfrared")
_VISIBLE = ("visible", "vi", "vis", "crop_lr_visible")
_UNDIVIDED = ""
_LAYOUTS = (
  "infrared/ and visible/ (or ir/ and vi/), at the top or under train/, val/ and test/, or with "
  "train/ and test/ in them"
)


class InfraredVisible(tfds.core.GeneratorBasedBuilder):
  """Infrared with visible pictures; see the module's docstring for folders and splits."""

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Give the folder with the pictures as manual_dir: {_LAYOUTS}."

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="Registered infrared and visible pictures from folders of the user's.",
      features=builders.pair_features(),
    )

  def _split_generators(self, dl_manager):
    found = find_pairs(builders.manual_folder(self, dl_manager))
    divided = divide(found)
    self.notes: tuple[str, ...] = ()
    if divided.keys() - found.keys():
      self.notes = (
        "every tenth file or so is for validation; where files are frames of one video, put whole "
        "videos into train/ and val/ instead",
      )
    return {split: self._generate_examples(pairs) for split, pairs in divided.items()}

  def _generate_examples(self, pairs):
    (kind,) = DATASETS["infrared_visible"].kinds
    for stem, paths in pairs.items():
      a, b = builders.read_pair(*paths)
      yield stem, {"a": a, "b": b, "name": stem, "modality": kind}


def find_pairs(manual_dir: Path) -> dict[str, Pairs]:
  """Pairs the pictures under a folder in one of the layouts of the module's docstring.

  Returns:
    For each split that the folders name, or for "" where they name none, a dict from stem to
    (infrared path, visible path). None is empty.

  Raises:
    UserError: There are no pairs, a folder or a partner is missing, or two folders could be meant.
  """
  found: dict[str, tuple[Path, Pairs]] = {}
  for split, a_dir, b_dir in _picture_folders(manual_dir):
    if not (pairs := builders.match_stems(a_dir, b_dir)):
      continue
    other = split if split in found else _UNDIVIDED
    if other in found:
      raise UserError(
        f"pictures in {found[other][0]} and in {a_dir}: divide all of them or none, each once"
      )
    found[split] = a_dir, pairs
  if not found:
    raise UserError(f"no pairs under {manual_dir}; expected {_LAYOUTS}")
  return {split: pairs for split, (_, pairs) in found.items()}


def divide(found: dict[str, Pairs]) -> dict[str, Pairs]:
  """The pairs of `find_pairs` by their splits, of which none is empty, in the order of `SPLITS`.

  Where there is no "validation", the hash takes it from "train", or from what is not divided.
  """
  divided = dict(found)
  whole = divided.pop(_UNDIVIDED, None) or divided.get("train")
  if whole and "validation" not in found:
    divided |= paired_folder.divide_by_hash(whole)
  return {split: divided[split] for split in builders.SPLITS if divided.get(split)}


def _picture_folders(root: Path) -> Iterator[tuple[str, Path, Path]]:
  """Yields (split or "", infrared folder, visible folder), the undivided ones first."""
  for split, folder in [(_UNDIVIDED, root), *_split_folders(root)]:
    infrared, visible = (_only_child(folder, names) for names in (_INFRARED, _VISIBLE))
    if infrared and visible:
      yield split, infrared, visible
    elif infrared or visible:
      lone, missing = (infrared, _VISIBLE) if infrared else (visible, _INFRARED)
      raise UserError(f"{lone} has no partner beside it: expected a folder {' or '.join(missing)}")
    if infrared and visible and not split:
      inner = {(s, child.name) for side in (infrared, visible) for s, child in _split_folders(side)}
      for name_of_split, name in sorted(inner):
        yield name_of_split, infrared / name, visible / name


def _split_folders(folder: Path) -> list[tuple[str, Path]]:
  """(split, folder) of the subfolders that are named for a split."""
  return [
    (builders.SPLIT_FOLDERS[child.name.lower()], child)
    for child in sorted(folder.iterdir())
    if child.name.lower() in builders.SPLIT_FOLDERS and child.is_dir()
  ]


def _only_child(folder: Path, names: tuple[str, ...]) -> Path | None:
  """The subfolder with one of these names, in any case, or None.

  Raises:
    UserError: There are two.
  """
  found = [c for c in sorted(folder.iterdir()) if c.name.lower() in names and c.is_dir()]
  if len(found) > 1:
    raise UserError(f"{folder} has {found[0].name}/ and {found[1].name}/: keep one of them")
  return found[0] if found else None
