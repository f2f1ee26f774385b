"""Times fusing one pair against the published way of computing it, in eager PyTorch.

  python tests/benchmarks/bench_fuse.py [--width 128] [--size 256] [--repeats 5]

PyTorch runs six passes of the whole UNet one after the other, as the published program does. Both
sides are float32, in one process, taking turns; medians. Prints how far apart the pictures are, the
time and the planned memory for each number of passes at a time, and the share of the machine's
convolution peak: of the fastest 3 x 3 convolution of the finest level, alone, in the same run.
Without torch only this program is timed.
"""

import argparse
import functools
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import measuring  # noqa: E402

from dmfnet_jax.inference.engine import Engine  # noqa: E402


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--width", type=int, default=128, help="of the finest level (%(default)s)")
  parser.add_argument("--size", type=int, default=256)
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args()
  size, width = args.size, args.width
  noisy = np.stack([measuring.pictures(3, size, seed) for seed in range(2)])[..., None, :, :, None]
  noisy = np.ascontiguousarray(noisy)  # [a or b, T, 1, H, W, 1]

  runs = {}
  networks, params, config = measuring.paper_model(width)
  if networks is not None:
    import torch
    import torch_reference

    inputs = [torch.from_numpy(x.reshape(3, 1, 1, size, size)) for x in noisy]

    def published() -> np.ndarray:
      fused = torch_reference.fuse_as_published(
        *networks, *inputs, torch.from_numpy(measuring.LEVELS)
      )
      return fused.numpy()[:, 0]

    runs["PyTorch, eager, six passes"] = published
  engines = {passes: Engine(params, config, parts_per_step=passes) for passes in (1, 2, 3, 6)}

  def ours(passes: int) -> np.ndarray:
    return np.asarray(engines[passes].extra("fuse_noisy", *noisy, measuring.LEVELS))[..., 0]

  for passes in engines:
    runs[f"dmfnet_jax, {passes} at a time"] = lambda passes=passes: ours(passes)
  convolutions = _convolutions(size, width)

  print(f"one pair of {size} x {size}, width {width}, float32, medians of {args.repeats}")
  print(measuring.machine(), flush=True)
  seconds = measuring.interleaved_medians(runs | convolutions, args.repeats)
  arithmetic = measuring.arithmetic(
    functools.partial(engines[6].extra, "fuse_noisy"), *noisy, measuring.LEVELS
  )
  peak_name = min(convolutions, key=seconds.__getitem__)
  peak = _convolution_arithmetic(size, width) / seconds[peak_name]
  print(f"{'':28} {'seconds':>8} {'GFLOP/s':>8} {'of peak':>8} {'temporaries':>12}")
  for name in runs:
    line = f"{name:28} {seconds[name]:8.2f}"
    if name.startswith("dmfnet"):
      passes = int(name.split()[1])
      rate = arithmetic / seconds[name]
      memory = engines[passes].temporary_bytes((size, size)) / 1e6
      line += f" {rate / 1e9:8.0f} {rate / peak:8.2f} {memory:9.0f} MB"
    print(line)
  print(f"arithmetic here: {arithmetic / 1e9:.0f} GFLOP")
  for name in convolutions:
    rate = _convolution_arithmetic(size, width) / seconds[name]
    print(f"{name:40} {rate / 1e9:8.0f} GFLOP/s{'  (the peak)' if name == peak_name else ''}")
  if networks is not None:
    reference = seconds["PyTorch, eager, six passes"]
    print(f"faster than PyTorch: {reference / seconds['dmfnet_jax, 1 at a time']:.2f} x")
    print(f"largest difference of the pictures: {np.abs(ours(1) - published()).max():.1e}")


def _convolutions(size: int, width: int) -> dict:
  """One convolution of the finest level in XLA, and in PyTorch in both layouts."""
  x = measuring.pictures(width, size).transpose(1, 2, 0)[None]
  kernel = measuring.pictures(9, width).reshape(3, 3, width, width) / width
  convolve = jax.jit(
    lambda x, kernel: jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
  )
  on_device = jnp.asarray(x), jnp.asarray(kernel)
  runs = {"3 x 3 convolution, XLA": lambda: convolve(*on_device).block_until_ready()}
  if importlib.util.find_spec("torch") is not None:
    import torch

    for name, layout in (("NCHW", "contiguous_format"), ("channels last", "channels_last")):
      to_layout = {"memory_format": getattr(torch, layout)}
      image = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).contiguous(
        **to_layout
      )
      weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
      weight = weight.contiguous(**to_layout)
      runs[f"3 x 3 convolution, PyTorch, {name}"] = lambda image=image, weight=weight: (
        torch.nn.functional.conv2d(image, weight, padding=1)
      )
  return runs


def _convolution_arithmetic(size: int, width: int) -> float:
  return 2.0 * 9 * (size * width) ** 2


if __name__ == "__main__":
  main()
