"""Times fusing beside the fastest things that somebody could run instead on the same CPU.

  python tests/benchmarks/bench_peers.py [--models small small-fast paper] [--repeats 7]

The peers are given the same weights, only the passes and blocks that the fusion needs, and their
best settings: PyTorch channels last in float32 and under bfloat16 autocast, `torch.compile`, and,
where they are installed, ONNX Runtime and OpenVINO on the program that PyTorch exports and on that
of `dmfnet export --format onnx`. They get noised pictures and the sources; the time of this program
has the drawing of the noise, the padding and the conversions in it. One process, all cores, taking
turns, memory kept as by the command; medians. The pictures of every float32 row are compared.

For the folder every side reads PNG files, fuses all and writes PNG files; beside this program
PyTorch and ONNX Runtime in float32.

The last lines are seconds over seconds: above 1 this program is faster.
"""

import argparse
import concurrent.futures
import functools
import importlib.util
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from dmfnet_jax import backend  # noqa: E402

backend.ignore_absent_tpu()
backend.keep_memory()  # for every row
backend.use_all_cores()

import jax  # noqa: E402
import measuring  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch_reference  # noqa: E402

from dmfnet_jax.diffusion.schedule import make_schedule  # noqa: E402
from dmfnet_jax.fusing.files import fuse_files  # noqa: E402
from dmfnet_jax.fusing.options import FuseOptions  # noqa: E402
from dmfnet_jax.inference.engine import example_keys  # noqa: E402
from dmfnet_jax.inference.model import Model, load_model  # noqa: E402
from dmfnet_jax.interop.torch import to_state_dict  # noqa: E402
from dmfnet_jax.io import pictures  # noqa: E402
from dmfnet_jax.methods.dmfnet import features  # noqa: E402
from dmfnet_jax.methods.dmfnet import torch as torch_weights  # noqa: E402

SIZE = 256
INPUTS = ("noisy_a", "noisy_b", "levels", "a", "b")  # of the networks, by name
BFLOAT16 = "bfloat16"


def main() -> None:
  """Prints a table for each model, and the ratios."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--models", nargs="*", default=["small", "small-fast", "paper"])
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--folder", type=int, default=64, help="pairs in the folder; 0: no folder")
  parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
  args = parser.parse_args()
  torch.set_num_threads(os.cpu_count() or 1)
  torch.set_grad_enabled(False)
  warnings.filterwarnings("ignore")
  print(measuring.machine())
  print(f"{jax.local_device_count()} host devices; torch {torch.__version__}", flush=True)
  last = []
  for name in args.models:
    model = paper_model() if name == "paper" else load_model(name)
    rows = Peers(model, with_compile=not args.no_compile).rows()
    last.append(compare(name, rows, args.repeats))
    if args.folder and name != "paper":
      last.append(compare_folder(name, model, args.folder))
  print("\n".join(last))


def paper_model() -> Model:
  """The paper's size, with drawn weights."""
  _, params, config = measuring.paper_model(128)
  return Model(params, config)


