"""The arguments of `dmfnet fuse` and `dmfnet export`.

Only the standard library is imported to parse them.
"""

import argparse
import re
from collections.abc import Callable, Sequence

_MAX_SEED = 2**32 - 1  # JAX takes seeds modulo 2^32 and says nothing

_NEGATIVE = re.compile(r"-\.?\d")


def add_arguments(fuse: argparse.ArgumentParser) -> None:
  """Declares the arguments; `fuse_files` says what each does."""
  fuse.add_argument(
    "a", metavar="A", help="MRI: a picture, a NIfTI or DICOM file, a series, or a folder of pairs"
  )
  fuse.add_argument(
    "b", metavar="B", help="CT, PET or SPECT: the same kind; in folders pairs share their stem"
  )
  fuse.add_argument(
    "-o",
    "--out",
    metavar="OUT",
    required=True,
    help="a file, or a folder for one STEM.png or STEM.nii.gz a pair, or for a DICOM series",
  )
  fuse.add_argument(
    "--model",
    metavar="NAME|FILE|WORKDIR",
    default="small",
    help="a released model, a .safetensors file or a training workdir (%(default)s)",
  )
  fuse.add_argument("--seed", type=whole(0, _MAX_SEED), default=0, help="of the noise (0)")
  fuse.add_argument(
    "--batch-size",
    metavar="N",
    type=whole(1),
    help="pairs or slices fused at a time on a device (by their size)",
  )
  fuse.add_argument(
    "--samples",
    metavar="K",
    type=whole(1),
    help="fuse with K noise draws: writes their mean, and their standard deviation in grey levels "
    "as STEM_std.tiff (volumes: STEM_std.nii.gz) and drawn over the picture as STEM_std.png",
  )
  fuse.add_argument(
    "--strict", action="store_true", help="do not start where a file has no partner"
  )
  _add_precision(fuse)
  jobs = fuse.add_argument_group("many pairs")
  jobs.add_argument(
    "--resume",
    action="store_true",
    help="leave out the pairs whose result is in OUT already, made by this model and these options",
  )
  jobs.add_argument(
    "--shard",
    metavar="I/N",
    help="fuse every N-th pair from the I-th on, I from 0: one of N processes (by default "
    "JAX_PROCESS_ID/JAX_NUM_PROCESSES, where these are set)",
  )
  measured = fuse.add_argument_group("measured values (NIfTI, DICOM, grey pictures of any depth)")
  for letter in ("a", "b"):
    measured.add_argument(
      f"--window-{letter}",
      metavar="LO,HI",
      help=f"values of {letter.upper()} that become black and white, or auto: percentiles 0.5 and "
      "99.5 of what is not 0 (pictures: as stored; DICOM: the file's; others: auto)",
    )
  measured.add_argument(
    "--lut", metavar="NAME|FILE", help="colour a grey B: hot, pet, spectrum, or a table in a file"
  )
  volumes = fuse.add_argument_group("volumes (NIfTI, DICOM)")
  volumes.add_argument(
    "--axis",
    choices=("axial", "coronal", "sagittal", "0", "1", "2"),
    help="the slices to fuse; 0, 1, 2: across that axis of A's array (axial)",
  )
  volumes.add_argument(
    "--resample", action="store_true", help="put B on A's grid by their headers, where they differ"
  )
  volumes.add_argument(
    "--rgb",
    action="store_true",
    help="also write the coloured volume, STEM_rgb.nii.gz; B in hot without --lut",
  )
  volumes.add_argument(
    "--montage",
    metavar="FILE.png",
    help="also show a few slices of A, B and the result (of folders: a folder for STEM.png)",
  )
  volumes.add_argument(
    "--png", action="store_true", help="also write every slice as a picture, into STEM_png"
  )


def add_export_arguments(export: argparse.ArgumentParser) -> None:
  """Declares the arguments; `export_model` says what each does."""
  export.add_argument(
    "model", metavar="MODEL", help="a released model, a .safetensors file or a training workdir"
  )
  export.add_argument("-o", "--out", metavar="FILE", required=True, help="to write")
  export.add_argument(
    "--size",
    metavar="N|HxW",
    type=_size,
    default=(256, 256),
    help="of the pictures: a side, or height x width; any (256)",
  )
  export.add_argument(
    "--batch",
    metavar="N",
    type=whole(1),
    default=1,
    help="pairs that go through the networks at a time; the program takes any multiple of it "
    "(%(default)s)",
  )
  _add_precision(export)


def _add_precision(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--precision",
    choices=("float32", "bfloat16"),
    default="float32",
    help="of the networks' arithmetic; bfloat16 is for accelerators (%(default)s)",
  )


def run(args: argparse.Namespace) -> int:
  """Fuses; returns the exit code."""
  from dmfnet_jax.inference.files import fuse_files

  return fuse_files(
    args.model,
    args.a,
    args.b,
    args.out,
    seed=args.seed,
    batch_size=args.batch_size,
    samples=args.samples,
    strict=args.strict,
    window_a=args.window_a,
    window_b=args.window_b,
    lut=args.lut,
    axis=args.axis,
    resample=args.resample,
    rgb=args.rgb,
    montage=args.montage,
    png=args.png,
    precision=args.precision,
    resume=args.resume,
    shard=args.shard,
  )


def run_export(args: argparse.Namespace) -> None:
  """Exports."""
  from dmfnet_jax.inference.export import export_model

  export_model(args.model, args.out, size=args.size, batch=args.batch, precision=args.precision)


def join_windows(argv: Sequence[str]) -> list[str]:
  """Writes `--window-a -160,240` as one argument: argparse would take the value for an option."""
  joined: list[str] = []
  for argument in argv:
    if joined and joined[-1] in ("--window-a", "--window-b") and _NEGATIVE.match(argument):
      joined[-1] += f"={argument}"
    else:
      joined.append(argument)
  return joined


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
  """Returns a parser of whole numbers within the bounds."""

  def whole_number(text: str) -> int:
    value = int(text)
    if value < minimum or (maximum is not None and value > maximum):
      bounds = f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"
      raise argparse.ArgumentTypeError(f"{value} is out of range: {bounds}")
    return value

  return whole_number


def _size(text: str) -> tuple[int, int]:
  """Parses a side, or height x width."""
  sides = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
  if not sides or 0 in (height_width := (int(sides[1]), int(sides[2] or sides[1]))):
    raise argparse.ArgumentTypeError(f"{text!r} is no size: use 256, or 240x320 (height x width)")
  return height_width
