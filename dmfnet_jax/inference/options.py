"""What a run of `dmfnet fuse` was asked to do, and the record of it beside the results."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import shlex
from typing import Any

import numpy as np

import dmfnet_jax
from dmfnet_jax.data import images, scaling
from dmfnet_jax.data.scaling import Window

_DEFAULT_LUT = "hot"  # for --rgb alone: the one map whose luma grows with the value


@dataclasses.dataclass(frozen=True)
class FuseOptions:
  """The options of `fuse_files`, which documents them."""

  model: str = ""
  seed: int = 0
  batch_size: int | None = None
  samples: int | None = None
  window_a: Window | str | None = None
  window_b: Window | str | None = None
  lut: str | None = None
  axis: str | int | None = None
  resample: bool = False
  rgb: bool = False
  montage: Any = None
  png: bool = False
  precision: str = "float32"

  @property
  def scales(self) -> bool:
    """Whether pictures are measurements to be shown through a window or a colour map."""
    return not (self.window_a is None and self.window_b is None and self.lut is None)

  @property
  def volume_lut(self) -> str | None:
    """The colour map of a scalar volume B."""
    return self.lut or (_DEFAULT_LUT if self.rgb else None)

  @functools.cached_property
  def table(self) -> np.ndarray | None:
    """The colour map of a grey picture B, uint8 [256, 3]."""
    return None if self.lut is None else scaling.read_lut(self.lut)

  @functools.cached_property
  def volume_table(self) -> np.ndarray | None:
    """The colour map of a scalar volume B, uint8 [256, 3]."""
    return None if self.volume_lut is None else scaling.read_lut(self.volume_lut)


@dataclasses.dataclass(frozen=True)
class UsedWindow:
  """A window and where it came from."""

  window: Window
  origin: str  # "given", "file" or "percentiles 0.5 and 99.5"
  unit: str = ""

  def __str__(self) -> str:
    unit = f" {self.unit}" if self.unit else ""
    return f"{scaling.describe(self.window)}{unit} ({self.origin})"


def percentiles(data: np.ndarray, unit: str = "") -> UsedWindow:
  """The window where none is given: see `scaling.percentile_window`.

  Raises:
    UserError: there is nothing to see in the data.
  """
  origin = "percentiles {:g} and {:g}".format(*scaling.PERCENTILES)
  return UsedWindow(scaling.percentile_window(data), origin, unit)


def make_record(
  options: FuseOptions,
  *,
  name: str,
  window_a: UsedWindow | None,
  window_b: UsedWindow | None,
  lut: str | None,
  table: np.ndarray | None,
  model_sha256: str | None,
  plane: str | None = None,
  shape: tuple[int, ...] | None = None,
) -> dict[str, Any]:
  """What makes a result repeatable: everything that it depends on but the two sources themselves.

  Args:
    options: of the run.
    name: of the pair, from which its noise is drawn.
    window_a: of A, None where it is coloured or was shown as stored.
    window_b: of B, likewise.
    lut: the colour map's name or file, or None.
    table: the colour map itself.
    model_sha256: see `fingerprint`.
    plane: of a volume's slices.
    shape: of a volume.

  Returns:
    What `STEM.json` holds. `options` there is what to type to get the same bytes again.
  """
  words = [f"--model={options.model}", f"--seed={options.seed}"]
  if options.samples is not None:
    words.append(f"--samples={options.samples}")
  if options.precision != FuseOptions.precision:
    words.append(f"--precision={options.precision}")
  for letter, used in (("a", window_a), ("b", window_b)):
    if used is not None:
      low, high = map(scaling.number, used.window)
      words.append(f"--window-{letter}={low},{high}")
  if lut is not None:
    words.append(f"--lut={lut}")
  if plane is not None:
    words.append(f"--axis={plane}")
    words += [f"--{flag}" for flag in ("resample", "rgb") if getattr(options, flag)]
  record: dict[str, Any] = {
    "name": name,
    "options": shlex.join(words),
    "model": options.model,
    "model_sha256": model_sha256,
    "seed": options.seed,
    "samples": options.samples,
  }
  for letter, used in (("a", window_a), ("b", window_b)):
    record[f"window_{letter}"] = None if used is None else list(used.window)
    record[f"window_{letter}_from"] = None if used is None else used.origin
    record[f"unit_{letter}"] = (used.unit or None) if used is not None else None
  record["lut"] = lut
  record["lut_sha256"] = table_sha256(table)
  if plane is not None:
    record |= {"axis": plane, "shape": list(shape or ()), "resample": options.resample}
  packages = ("jax", "jaxlib", "numpy", "pillow", "nibabel", "pydicom")
  record["versions"] = {"dmfnet_jax": dmfnet_jax.__version__} | {
    package: importlib.metadata.version(package) for package in packages
  }
  return record


def table_sha256(table: np.ndarray | None) -> str | None:
  """SHA-256 over a colour map's bytes."""
  return None if table is None else hashlib.sha256(table.tobytes()).hexdigest()


def write_record(path: Any, record: dict[str, Any]) -> None:
  """Writes a record as JSON.

  Raises:
    UserError: it cannot be written.
  """
  text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
  images.write_bytes(path, text.encode())


def fingerprint(model: Any) -> str | None:
  """SHA-256 over a model's config and parameters, names and values; None where it shows none."""
  params = getattr(model, "params", None)
  if params is None:
    return None
  import jax

  digest = hashlib.sha256(json.dumps(model.config, sort_keys=True).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