class Peers:
  """A model's rows: each a function without arguments that returns the fused pair [H, W]."""

  def __init__(self, model: Model, *, with_compile: bool):
    self.model = model
    self.with_compile = with_compile
    config = model.config
    self.timesteps = len(config["features"]["timesteps"])
    self.blends = config["fusion_head"]["output"] == "blend"
    self.unet, self.head = as_torch(model)
    self.a, self.b = measuring.pictures(2, SIZE)
    self.inputs = self.noised()

  def noised(self, count: int = 1) -> list[torch.Tensor]:
    """What `model.fuse` gives its networks: noisy a and b [T, B, 1, H, W], levels, sources."""
    schedule = make_schedule(**self.model.config["features"]["schedule"])
    a, b = (np.stack([x] * count)[..., None] for x in (self.a, self.b))
    noisy_a, noisy_b, levels = features.noise_sources(
      schedule,
      tuple(self.model.config["features"]["timesteps"]),
      *map(jax.numpy.asarray, (a, b)),
      example_keys(0, [""] * count),
    )
    nchw = [np.moveaxis(np.asarray(x), -1, -3) for x in (noisy_a, noisy_b, a, b)]
    tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in nchw]
    return [*tensors[:2], torch.from_numpy(np.array(levels)[:, 0]), *tensors[2:]]

  def forward(self, passes: int | None) -> torch.nn.Module:
    """The whole computation as a module of the five tensors."""
    return NeededPasses(self.unet, self.head, self.blends, passes)

  def rows(self) -> dict[str, Callable[[], np.ndarray]]:
    """The rows by their titles."""
    rows: dict[str, Callable[[], np.ndarray]] = {
      "dmfnet_jax, float32": lambda: self.model.fuse(self.a, self.b)
    }

    def run(module: Any, inputs: list[torch.Tensor], autocast: bool = False) -> np.ndarray:
      with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return module(*inputs).float().numpy()[0, 0]

    channels_last = [x.contiguous(memory_format=torch.channels_last) for x in self.inputs[3:]]
    inputs = [*self.inputs[:3], *channels_last]
    for passes in (1, 2 * self.timesteps):
      module = self.forward(passes).to(memory_format=torch.channels_last)
      title = f"torch, channels last, {passes} at a time"
      rows[title] = functools.partial(run, module, inputs)
      rows[f"{title}, {BFLOAT16}"] = functools.partial(run, module, inputs, True)
    if self.with_compile:
      compiled = torch.compile(self.forward(2 * self.timesteps))
      rows["torch.compile"] = functools.partial(run, compiled, inputs)
    with tempfile.TemporaryDirectory() as folder:
      exported = Path(folder) / "torch.onnx"
      self.export(exported)
      rows |= self.runtimes("of torch", exported.read_bytes(), self.inputs)
    return rows

  def export(self, path: Path) -> None:
    """Writes the networks as ONNX."""
    module = self.forward(2 * self.timesteps).to(memory_format=torch.contiguous_format).eval()
    torch.onnx.export(module, tuple(self.inputs), str(path), input_names=list(INPUTS), dynamo=False)

  def runtimes(
    self, title: str, program: bytes, inputs: list[torch.Tensor]
  ) -> dict[str, Callable[[], np.ndarray]]:
    """ONNX Runtime and OpenVINO on an ONNX program."""
    rows: dict[str, Callable[[], np.ndarray]] = {}
    arrays = [x.numpy() for x in inputs]
    if importlib.util.find_spec("onnxruntime"):
      session = onnx_session(program)
      given = dict(zip([x.name for x in session.get_inputs()], arrays, strict=False))
      rows[f"ONNX Runtime, {title}"] = lambda: session.run(None, given)[0].reshape(SIZE, SIZE)
    if importlib.util.find_spec("openvino"):
      import openvino

      core = openvino.Core()
      read = core.read_model(program)
      count = len(read.inputs)
      for precision, hint in (("", "f32"), (f", {BFLOAT16}", "bf16")):
        settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(read, "CPU", settings)
        rows[f"OpenVINO, {title}{precision}"] = lambda compiled=compiled: np.array(
          compiled(arrays[:count])[0]
        ).reshape(SIZE, SIZE)
    return rows

  def folder_runtimes(self, noise: list[torch.Tensor]) -> dict[str, Callable[..., np.ndarray]]:
    """ONNX Runtime on the program that PyTorch exports, of any pair [1, 1, H, W]."""
    if not importlib.util.find_spec("onnxruntime"):
      return {}
    with tempfile.TemporaryDirectory() as folder:
      exported = Path(folder) / "torch.onnx"
      self.export(exported)
      session = onnx_session(exported.read_bytes())
    names = [x.name for x in session.get_inputs()]

    def fuse(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
      # The export leaves out what the networks do not use, such as sources that are not blended.
      given = dict(zip(INPUTS, [*noise, a, b], strict=True))
      return session.run(None, {k: given[k].numpy() for k in names})[0].reshape(SIZE, SIZE)

    return {"ONNX Runtime, of torch": fuse}


def onnx_session(program: bytes) -> Any:
  """ONNX Runtime's session of a program on all cores."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = os.cpu_count() or 1
  return onnxruntime.InferenceSession(program, options, ["CPUExecutionProvider"])


class NeededPasses(torch.nn.Module):
  """`torch_reference.fuse_as_needed` as a module."""

  def __init__(self, unet: Any, head: Any, blends: bool, passes: int | None):
    super().__init__()
    self.unet, self.head, self.blends, self.passes = unet, head, blends, passes

  def forward(self, noisy_a, noisy_b, levels, a, b):
    """[T, B, 1, H, W] twice, [T], [B, 1, H, W] twice, to [B, 1, H, W]."""
    sources = (a, b) if self.blends else None
    return torch_reference.fuse_as_needed(
      self.unet, self.head, noisy_a, noisy_b, levels, sources, self.passes
    )


def as_torch(model: Model) -> tuple[torch.nn.Module, torch.nn.Module]:
  """The torch re-statement with a model's weights."""
  config = model.config
  unet = torch_reference.UNet(
    width=config["unet"]["width"],
    multipliers=config["unet"]["multipliers"],
    num_res_blocks=config["unet"]["num_res_blocks"],
    norm_groups=config["unet"]["norm_groups"],
  )
  widths = [config["unet"]["width"] * m for m in reversed(config["unet"]["multipliers"])]
  blend = config["fusion_head"]["output"] == "blend"
  timesteps = len(config["features"]["timesteps"])
  head = torch_reference.FusionHead(widths, timesteps, blend=blend)
  states = (
    to_state_dict(model.params["unet"], torch_weights.UNET_LAYERS),
    to_state_dict(model.params["fusion_head"], torch_weights.FUSION_HEAD_LAYERS),
  )
  for network, state in zip((unet, head), states, strict=True):
    network.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
    network.eval()
  return unet, head


def compare(name: str, rows: dict[str, Callable[[], np.ndarray]], repeats: int) -> str:
  """Prints the table; returns the line of ratios."""
  ours = "dmfnet_jax, float32"
  seconds = measuring.interleaved_medians(rows, repeats)
  expected = rows[ours]()
  print(f"\n{name}: one pair of {SIZE} x {SIZE}, medians of {repeats}")
  print(f"{'':50} {'seconds':>8} {'/ ours':>7} {'largest difference':>19}")
  for title, row in rows.items():
    apart = np.abs(row() - expected).max()
    ratio = seconds[title] / seconds[ours]
    print(f"{title:50} {seconds[title]:8.3f} {ratio:7.2f} {apart:19.1e}", flush=True)
    if BFLOAT16 not in title and apart > 1e-4:
      raise SystemExit(f"{title}: another picture: the row does not count")
  peers = {title: s / seconds[ours] for title, s in seconds.items() if title != ours}
  float32 = min(r for title, r in peers.items() if BFLOAT16 not in title)
  return (
    f"{name}: fastest float32 peer / ours {float32:.2f}, fastest of all / ours "
    f"{min(peers.values()):.2f}"
  )


def compare_folder(name: str, model: Model, count: int) -> str:
  """Pairs a second of a folder, in files and out files; returns the line of the ratio.

  The others fuse one pair after the other on all cores, while threads read and write.
  """
  peers = Peers(model, with_compile=False)
  module = peers.forward(None).to(memory_format=torch.channels_last)
  noise = peers.noised()[:3]

  def by_torch(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    pair = (x.contiguous(memory_format=torch.channels_last) for x in (a, b))
    with torch.inference_mode():
      return module(*noise, *pair)[0, 0].numpy()

  fuse = {"torch, channels last": by_torch} | peers.folder_runtimes(noise)
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    for side, seed in (("a", 0), ("b", 1)):
      (root / side).mkdir()
      for i in range(count):
        x = measuring.pictures(1, SIZE, 2 * i + seed)[0]
        pictures.write_image(root / side / f"{i:03d}.png", pictures.from_float(x))

    def ours() -> None:
      shutil.rmtree(root / "ours", ignore_errors=True)
      fuse_files(str(root / "a"), str(root / "b"), str(root / "ours"), FuseOptions(model=name))

    def read(i: int) -> list[torch.Tensor]:
      read = (pictures.read_image(root / side / f"{i:03d}.png") for side in "ab")
      return [torch.from_numpy(pictures.to_float(x))[None, None] for x in read]

    def write(i: int, fused: np.ndarray) -> None:
      pictures.write_image(root / "theirs" / f"{i:03d}.png", pictures.from_float(fused))

    def theirs(fuse: Callable[..., np.ndarray]) -> None:
      (root / "theirs").mkdir(exist_ok=True)
      with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = [pool.submit(read, i) for i in range(count)]
        for i, job in enumerate(waiting):
          pool.submit(write, i, fuse(*job.result()))

    rows = {title: functools.partial(theirs, function) for title, function in fuse.items()}
    seconds = measuring.interleaved_medians({"ours": ours} | rows, 3)
  print(f"\n{name}: a folder of {count} pairs, reading and writing included")
  for title, value in seconds.items():
    print(f"{title:20} {value:8.2f} s {count / value:8.2f} pairs a second")
  fastest = min(seconds[title] for title in rows)
  return f"{name}, a folder of {count}: fastest float32 peer / ours {fastest / seconds['ours']:.2f}"


if __name__ == "__main__":
  main()
