"""Fixtures that several test files share."""

import gc
import importlib.util
import itertools
import os
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]

_MANY_MAPS = 20_000
_USERS_METHODS = itertools.count()
_NO_FUSION_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
_COMPILATION_CACHE = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config):
  """Spends little on compiling: through the environment, before anything imports JAX.

  What a session compiles is kept, so that no test and no child process compiles it again. And
  LLVM's optimisations, half of the compile time, are left out, and so is the compiler of fused
  loops that needs a third of the rest: they would pay in longer runs. With XLA_FLAGS set, if to
  nothing, the tests run what users run.

  JAX refuses to guess: no operation may widen a dtype or add an axis by itself. A float64 or an
  axis too many is a mistake here, and both would pass unseen.
  """
  os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
  os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
  os.environ.setdefault("XLA_FLAGS", f"--xla_backend_optimization_level=0 {_NO_FUSION_EMITTERS}")
  os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")  # whatever the machine's cores
  if not hasattr(config, "workerinput"):  # the workers of `pytest -n` have their parent's
    folder = tempfile.TemporaryDirectory(prefix="dmfnet_jax_tests_")
    config.stash[_COMPILATION_CACHE] = folder
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  if importlib.util.find_spec("libtpu"):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # see `backend.ignore_absent_tpu`


def pytest_unconfigure(config):
  """Removes the session's compiled programs."""
  if _COMPILATION_CACHE in config.stash:
    config.stash[_COMPILATION_CACHE].cleanup()


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
  """Frees compiled programs where there are many: each takes maps of the process' memory.

  Linux gives a process 65,530 of them, and XLA's compiler ends it where it gets no more.
  """
  yield
  maps = Path("/proc/self/maps")
  if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > _MANY_MAPS:
    sys.modules["jax"].clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
  """The material beside the checkout (real atlas pairs); tests that need it skip without it."""
  folder = ROOT.parent / "shared"
  if not folder.is_dir():
    pytest.skip("no shared/ beside the checkout: real atlas pairs are not redistributed")
  return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
  """Small arrays computed by the published program."""
  return ROOT / "tests" / "golden"


@pytest.fixture
def users_method(monkeypatch) -> Callable[[Any], str]:
  """Makes a method known under a name, as one in a module of a user's, for one test."""

  def name_of(method: Any) -> str:
    from dmfnet_jax.methods import parts

    # Not by its address: programs are kept by name, and another method may get the same one.
    module = types.ModuleType(f"users_method_{next(_USERS_METHODS)}")
    module.METHOD = method
    monkeypatch.setitem(sys.modules, module.__name__, module)
    parts.allow([module.__name__])
    return f"{module.__name__}:METHOD"

  return name_of


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
  """A prepared `paired_folder`: 7 training and 3 validation pairs of smooth random pictures."""
  pytest.importorskip("tensorflow", reason="preparing a dataset needs TensorFlow")
  from dmfnet_jax.data import builders

  root = tmp_path_factory.mktemp("smooth_pairs")
  rng = np.random.default_rng(0)

  def write(path: Path, *channels: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    smooth = ndimage.gaussian_filter(rng.standard_normal((24, 32, *channels)), 3, axes=(0, 1))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    Image.fromarray(np.rint(255 * smooth).astype(np.uint8)).save(path)

  for split, count in (("train", 7), ("validation", 3)):
    for i in range(count):
      write(root / "pictures" / split / "a" / f"{split}{i}.png")
      write(root / "pictures" / split / "b" / f"{split}{i}.png", 3)
  counts = builders.prepare("paired_folder", root / "data", root / "pictures")
  assert counts == {"train": 7, "validation": 3}
  return root / "data"


@pytest.fixture(scope="session")
def stage1_run(data_dir, tmp_path_factory) -> tuple[Path, Any]:
  """A finished run of the tiny Stage I: its workdir and its final state."""
  return _train(1, data_dir, tmp_path_factory.mktemp("stage1_run"))


@pytest.fixture(scope="session")
def stage2_run(data_dir, stage1_run, tmp_path_factory) -> tuple[Path, Any]:
  """A finished run of the tiny Stage II on `stage1_run`: its workdir and its final state."""
  workdir = tmp_path_factory.mktemp("stage2_run")
  return _train(2, data_dir, workdir, start=str(stage1_run[0]))


def _train(stage: int, data_dir: Path, workdir: Path, **changes: Any) -> tuple[Path, Any]:
  # These import JAX, which must not happen before `pytest_configure`.
  import tiny

  from dmfnet_jax.training.loop import train_and_evaluate

  return workdir, train_and_evaluate(tiny.config(stage, data_dir, **changes), workdir)


@pytest.fixture
def libtpu():
  """For tests that compile for described TPUs; they run in a process of their own."""
  pytest.importorskip("libtpu", reason='compiling for TPUs needs libtpu: ".[preflight]"')
  # libtpu reads the flags when it is loaded, and ends a process whose flags it does not know.
  os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(_NO_FUSION_EMITTERS, "")


def pytest_collection_modifyitems(items):
  """Marks what loads libtpu: JAX's profiler crashes where it has been loaded.

  And puts files with slow tests first: at the end one of them would leave other workers idle.
  """
  for item in items:
    if "libtpu" in getattr(item, "fixturenames", ()):
      item.add_marker("libtpu")
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in slow)
