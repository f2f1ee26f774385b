"""Computes, through public interfaces, what a change of the program's structure must not change.

    JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 python tests/unchanged.py --out FILE.npz

`test_unchanged.py` runs it so and compares with `golden/unchanged.npz`, which it wrote with version
0.1.0. Its parts:

    fusing    demo pictures and a volume, fused by the released models
    training  twenty steps of both stages of the recipe `tiny`
    metrics   of the authors' fused pictures, where `../shared` has them

What a part lacks (TensorFlow, `../shared`) it leaves out. The arrays:

    demo/NAME            every 8th pixel of a demo pair, uint8 [32, 32, 4]: A, and B's colours
    fused/...            uint8, fused pictures and volumes
    floats/...           float32, deviations and a picture in [-1, 1]
    volume/...           float64, the fused volume's affine and windows
    losses/STAGE/NAME    float64, a line of metrics.jsonl each
    leaves/STAGE/...     of each leaf of the trained model: path, mean, largest value, and
                         the first 32 values (NaN where there are fewer)
    metrics/...          names of pairs [N] and of metrics [M], values float64 [N, M]
"""

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from PIL import Image

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "data" / "harvard" / "reference"
STEPS = 20
FIRST = 32  # values of a leaf that are kept
# Fields of metrics.jsonl that differ from run to run.
TIMES = ("steps_per_second", "images_per_second", "data_wait_fraction", "device_memory_gib")

Arrays = dict[str, np.ndarray]
Picture = np.ndarray


class Program(NamedTuple):
  """The program's interfaces that are used here.

  Attributes:
    main: runs the command with a list of words.
    load_model: loads a model to fuse with.
    load_params: loads parameters and config of a model or a training workdir.
    demo_pairs: makes the demo's pairs (a, b, name).
    recipes: stage -> the words that choose the recipe `tiny`.
    start: the config field that names the run on which Stage II begins.
  """

  main: Callable[[Sequence[str]], int]
  load_model: Callable[..., Any]
  load_params: Callable[..., tuple[dict[str, Any], dict[str, Any]]]
  demo_pairs: Callable[[], list[tuple[Picture, Picture, str]]]
  recipes: Mapping[int, str]
  start: str


def find_program(old: bool) -> Program:
  """Imports all that is used of the package.

  Args:
    old: as it was in version 0.1.0.
  """
  import dmfnet_jax
  from dmfnet_jax.cli import main
  from dmfnet_jax.data.builders.mni_template import demo_pairs

  if old:
    from dmfnet_jax.inference.model import load_params

    recipes = {stage: f"configs/tiny_stage{stage}.py" for stage in (1, 2)}
    return Program(main, dmfnet_jax.load_model, load_params, demo_pairs, recipes, "stage1")
  from dmfnet_jax.weights import load_params

  recipes = {stage: f"configs/dmfnet.py:stage={stage},size=tiny" for stage in (1, 2)}
  return Program(main, dmfnet_jax.load_model, load_params, demo_pairs, recipes, "start")


