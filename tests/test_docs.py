"""README and the guides: their commands parse, their paths exist, their example is a method."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dmfnet_jax
from dmfnet_jax.cli import COMMANDS, build_parser, main
from dmfnet_jax.cli.fuse import join_values
from dmfnet_jax.errors import UserError
from dmfnet_jax.methods import parts

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
SHELLS = ("bash", "console")


def fences(page):
  """The fenced blocks of a page: what stands behind the opening backticks, and the content."""
  return re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def lines_of(block):
  """The lines of a shell block as words; a backslash at the end of one joins the next."""
  for line in block.replace("\\\n", " ").splitlines():
    words = shlex.split(line, comments=True)
    yield words[1:] if words[:1] == ["$"] else words


def commands_in(words):
  """The `dmfnet` commands of a line, such as those behind a launcher's `--` or between `&&`."""
  command = []
  for word in [*words, ";"]:
    if word in ("--", "&&", "||", "|", ";", ">"):
      if command[:1] == ["dmfnet"]:
        yield command[1:]
      command = []
    else:
      command.append(word)


COMMANDS_SHOWN = [
  (name, command)
  for name, page in zip(NAMES, PAGES, strict=True)
  for info, block in fences(page)
  if info in SHELLS
  for words in lines_of(block)
  for command in commands_in(words)
]


def write_titled(page, folder):
  """Writes a page's titled blocks as files: those of one title are one file."""
  for info, block in fences(page):
    title = re.search(r'title="([\w.]+)"', info)
    if title:
      with (folder / title[1]).open("a") as file:
        file.write(f"{block}\n\n")


@pytest.fixture
def work(tmp_path, monkeypatch):
  """A user's folder with the files of the guides in it, where nothing is trusted yet."""
  for page in PAGES:
    write_titled(page, tmp_path)
  names = {path.stem for path in tmp_path.glob("*.py")}
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.setattr(parts, "_allowed", set())
  yield tmp_path
  for name in names:
    sys.modules.pop(name, None)


def test_the_command_is_found_wherever_it_is_shown():
  """In blocks that say they are a shell's; the search of this file misses none of them."""
  shown = 0
  for page in PAGES:
    for info, block in fences(page):
      called = rf"\bdmfnet (?:{'|'.join(COMMANDS)})\b"
      found = len(re.findall(called, re.sub(r"#.*", "", block)))
      assert not found or info in SHELLS, f"{page}: a block with dmfnet commands needs ```bash"
      shown += found
  assert len(COMMANDS_SHOWN) == shown > 30
  assert {command[0] for _, command in COMMANDS_SHOWN} == {*COMMANDS} - {"demo"}  # `make demo`


@pytest.mark.parametrize("name", NAMES)
def test_every_sub_command_that_is_named_exists(name):
  for code in re.findall(r"`([^`\n]+)`", (ROOT / name).read_text()):
    words = code.split()
    if words[0] == "dmfnet" and len(words) > 1:
      assert words[1] in (*COMMANDS, "COMMAND", "--help"), code


@pytest.mark.parametrize(
  ("name", "command"), COMMANDS_SHOWN, ids=[" ".join(c)[:60] for _, c in COMMANDS_SHOWN]
)
def test_a_command_that_is_shown_can_be_called(name, command, work, monkeypatch):
  args, rest = build_parser().parse_known_args(join_values(command))
  assert args.takes_rest or not rest
  args.rest = rest
  {
    "train": check_training,
    "preflight": check_training,
    "convert": check_conversion,
    "data": check_dataset,
    "fuse": check_model,
    "synthesize": check_model,
    "serve": check_model,
    "export": check_model,
  }.get(command[0], lambda *_: None)(args, monkeypatch)


def check_training(args, monkeypatch):
  """The recipe exists, has the fields that are set, and can be trained."""
  from dmfnet_jax.training.config import parse_config
  from dmfnet_jax.training.setup import check_config

  parts.allow(args.plugin)
  config = parse_config([f"--config={args.config}", *args.rest])
  check_config(config, devices=1)


def check_conversion(args, monkeypatch):
  """The method has these parts."""
  from dmfnet_jax import methods
  from dmfnet_jax.weights import convert

  called = []
  monkeypatch.setattr(convert, "convert", lambda *words: called.append(words))
  args.run(args)
  ((method, files, out, _),) = called
  assert files.keys() <= methods.get(method).torch_parts.keys()
  assert out.endswith(".safetensors")


def check_dataset(args, monkeypatch):
  """There is such a dataset."""
  from dmfnet_jax.data.datasets import DATASETS

  assert args.name in DATASETS


