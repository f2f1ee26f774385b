"""Fusing and Stage I training on an accelerator, in bfloat16, beside PyTorch on the same GPU.

  python tests/benchmarks/bench_accelerator.py [--width 128] [--size 256] [--pairs 8] [--repeats 10]

Prints pairs per second of this program, for each number of passes at a time, of PyTorch eager and
of torch.compile (both as the published program computes, with bfloat16 autocast and channels last),
training images per second of Stage I, and each one's share of the device's measured bfloat16 matrix
peak. One process, taking turns, medians; data stay on the device. PyTorch needs its CUDA build.
Where there is no accelerator it says so and ends; --anyway runs it on the CPU, to test it.
PyTorch's reflected borders need pictures of 64 x 64 at least.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Both frameworks share the GPU's memory: JAX must not take most of it at the start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import measuring  # noqa: E402

from dmfnet_jax.configs import dmfnet  # noqa: E402
from dmfnet_jax.inference.engine import Engine  # noqa: E402
from dmfnet_jax.inference.memory import choose_parts  # noqa: E402
from dmfnet_jax.training import setup, steps  # noqa: E402

_PRODUCTS = 10  # in a row, so that starting them costs nothing


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--width", type=int, default=128, help="of the finest level (%(default)s)")
  parser.add_argument("--size", type=int, default=256)
  parser.add_argument("--pairs", type=int, default=8, help="in a batch (%(default)s)")
  parser.add_argument("--crop-size", type=int, default=160, help="in training (%(default)s)")
  parser.add_argument("--train-pairs", type=int, default=16, help="a step (%(default)s)")
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--anyway", action="store_true", help="also without an accelerator")
  args = parser.parse_args()
  if jax.default_backend() == "cpu" and not args.anyway:
    print("accelerator: none here; run this benchmark on a machine that has one")
    return
  print(f"width {args.width}, bfloat16, medians of {args.repeats}")
  print(measuring.machine(), flush=True)

  side = 8192 if jax.default_backend() != "cpu" else 512
  matrices = [measuring.pictures(1, side, seed)[0] / side**0.5 for seed in (0, 1)]
  matrices = [jnp.asarray(x, jnp.bfloat16) for x in matrices]
  multiply = jax.jit(lambda x, y: jax.lax.fori_loop(0, _PRODUCTS, lambda _, z: z @ y, x))
  runs: dict[str, Callable[[], Any]] = {
    "matrix product": lambda: multiply(*matrices).block_until_ready()
  }
  arithmetic = {"matrix product": 2.0 * side**3 * _PRODUCTS}
  fusing, flops, default = _fusing(args)
  runs |= fusing
  arithmetic |= dict.fromkeys((name for name in fusing if name.startswith("dmfnet")), flops)
  runs["Stage I training"], arithmetic["Stage I training"] = _training(args)

  seconds = measuring.interleaved_medians(runs, args.repeats)
  peak = arithmetic["matrix product"] / seconds["matrix product"]
  print(f"bfloat16 matrix peak: {peak / 1e12:.1f} TFLOP/s ({side} x {side})")
  print(f"{'':36} {'a second':>9} {'of peak':>8}")
  for name in [*fusing, "Stage I training"]:
    count = 2 * args.train_pairs if name == "Stage I training" else args.pairs
    unit = "images" if name == "Stage I training" else "pairs"
    line = f"{name:36} {count / seconds[name]:9.1f}"
    if name in arithmetic:
      line += f" {arithmetic[name] / seconds[name] / peak:8.2f}"
    print(f"{line}  {unit}")
  best = min(seconds[name] for name in fusing if name.startswith("dmfnet"))
  for name in fusing:
    if name.startswith("PyTorch"):
      ratios = (seconds[name] / ours for ours in (seconds[default], best))
      print("faster than {}: {:.2f} x as chosen by default, at best {:.2f} x".format(name, *ratios))


def _fusing(args: argparse.Namespace) -> tuple[dict[str, Callable[[], Any]], float, str]:
  """The ways to fuse a batch, the arithmetic of ours, and which of them is the default."""
  shape = (3, args.pairs, args.size, args.size, 1)
  noisy = [measuring.pictures(3 * args.pairs, args.size, seed).reshape(shape) for seed in range(2)]
  runs: dict[str, Callable[[], Any]] = {}
  networks, params, config = measuring.paper_model(args.width)
  if networks is not None:
    runs |= _pytorch(networks, noisy)
  inputs = [*(jnp.asarray(x) for x in noisy), jnp.asarray(measuring.LEVELS)]
  for passes in (1, 2, 3, 6):
    engine = Engine(params, config, compute_dtype="bfloat16", parts_per_step=passes)
    runs[f"dmfnet_jax, {passes} passes at a time"] = lambda engine=engine: engine.extra(
      "fuse_noisy", *inputs
    ).block_until_ready()
  # Of the last graph: the others compute the same, but a loop's body is counted once.
  flops = measuring.arithmetic(functools.partial(engine.extra, "fuse_noisy"), *inputs)
  size = (args.size, args.size)
  chosen = choose_parts(engine.method, config, size, args.pairs, "bfloat16")
  return runs, flops, f"dmfnet_jax, {chosen} passes at a time"


def _pytorch(networks: tuple, noisy: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
  """The published way of computing, eager and compiled, where PyTorch has the GPU too."""
  import torch
  import torch_reference

  device = "cuda" if torch.cuda.is_available() else "cpu"
  if device == "cpu" and jax.default_backend() != "cpu":
    print("PyTorch has no GPU here: install its CUDA build to compare")
    return {}
  torch.set_default_device(device)
  torch.backends.cudnn.benchmark = True  # XLA tries the convolution algorithms, too
  unet, head = (x.to(device, memory_format=torch.channels_last) for x in networks)
  inputs = [torch.from_numpy(x[..., 0][:, :, None]).to(device) for x in noisy]
  levels = torch.from_numpy(measuring.LEVELS).to(device)

  def fuse(unet: Any, head: Any) -> None:
    with torch.autocast(device, torch.bfloat16):
      torch_reference.fuse_as_published(unet, head, *inputs, levels)
    if device == "cuda":
      torch.cuda.synchronize()

  compiled = torch.compile(unet), torch.compile(head)
  return {
    "PyTorch, eager": lambda: fuse(unet, head),
    "PyTorch, torch.compile": lambda: fuse(*compiled),
  }


def _training(args: argparse.Namespace) -> tuple[Callable[[], Any], float]:
  """The train step of the paper's Stage I on one device, and its arithmetic."""
  config = dmfnet.get_config("stage=1")
  config.compute_dtype = "bfloat16"
  config.unet.width = args.width
  config.batch_size = args.train_pairs
  device = jax.local_devices()[:1]
  run_setup = setup.set_up(config, Path("no workdir"))
  state = jax_utils.replicate(setup.init_state(run_setup), device, axis_name=steps.AXIS)
  images = [
    measuring.pictures(args.train_pairs, args.crop_size, seed)[None, ..., None] for seed in range(2)
  ]
  index = np.arange(args.train_pairs, dtype=np.int32)[None]
  batch = jax.device_put({"a": images[0], "b": images[1], "index": index})
  train_step = setup.pmap_train_step(run_setup, device)
  on_cpu = setup.pmap_train_step(run_setup, jax.local_devices(backend="cpu")[:1])
  flops = measuring.arithmetic(on_cpu, state, batch)
  holder = [state]

  def run() -> None:
    holder[0] = jax.block_until_ready(train_step(holder[0], batch)[0])

  return run, flops


if __name__ == "__main__":
  main()
