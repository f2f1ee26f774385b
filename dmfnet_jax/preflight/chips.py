"""TPU chips by name, and slices of them that need not exist.

Memory, peak arithmetic and memory bandwidth are Google's published figures (cloud.google.com/tpu,
"System architecture"), a chip.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from dmfnet_jax.errors import UserError, one_line


class Chip(NamedTuple):
  """A kind of TPU chip."""

  hbm_gib: float
  peak_tflops: float  # bfloat16 arithmetic, 1e12 operations a second
  bandwidth_gbs: float  # of the memory, 1e9 bytes a second
  options: dict[str, Any]  # makes libtpu have one device a chip, where a chip has two cores


CHIPS = {
  "v4": Chip(32, 275, 1228, {"chip_config_name": "megacore"}),
  "v5e": Chip(16, 197, 819, {}),
  "v5p": Chip(95, 459, 2765, {"chip_config_name": "megachip_tccontrol"}),
  "v6e": Chip(32, 918, 1640, {}),
}


def parse_topology(topology: str) -> tuple[str, tuple[int, ...]]:
  """Splits "v5e:16x16" into the kind of chip and the shape; a UserError where it is neither."""
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
  if not found or found[1] not in CHIPS:
    raise UserError(
      f"a topology is KIND:SHAPE, such as v5e:16x16, with KIND one of {', '.join(CHIPS)}, "
      f"not {topology!r}"
    )
  return found[1], tuple(int(n) for n in found[2].split("x"))


def describe_devices(topology: str, num_slices: int = 1) -> Sequence[jax.Device]:
  """Returns the devices, one a chip, of slices that the data-centre network connects.

  Raises:
    UserError: libtpu is not installed, or there is no such topology.
  """
  kind, shape = parse_topology(topology)
  if importlib.util.find_spec("libtpu") is None:
    raise UserError('preflight needs libtpu (no TPU): pip install "dmfnet_jax[preflight]"')
  options: dict[str, Any] = dict(CHIPS[kind].options)
  if max(shape) == 1:
    options["chips_per_host_bounds"] = [1, 1, 1]  # a host of four would be the smallest otherwise
  if num_slices > 1:
    options["num_slices"] = num_slices
  from jax.experimental import topologies

  with _no_tpu_here():
    try:
      return topologies.get_topology_desc(topology, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
      raise UserError(f"there is no topology {topology!r}: {one_line(error)}") from error


@contextlib.contextmanager
def _no_tpu_here() -> Iterator[None]:
  """Has libtpu look for no TPU, at no metadata server, and lock nothing for itself."""
  settings = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any: else it remarks that it knows none
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }
  before = {name: os.environ[name] for name in settings if name in os.environ}
  os.environ.update(settings)
  try:
    yield
  finally:
    for name in settings:
      os.environ.pop(name, None)
    os.environ.update(before)
