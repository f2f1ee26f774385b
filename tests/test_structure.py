"""The package's shape: imports go downward, in no circle, and the trunk names no method."""

import ast
import functools
import re
from pathlib import Path

import pytest

from dmfnet_jax import methods

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dmfnet_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What stands in one line may import its own line and those below.
LEVELS = (
  ("__main__",),
  ("cli",),
  ("demo", "compare"),
  ("fusing", "report", "serve", "preflight", "training", "plot", "data"),
  ("inference",),
  ("weights",),
  ("methods",),
  ("configs",),  # the recipes
  ("nn", "diffusion", "losses", "metrics", "filters", "io", "interop"),
  ("backend", "messages"),
  ("errors", ""),  # "": the package itself: its version
)
LEVEL = {name: len(LEVELS) - i for i, names in enumerate(LEVELS) for name in names}


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def imported(path):
  """Modules of the package that a module imports, anywhere in it, but for type checkers only."""
  tree = ast.parse(path.read_text())
  skipped = {
    id(node)
    for test in ast.walk(tree)
    if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
    for child in test.body
    for node in ast.walk(child)
  }
  found = set()
  for node in ast.walk(tree):
    if id(node) in skipped:
      continue
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        found.add(full if full in NAMES else node.module)
  return {name for name in found if name.split(".")[0] == "dmfnet_jax"}


def part(module):
  """The part of the package that a module belongs to: its first folder or file."""
  return [*module.split("."), ""][1]


def test_every_part_has_a_level():
  assert {part(name) for name in NAMES} | {"configs"} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: module_name(path))
def test_imports_go_downward(path):
  here = part(module_name(path))
  # The package itself, `load_model` and `fuse`, imports what it offers when it is asked for.
  if here == "":
    return
  up = {name for name in imported(path) if LEVEL[part(name)] > LEVEL[here]}
  assert not up


def test_no_circle():
  """Neither among modules nor among the parts of the package."""
  modules = {module_name(path): imported(path) - {module_name(path)} for path in MODULES}
  del modules["dmfnet_jax"]
  parts = {}
  for name, others in modules.items():
    parts.setdefault(part(name), set()).update({part(o) for o in others} - {part(name), ""})
  for graph in (modules, parts):
    done, under_way = set(), []

    def visit(node, graph=graph, done=done, under_way=under_way):
      assert node not in under_way, " > ".join([*under_way, node])
      if node in done or node not in graph:
        return
      under_way.append(node)
      for other in sorted(graph[node]):
        visit(other)
      under_way.pop()
      done.add(node)

    for node in sorted(graph):
      visit(node)


@functools.cache
def words_of_methods():
  """What the trunk must not say: methods, and networks that belong to one of them."""
  # Those without networks are named by words of every day, such as "mean".
  with_networks = [name for name in methods.names() if methods.get(name).networks]
  names = [name for name in with_networks if name != "dmfnet"]  # also the program's name
  networks = {network for name in with_networks for network in methods.get(name).networks}
  quoted = "|".join(re.escape(f'"{word}"') for word in [*with_networks, *sorted(networks)])
  plain = "|".join([*names, "DM-FNet", "unet", "fusion_head", "fusionhead", "stage1", "stage [I]+"])
  return re.compile(rf"{quoted}|\b(?:{plain})\b", re.IGNORECASE)


# The old flags of `convert`, the old alias of `start` and its old copy; what the oldest files hold;
# the package's own docstring; and what HTML calls the program that wrote a page.
EXCEPTIONS = {
  "cli/convert.py": r"--unet|--fusion-head|unet|fusion_head|dmfnet",
  "training/config.py": r"stage1",
  "weights/workdir.py": r"stage1",
  "__init__.py": r"DM-FNet",
  "report/page.py": r"generator",
}


@pytest.mark.parametrize(
  "path",
  [path for path in MODULES if "methods" not in path.relative_to(PACKAGE).parts],
  ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_trunk_names_no_method(path):
  allowed = EXCEPTIONS.get(path.relative_to(PACKAGE).as_posix())
  found = [
    f"{number}: {match[0]}"
    for number, line in enumerate(path.read_text().splitlines(), 1)
    for match in words_of_methods().finditer(line)
    if not (allowed and re.fullmatch(allowed, match[0].strip('"'), re.IGNORECASE))
  ]
  # `dmfnet` quoted is the command's name in two places of the parser.
  if path.relative_to(PACKAGE).as_posix() == "cli/__init__.py":
    found = [entry for entry in found if not entry.endswith('"dmfnet"')]
  assert not found


def test_a_module_is_no_longer_than_one_can_read():
  lengths = {module_name(path): len(path.read_text().splitlines()) for path in MODULES}
  assert not {name: length for name, length in lengths.items() if length > 400}