def cut(picture: Picture, height: int, width: int) -> Picture:
  """Cuts the middle out of a picture."""
  top, left = ((size - n) // 2 for size, n in zip(picture.shape[:2], (height, width), strict=True))
  return np.ascontiguousarray(picture[top : top + height, left : left + width])


def run(program: Program, *words: Any) -> None:
  """Runs the command, which must end well."""
  code = program.main([str(word) for word in words])
  if code:
    raise SystemExit(f"dmfnet {' '.join(map(str, words))}: exit code {code}")


def fusing(program: Program, folder: Path) -> Arrays:
  """Pictures of odd sizes, alone, in a batch and in lists, grey and coloured; and a volume."""
  arrays: Arrays = {}
  demo = program.demo_pairs()
  for a, b, name in demo:
    pair = np.concatenate([a[..., None], b], axis=-1)
    arrays[f"demo/{name}"] = np.ascontiguousarray(pair[::8, ::8])

  # Few sizes: for each of them, and each model, a program is compiled.
  small, large = (37, 91), (130, 201)
  pairs = {name: (cut(a, *small), cut(b, *small)) for a, b, name in demo}
  names = list(pairs)
  coloured, grey = names[0], names[2]
  first, ct = pairs[coloured], pairs[grey]

  model = program.load_model("small")
  arrays[f"fused/small/{coloured}"] = model.fuse(*first, names=coloured)
  arrays["fused/small/grey"] = model.fuse(ct[0], ct[1][..., 0], names=grey)

  model = program.load_model("small-fast")
  for name, (a, b) in pairs.items():
    arrays[f"fused/small-fast/{name}"] = model.fuse(a, b, names=name)
  arrays["fused/small-fast/seed"] = model.fuse(*first, seed=2**32 - 1, names=coloured)
  arrays["fused/small-fast/unnamed"] = model.fuse(*first)
  batch = [np.stack([pairs[name][i] for name in names[:3]]) for i in (0, 1)]
  arrays["fused/small-fast/batch"] = model.fuse(*batch, names=names[:3])
  # Of two padded sizes, one of which two sizes share; the second one's B is grey.
  sizes = [large, small, (41, 85)]
  three = list(zip(demo[:3], sizes, strict=True))
  chosen = [[cut(pair[i], *size) for pair, size in three] for i in (0, 1)]
  chosen[1][1] = np.ascontiguousarray(chosen[1][1][..., 0])
  for i, picture in enumerate(model.fuse(*chosen, seed=1, names=names[:3])):
    arrays[f"fused/small-fast/list/{i}"] = picture
  mean, deviation = model.fuse(*first, names=coloured, samples=2)
  arrays["fused/small-fast/samples"] = mean
  arrays["floats/small-fast/deviation"] = deviation
  signed = [(x / np.float32(127.5) - 1).astype(np.float32) for x in first]
  arrays["floats/small-fast/signed"] = model.fuse(*signed, names=coloured)

  return arrays | volume(program, folder)


def volume(program: Program, folder: Path) -> Arrays:
  """A slab of the ICBM152 template and a PET made of its tissues, fused by the command."""
  a, b, out = (folder / f"{name}.nii.gz" for name in ("a", "b", "out"))
  data = Path(str(importlib.util.find_spec("nilearn").origin)).parent / "datasets" / "data"
  volumes = {}
  for kind in ("t1", "gm", "wm"):
    image = nibabel.load(data / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    # Every second voxel; 91 x 37 of them, a size that pictures have had.
    volumes[kind] = np.asarray(image.dataobj[8:190:2, 80:154:2, 60:76:2])
    affine = image.affine @ nibabel.affines.from_matvec(np.diag([2, 2, 2]), [8, 80, 60])
  pet = 40 * volumes["gm"].astype(np.float32) + 10 * volumes["wm"]
  nibabel.save(nibabel.Nifti1Image(volumes["t1"], affine), a)
  nibabel.save(nibabel.Nifti1Image(pet, affine), b)
  run(program, "fuse", a, b, "-o", out, "--model", "small-fast", "--rgb")
  record = json.loads((folder / "out.json").read_text())
  rgb = np.asarray(nibabel.load(folder / "out_rgb.nii.gz").dataobj)
  return {
    "fused/volume": np.asarray(nibabel.load(out).dataobj),
    "fused/volume_rgb": np.stack([rgb[channel] for channel in "RGB"], axis=-1),
    "volume/affine": nibabel.load(out).affine,
    "volume/windows": np.array([record["window_a"], record["window_b"]], np.float64),
  }


def training(program: Program, folder: Path) -> Arrays:
  """Both stages, the second on the first: what each step lost, and what was trained."""
  if not importlib.util.find_spec("tensorflow"):  # it prepares the dataset
    return {}
  for index, (a, b, name) in enumerate(program.demo_pairs()):
    split = folder / "pictures" / ("train" if index < 4 else "validation")
    for side, picture in (("a", a), ("b", b)):
      (split / side).mkdir(parents=True, exist_ok=True)
      Image.fromarray(cut(picture, 70 + 2 * index, 90)).save(split / side / f"{name}.png")
  data = folder / "data"
  run(
    program,
    *("data", "prepare", "paired_folder"),
    *("--data-dir", data, "--manual-dir", folder / "pictures"),
  )
  arrays: Arrays = {}
  for stage, recipe in program.recipes.items():
    workdir = folder / f"stage{stage}"
    fields = {
      "dataset": "paired_folder",
      "data_dir": data,
      "num_train_steps": STEPS,
      "log_every_steps": 1,
      "eval_every_steps": 0,
      "sample_every_steps": 0,
      "checkpoint_every_steps": 0,
      "eval_batch_size": 2,
    }
    if stage == 2:
      fields[program.start] = folder / "stage1"
    overrides = [f"--config.{field}={value}" for field, value in fields.items()]
    run(program, "train", "--config", recipe, "--workdir", workdir, *overrides)
    arrays |= losses(workdir / "metrics.jsonl", f"losses/stage{stage}")
    params, _ = program.load_params(str(workdir))
    arrays |= digest(params, f"leaves/stage{stage}")
  return arrays


def losses(path: Path, name: str) -> Arrays:
  """The numbers of metrics.jsonl, by name, in the order of the steps; without times."""
  columns: dict[str, list[float]] = {}
  for line in path.read_text().splitlines():
    for field, value in json.loads(line).items():
      columns.setdefault(field, []).append(value)
  return {
    f"{name}/{field}": np.array(values, np.float64)
    for field, values in columns.items()
    if field not in (*TIMES, "step")
  }


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
  """The arrays of nested dicts with their paths, sorted by name at each level."""
  if not isinstance(tree, Mapping):
    yield path, np.ascontiguousarray(tree)
    return
  for name in sorted(tree):
    yield from leaves(tree[name], f"{path}/{name}" if path else name)


def digest(params: Mapping[str, Any], name: str) -> Arrays:
  """What is kept of parameters: little, and enough to tell whether they are the same."""
  flat = dict(leaves(params))
  first = np.full((len(flat), FIRST), np.nan, np.float32)
  for row, leaf in zip(first, flat.values(), strict=True):
    row[: leaf.size] = leaf.ravel()[:FIRST]
  return {
    f"{name}/path": np.array(list(flat)),
    f"{name}/mean": np.array([x.mean(dtype=np.float64) for x in flat.values()]),
    f"{name}/largest": np.array([np.abs(x).max() for x in flat.values()], np.float32),
    f"{name}/first": first,
  }


def metrics(program: Program, folder: Path) -> Arrays:
  """The twelve metrics of the fused pictures that the authors released."""
  rows: dict[str, dict[str, float]] = {}
  for sources in sorted(REFERENCE.glob("*/mri")):
    pairs, file = sources.parent, folder / f"{sources.parent.name}.json"
    words = ["--a", sources, "--b", pairs / "other", "--fused", pairs / "fused", "--json", file]
    run(program, "evaluate", *words)
    measured = json.loads(file.read_text())["pairs"]
    rows |= {f"{pairs.name}/{stem}": values for stem, values in measured.items()}
  if not rows:
    return {}
  names = list(next(iter(rows.values())))
  return {
    "metrics/pairs": np.array(list(rows)),
    "metrics/names": np.array(names),
    "metrics/values": np.array([[row[name] for name in names] for row in rows.values()]),
  }


PARTS = {"fusing": fusing, "training": training, "metrics": metrics}


def main() -> None:
  """Writes the file."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--out", metavar="FILE.npz", required=True, help="to write")
  parser.add_argument("--old", action="store_true", help="the program is that of version 0.1.0")
  parser.add_argument(
    "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="by default all"
  )
  args = parser.parse_args()

  program = find_program(args.old)
  arrays: Arrays = {}
  for part in args.parts:
    with tempfile.TemporaryDirectory() as folder:
      arrays |= PARTS[part](program, Path(folder))
  np.savez_compressed(args.out, **arrays)


if __name__ == "__main__":
  main()
