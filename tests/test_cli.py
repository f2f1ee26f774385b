"""The `dmfnet` command: what each sub-command calls, exit codes, messages, a light start."""

import json
import subprocess
import sys
import types

import pytest

import dmfnet_jax
from dmfnet_jax.cli import COMMANDS, main
from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.fusing.pairing import Naming
from dmfnet_jax.methods import parts

CONFIG = types.SimpleNamespace(num_train_steps=7)


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
  """Puts a recorder in the place of every function that a sub-command calls."""
  recorded: list[tuple] = []

  def recorder(name: str, result=None):
    def record(*args, **kwargs):
      recorded.append((name, args, kwargs))
      return result

    return record

  modules = {
    "demo": {"demo": None},
    "fusing.files": {"fuse_files": 1},
    "fusing.evaluate": {"evaluate_folders": 0},
    "inference.export": {"export_model": None},
    "training.config": {"parse_config": CONFIG},
    "training.loop": {"train_and_evaluate": types.SimpleNamespace(step=7)},
    "preflight": {"preflight": 1},
    "data.builders": {"prepare": {"train": 3}},
    "weights.convert": {"convert": "a path"},
  }
  for name, functions in modules.items():
    module = types.ModuleType(f"dmfnet_jax.{name}")
    for function, result in functions.items():
      setattr(module, function, recorder(function, result))
    monkeypatch.setitem(sys.modules, module.__name__, module)
  return recorded


def fused(a, b, out, *further, **options):
  """The call of a `dmfnet fuse`."""
  return [("fuse_files", (a, b, out, FuseOptions(**options)), {"further": further})]


EXPORT_DEFAULTS = {"size": (256, 256), "batch": 1, "precision": "float32", "file_format": "jax"}
EVALUATE_DEFAULTS = {"json_file": None, "naming": Naming(), "ssim_range": 255}
PARTS = {"unet": "u.pth", "fusion_head": "h.pth"}
TRAINING = [
  ("parse_config", (["--config=c.py", "--config.batch_size=16", "--config.seed", "3"],), {}),
  ("train_and_evaluate", (CONFIG, "w"), {}),
]


