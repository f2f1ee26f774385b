"""The options of `dmfnet fuse`, each written once.

The parser, the record beside a result (`record.py`) and the comparison for `--resume`
(`resume.py`) are made from these fields. To parse them only the standard library is imported.
"""

import argparse
import dataclasses
import enum
import functools
from collections.abc import Mapping
from typing import Any

from dmfnet_jax import DEFAULT_MODEL

_MAX_SEED = 2**32 - 1  # JAX takes seeds modulo 2^32 and says nothing
_DEFAULT_LUT = "hot"  # for --rgb alone: the one map whose luma grows with the value

MANY = "many pairs"
MEASURED = "measured values (NIfTI, DICOM, grey pictures of any depth)"
VOLUMES = "volumes (NIfTI, DICOM)"


# What depends on an option: the fused values (--resume compares it, the record repeats it), which
# further files there are (compared), which pairs are refused (repeated), or only how the run goes.
Changes = enum.Enum("Changes", ["RESULT", "FILES", "PAIRS", "NOTHING"])
RESULT, FILES, PAIRS, NOTHING = Changes


def _option(default: Any, changes: Changes, text: str, group: str = "", **parsed: Any) -> Any:
  """A field with what it says about itself; `parsed` is for `ArgumentParser.add_argument`."""
  about = {"changes": changes, "group": group, "parsed": {"help": text, **parsed}}
  return dataclasses.field(default=default, metadata=about)


def _window(letter: str) -> Any:
  text = f"values of {letter} that become black and white; or 0%%,99%% (of what is not 0), "
  text += "suv:0,7, W80L40, brain, bone, lung, or auto: 0.5%%,99.5%% (pictures: as stored; DICOM: "
  text += "the file's; PET and SPECT: 0 to the maximum; others: auto)"
  return _option(None, RESULT, text, MEASURED, metavar="LO,HI")


def _tile(text: str) -> int | str:
  """Reads --tile."""
  if text in ("auto", "off"):
    return text
  try:
    return int(text)
  except ValueError:
    raise argparse.ArgumentTypeError(f"auto, off or a side in pixels, not {text!r}") from None