def check_model(args, monkeypatch):
  """A released name, or what looks like a path."""
  from dmfnet_jax.weights.find import released_names

  assert args.model in released_names() or "/" in args.model or ".safetensors" in args.model


@pytest.mark.parametrize("name", NAMES)
def test_every_path_that_is_named_exists(name):
  page = ROOT / name
  text = page.read_text()
  found = re.findall(r"(?<![\w/~.-])(?:tests|configs|launch|docs|dmfnet_jax)/[\w./-]*\w", text)
  for path in found:
    if path.split("/")[-1].split(".")[0] != "NAME":
      assert (ROOT / path).exists(), path
  for target in re.findall(r"\]\((?!http)([^)#]+)", text):
    assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_every_test_and_target_that_is_named_exists(name):
  text = (ROOT / name).read_text()
  for path, word in re.findall(r"`pytest (\S+) -k (\w+)`", text):
    files = [ROOT / path] if (ROOT / path).is_file() else sorted((ROOT / path).rglob("*.py"))
    assert any(re.search(rf"def test\w*{word}", file.read_text()) for file in files), (path, word)
  makefile = (ROOT / "Makefile").read_text()
  for target in re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE):
    assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_readme_can_be_read_in_one_go():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def code_of(text):
  return [line for line in text.splitlines() if line]


@pytest.mark.parametrize("name", ["my_method.py", "my_config.py"])
def test_the_page_shows_the_example_as_it_is(name, work):
  """The blocks of the page, one after the other, are the file: but for empty lines."""
  assert code_of((work / name).read_text()) == code_of((EXAMPLES / name).read_text())


def test_the_parts_of_the_guide_are_parts(work):
  parts.allow(["my_module"])
  a, b = np.zeros((2, 8, 8, 1), np.float32), np.ones((2, 8, 8, 1), np.float32)
  value, terms = parts.find("loss.fn", "my_module:my_loss", {})(a, a, b)
  assert value.shape == (2,)
  assert all(term.shape == (2,) for term in terms.values())
  import jax

  attention = parts.find("fusion_head.attention", "my_module:MyAttention", {})(dtype="bfloat16")
  fused, _ = attention.init_with_output(
    jax.random.key(0), *(np.zeros((2, 8, 8, 4), "bfloat16") for _ in "ab")
  )
  assert fused.shape == (2, 8, 8, 4)
  assert fused.dtype == "bfloat16"


def test_the_example_trains_fuses_and_is_exported(work, data_dir, monkeypatch):
  """As the page says, for two steps; and only where its module is allowed."""
  changes = {
    "dataset": "paired_folder",
    "data_dir": data_dir,
    "num_train_steps": 2,
    "crop_size": 16,
    "eval_batch_size": 2,
    "weigher.width": 4,
  }
  fields = [f"--config.{field}={value}" for field, value in changes.items()]
  train = ["train", "--config", "my_config.py", "--workdir", "runs/mine", *fields]
  assert main(train) == 2
  assert not Path("runs").exists()
  assert main([*train, "--plugin", "my_method"]) == 0
  assert Path("runs/mine/model.safetensors").exists()

  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 255, (2, 20, 24), np.uint8)
  for name, picture in zip("ab", pictures, strict=True):
    Image.fromarray(picture).save(f"{name}.png")
  monkeypatch.setattr(parts, "_allowed", set())
  fuse = ["fuse", "a.png", "b.png", "-o", "fused.png", "--model", "runs/mine"]
  assert main(fuse) == 2
  assert main([*fuse, "--plugin", "my_method"]) == 0
  fused = np.asarray(Image.open("fused.png"))
  assert fused.shape == (20, 24)
  assert (fused >= pictures.min(0)).all()
  assert (fused <= pictures.max(0)).all()

  monkeypatch.setattr(parts, "_allowed", set())
  with pytest.raises(UserError, match="--plugin my_method"):
    dmfnet_jax.load_model("runs/mine/model.safetensors")
  command = ["export", "runs/mine", "-o", "fuse.bin", "--size", "20x24", "--plugin", "my_method"]
  assert main(command) == 0
  import jax

  program = jax.export.deserialize(bytearray(Path("fuse.bin").read_bytes()))
  a, b = (pictures[:, None] / np.float32(127.5) - 1).astype(np.float32)
  exported = program.call(a, b, np.uint32(0), np.zeros(1, np.uint32))
  np.testing.assert_allclose(np.rint((exported[0] + 1) * 127.5), fused, atol=1)


def test_the_parts_of_the_package_import():
  """What the API reference lists is there."""
  for page in (ROOT / "docs" / "api").glob("*.md"):
    for name in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE):
      importlib.import_module(name)