@pytest.mark.parametrize(
  ("command", "code", "expected"),
  [
    ("demo", 0, [("demo", ("demo",), {})]),
    ("demo --out d", 0, [("demo", ("d",), {})]),
    ("fuse a b -o c", 1, fused("a", "b", "c")),
    ("fuse a b c d -o e", 1, fused("a", "b", "e", "c", "d")),
    (
      "fuse a b --out c --model m.safetensors --seed 7 --batch-size 4 --samples 8 --strict",
      1,
      fused("a", "b", "c", model="m.safetensors", seed=7, batch_size=4, samples=8, strict=True),
    ),
    (
      "fuse a b -o c --axis 0 --resample --same-frame --rgb --montage m.png --png --lut pet",
      1,
      fused(
        *"abc",
        axis="0",
        resample=True,
        same_frame=True,
        rgb=True,
        montage="m.png",
        png=True,
        lut="pet",
      ),
    ),
    (
      "fuse a b -o c --precision bfloat16 --resume --shard 3/8 --overlay .5",
      1,
      fused("a", "b", "c", precision="bfloat16", resume=True, shard="3/8", overlay=0.5),
    ),
    ("fuse a b -o c --tile 512", 1, fused("a", "b", "c", tile=512)),
    ("fuse a b -o c --tile off", 1, fused("a", "b", "c", tile="off")),
    ("fuse --rgb a b -o c", 1, fused("a", "b", "c", rgb=True)),
    ("fuse a b -o c --rgb 4d --save-b", 1, fused("a", "b", "c", rgb="4d", save_b=True)),
    (
      # A value with a minus is a value, not an option.
      "fuse a b -o c --window-a -160,240 --window-b=-1e3,2.5",
      1,
      fused("a", "b", "c", window_a="-160,240", window_b="-1e3,2.5"),
    ),
    ("export m -o p", 0, [("export_model", ("m", "p"), EXPORT_DEFAULTS)]),
    (
      "export m -o p --size 240x320 --batch 4 --precision bfloat16",
      0,
      [
        (
          "export_model",
          ("m", "p"),
          {
            "size": (240, 320),
            "batch": 4,
            "precision": "bfloat16",
            "file_format": "jax",
          },
        )
      ],
    ),
    (
      "evaluate --a a --b b --fused f",
      0,
      [("evaluate_folders", ("a", "b", "f"), EVALUATE_DEFAULTS)],
    ),
    (
      "evaluate --fused f --json j --pairs p.csv",
      0,
      [
        (
          "evaluate_folders",
          (None, None, "f"),
          EVALUATE_DEFAULTS | {"json_file": "j", "naming": Naming(pairs="p.csv")},
        )
      ],
    ),
    ("train --config c.py --workdir w --config.batch_size=16 --config.seed 3", 0, TRAINING),
    ("train --config.batch_size=16 --workdir=w --config.seed 3 --config=c.py", 0, TRAINING),
    (
      "preflight --config c.py --topology v5e:2x2 --find-batch --config.seed=3",
      1,
      [
        ("parse_config", (["--config=c.py", "--config.seed=3"],), {}),
        ("preflight", (CONFIG, "v5e:2x2"), {"num_slices": 1, "find_batch": True}),
      ],
    ),
    (
      "data prepare mni_pairs --data-dir d",
      0,
      [("prepare", ("mni_pairs", "d", None), {"workers": 1, "beam_options": ""})],
    ),
    (
      "data prepare paired_folder --data-dir d --manual-dir m",
      0,
      [("prepare", ("paired_folder", "d", "m"), {"workers": 1, "beam_options": ""})],
    ),
    (
      "data prepare paired_volumes --data-dir d --workers 3 --option axis=0 --option window_b=0,9",
      0,
      [
        (
          "prepare",
          ("paired_volumes", "d", None),
          {"workers": 3, "beam_options": "", "axis": "0", "window_b": "0,9"},
        )
      ],
    ),
    (
      "convert --unet u.pth --fusion-head=h.pth -o m.safetensors",
      0,
      [("convert", ("dmfnet", PARTS, "m.safetensors", {}), {})],
    ),
    (
      "convert unet=u.pth -o m.safetensors fusion_head=h.pth",
      0,
      [("convert", ("dmfnet", PARTS, "m.safetensors", {}), {})],
    ),
    (
      "convert -o m cddfuse x=y=z.pth --config.a.b=1 --config.c=d=e",
      0,
      [("convert", ("cddfuse", {"x": "y=z.pth"}, "m", {"a.b": "1", "c": "d=e"}), {})],
    ),
  ],
)
def test_each_command_calls_its_function(calls, command, code, expected):
  assert main(command.split()) == code
  assert calls == expected


@pytest.mark.parametrize(
  ("command", "message"),
  [
    ("", "required: COMMAND"),
    ("fusee a b", "invalid choice: 'fusee'"),
    ("fuse a", "required: B, -o/--out"),
    ("fuse a b", "required: -o/--out"),
    ("fuse a b -o c --sead 3", "unrecognized arguments: --sead 3"),
    ("fuse a b -o c --seed x", "argument --seed: invalid whole_number value: 'x'"),
    ("fuse a b -o c --seed -1", "argument --seed: -1 is out of range: 0 to 4294967295"),
    ("fuse a b -o c --seed 4294967296", "argument --seed: 4294967296 is out of range"),
    ("fuse a b -o c --batch-size 0", "argument --batch-size: 0 is out of range: at least 1"),
    ("fuse a b -o c --overlay 50", "argument --overlay: 50.0 is out of range: 0 to 1"),
    ("fuse a b -o c --overlay half", "argument --overlay: invalid number value: 'half'"),
    ("fuse a b -o c --samples 0", "argument --samples: 0 is out of range: at least 1"),
    ("fuse a b -o c --axis 3", "argument --axis: invalid choice: '3'"),
    ("fuse a b -o c --window-a --png", "argument --window-a: expected one argument"),
    ("export m", "required: -o/--out"),
    ("export m -o p --size 0", "argument --size: '0' is no size: use 256, or 240x320"),
    ("export m -o p --size 3x", "argument --size: '3x' is no size"),
    ("evaluate --a a --b b", "required: --fused"),
    ("train --config c.py", "required: --workdir"),
    ("train --workdir w", "required: --config"),
    ("data", "required: STEP"),
    ("data prepare mni_pairs", "required: --data-dir"),
    ("convert unet=u.pth", "required: -o/--out"),
    ("convert dmfnet u.pth -o m", "u.pth: give each file once as PART=FILE"),
    ("convert unet=u.pth unet=v.pth -o m", "unet=v.pth: give each file once"),
    ("convert unet=u.pth -o m --config.a.b", "--config.a.b: give each file once as PART=FILE"),
    ("convert unet=u.pth -o m -x", "-x: give each file once as PART=FILE"),
  ],
)
def test_wrong_usage_is_exit_code_2(calls, capsys, command, message):
  assert main(command.split()) == 2
  captured = capsys.readouterr()
  assert message in captured.err
  assert "Traceback" not in captured.err
  assert captured.out == ""
  assert calls == []