def _rgb(text: str) -> bool | str:
  """Reads what may stand behind --rgb."""
  if text in ("rgb24", "4d"):
    return text == "rgb24" or text
  raise argparse.ArgumentTypeError(f"rgb24 or 4d, not {text!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseOptions:
  """What a run was asked to do, in the words of the command line."""

  model: str = _option(
    DEFAULT_MODEL,
    RESULT,
    "a released model, a .safetensors file, a workdir or hf://OWNER/NAME (%(default)s)",
    metavar="NAME|FILE|WORKDIR",
  )
  seed: int = _option(0, RESULT, "of the noise (%(default)s)", bounds=(0, _MAX_SEED))
  batch_size: int | None = _option(
    None,
    NOTHING,
    "pairs or slices fused at a time, over all devices (by default as many as suit their size)",
    bounds=(1, None),
    metavar="N",
  )
  samples: int | None = _option(
    None,
    RESULT,
    "fuse with K noise draws: writes their mean, and their standard deviation in grey levels as "
    "STEM_std.tiff (volumes: STEM_std.nii.gz) and drawn over the picture as STEM_std.png",
    bounds=(1, None),
    metavar="K",
  )
  overlay: float | None = _option(
    None,
    FILES,
    "also lay B (of more sources the last one) over A at this opacity, 0 to 1, to compare with: "
    "STEM_overlay.png (volumes: STEM_overlay.nii.gz, and into the montage); of a grey B in the "
    "colours of --lut, or in hot",
    bounds=(0.0, 1.0),
    metavar="ALPHA",
  )
  emphasis: str | None = _option(
    None,
    RESULT,
    "tracer: more uptake is brighter, for PET and SPECT: the coarse scale of the luma follows B, "
    "the detail is the model's",
    choices=("tracer",),
  )
  tile: int | str = _option(
    "auto",
    RESULT,
    "fuse pictures with a longer side in overlapping tiles of N; auto: of 1024 where they do not "
    "fit the memory; off: never (%(default)s)",
    type=_tile,
    metavar="auto|N|off",
  )
  strict: bool = _option(False, NOTHING, "do not start where a file has no partner")
  precision: str = _option(
    "float32",
    RESULT,
    "of the networks' arithmetic; bfloat16 is for accelerators (%(default)s)",
    choices=("float32", "bfloat16"),
  )
  suffix_a: str = _option(
    "",
    RESULT,
    "the ending of A's names, such as _T1w, cut off to find its partner: A and B may then be one "
    "folder (of BIDS and nnU-Net by themselves)",
    MANY,
    metavar="ENDING",
  )
  suffix_b: str = _option(
    "", RESULT, "the ending of B's names, such as _pet", MANY, metavar="ENDING"
  )
  pairs: str | None = _option(
    None,
    PAIRS,
    "a list in place of A and B: a line each the paths of A and B and, if wanted, a name, from the "
    "list's folder on, or from the folders A and B where they are given",
    MANY,
    metavar="FILE.csv",
  )
  resume: bool = _option(
    False, NOTHING, "leave out pairs whose result is in OUT, by this model and these options", MANY
  )
  shard: str | None = _option(
    None,
    NOTHING,
    "fuse every N-th pair from the I-th on, I from 0: one of N processes (by default what the "
    "launcher says, such as JAX_PROCESS_ID and JAX_NUM_PROCESSES)",
    MANY,
    metavar="I/N",
  )
  window_a: str | None = _window("A")
  window_b: str | None = _window("B")
  window_c: str | None = _window("C")
  lut: str | None = _option(
    None,
    RESULT,
    "colour a grey B (of more sources the last one): hot, pet, spectrum, HOT_IRON and others of "
    "DICOM, a name of matplotlib (NAME_r: reversed), or a table (also .cmap, .ctbl)",
    MEASURED,
    metavar="NAME|FILE",
  )
  axis: str | None = _option(
    None,
    RESULT,
    "the slices to fuse; 0, 1, 2: across that axis of A's array (axial, or of a single slice)",
    VOLUMES,
    choices=("axial", "coronal", "sagittal", "0", "1", "2"),
  )
  resample: bool = _option(
    False, RESULT, "put B (and C) on A's grid by their headers, where they differ", VOLUMES
  )
  save_b: bool = _option(
    False,
    FILES,
    "also write B on A's grid in its own values, STEM_resampled.nii.gz (C: "
    "STEM_resampled_c.nii.gz)",
    VOLUMES,
  )
  same_frame: bool = _option(
    False, PAIRS, "take DICOM series for registered whose FrameOfReferenceUIDs differ", VOLUMES
  )
  rgb: bool | str = _option(
    False,
    RESULT,
    "also write a coloured volume, STEM_rgb.nii.gz, in hot without --lut: as RGB24, which viewers "
    "read and nilearn does not; with 4d as three volumes, red, green, blue",
    VOLUMES,
    nargs="?",
    const=True,
    type=_rgb,
    metavar="4d",
  )
  montage: str | None = _option(
    None,
    FILES,
    "also show a few slices of A, B and the result (of folders: a folder for STEM.png)",
    VOLUMES,
    metavar="FILE.png",
  )
  png: bool = _option(False, FILES, "also write every slice as a picture, into STEM_png", VOLUMES)

  @functools.cached_property
  def windows(self) -> Mapping[str, Any]:
    """The windows asked for, of "a", "b" and "c", as `windows.parse_window` reads them, or None.

    Raises:
      UserError: there is one that cannot be.
    """
    from dmfnet_jax.io.windows import parse_window

    given = {"a": self.window_a, "b": self.window_b, "c": self.window_c}
    return {k: None if text is None else parse_window(text) for k, text in given.items()}

  @property
  def volume_lut(self) -> str | None:
    """The name of a scalar volume's colour map; of a grey picture's it is `lut`."""
    return self.lut or (_DEFAULT_LUT if self.rgb else None)

  @functools.cached_property
  def table(self) -> Any:
    """The colour map itself, uint8 [256, 3].

    Raises:
      UserError: there is none of that name.
    """
    from dmfnet_jax.io import scaling

    return scaling.read_lut(self.lut or _DEFAULT_LUT)


FIELDS = {field.name: field for field in dataclasses.fields(FuseOptions)}


def flag(name: str) -> str:
  """A field as the command line has it, without the two dashes."""
  return name.replace("_", "-")