def demo_raises(monkeypatch, error):
  """Lets `dmfnet demo` end with an error."""
  module = types.ModuleType("dmfnet_jax.demo")

  def demo(out):
    raise error

  module.demo = demo
  monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(
  ("command", "message"),
  [
    ("--steps 3", "Unknown command line flag 'steps'"),
    ("--config.seed=1 3", "unexpected argument '3'"),
  ],
)
def test_what_sets_no_config_field_is_refused(capsys, command, message):
  words = ["train", "--config=configs/dmfnet.py:size=tiny", "--workdir=w", *command.split()]
  assert main(words) == 2
  assert message in capsys.readouterr().err


def test_a_users_mistake_is_one_line(capsys, monkeypatch):
  demo_raises(monkeypatch, UserError("x: cannot be done"))
  assert main(["demo", "--out", "x"]) == 2
  assert capsys.readouterr().err == "dmfnet: error: x: cannot be done\n"


def test_an_interrupt_is_one_line(capsys, monkeypatch):
  demo_raises(monkeypatch, KeyboardInterrupt())
  assert main(["demo"]) == 130
  assert capsys.readouterr().err == "dmfnet: interrupted\n"


@pytest.mark.parametrize("error", [KeyError("a bug"), BrokenPipeError("a worker's pipe")])
def test_a_bug_keeps_its_traceback(monkeypatch, error):
  """And a lost worker is not taken for a closed output."""
  demo_raises(monkeypatch, error)
  with pytest.raises(type(error)):
    main(["demo"])


@pytest.mark.parametrize(
  "command", ["fuse a b -o c", "export m -o p", "convert x=y -o m", "train --config c --workdir w"]
)
def test_plugins_are_allowed(calls, command):
  assert main([*command.split(), "--plugin", "json", "--plugin=toy_parts"]) in (0, 1)
  assert parts.find("field", "json:dumps", {}) is json.dumps
  with pytest.raises(UserError, match="cannot import it: No module named 'toy_parts'"):
    parts.find("field", "toy_parts:Part", {})


def test_a_closed_output_is_quiet():
  """What `dmfnet evaluate ... | head -1` does to the command."""
  code = (
    "import sys, types; from dmfnet_jax.cli import main; m = types.ModuleType('dmfnet_jax.demo');"
    "m.demo = lambda out: [print('x' * 99) for _ in range(9999)]; sys.modules[m.__name__] = m;"
    "sys.exit(main(['demo']))"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )
  process.stdout.readline()
  process.stdout.close()
  assert process.stderr.read().strip() == b""
  assert process.wait() == 141


@pytest.mark.parametrize("command", ["", *COMMANDS, "data prepare"])
def test_help(capsys, command):
  assert main([*command.split(), "--help"]) == 0
  out = capsys.readouterr().out
  assert out.startswith(f"usage: dmfnet {command}".rstrip())
  if not command:
    assert all(f"\n    {name}" in out for name in COMMANDS)


def test_version(capsys):
  assert main(["--version"]) == 0
  assert capsys.readouterr().out == f"dmfnet {dmfnet_jax.__version__}\n"


@pytest.mark.parametrize(
  "arguments", [["--help"], ["fuse", "--help"], ["fuse", "only one"], ["data", "prepare", "--help"]]
)
def test_nothing_heavy_is_imported_to_parse(arguments):
  code = (
    "import sys; from dmfnet_jax.cli import main; main(sys.argv[1:]);"
    "heavy = {'jax', 'flax', 'tensorflow', 'numpy', 'PIL', 'ml_collections', 'etils'};"
    "sys.exit(f'imported: {heavy & sys.modules.keys()}' if heavy & sys.modules.keys() else 0)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr


def test_the_module_is_the_command():
  done = subprocess.run(
    [sys.executable, "-m", "dmfnet_jax", "fuse", "no such", "folder", "-o", "out"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr == "dmfnet: error: no such: no such file or folder\n"
  assert done.stdout == ""
