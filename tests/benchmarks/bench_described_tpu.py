"""What a TPU's compiler expects of the graphs, without a TPU: its estimated cycles.

  pip install -e ".[preflight]"
  python tests/benchmarks/bench_described_tpu.py [--topology v5e:1x1] [--width 128] [--size 256]

Compiles for one chip, in bfloat16: pairs' fusing for each number of passes at a time, and the
gradient of one ResNet block of Stage I with and without dropout. Prints the compiler's estimated
cycles, the share of them at the chip's full matrix rate that the arithmetic alone would take, and
the operations that take most. These are estimates that serve to compare graphs; nothing is run.
"""

import argparse
import collections
import functools
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import measuring  # noqa: E402

from dmfnet_jax.inference.engine import example_keys  # noqa: E402
from dmfnet_jax.methods.dmfnet import METHOD  # noqa: E402
from dmfnet_jax.methods.dmfnet.unet import ResnetBlock  # noqa: E402
from dmfnet_jax.methods.method import Compute  # noqa: E402
from dmfnet_jax.preflight.chips import CHIPS, describe_devices, parse_topology  # noqa: E402

_CLOCK_HZ = {"v5e": 1.5e9, "v6e": 1.75e9, "v4": 1.05e9, "v5p": 1.75e9}


def main() -> None:
  """Prints a line a graph."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--topology", default="v5e:1x1", help="of one chip (%(default)s)")
  parser.add_argument("--width", type=int, default=128, help="of the finest level (%(default)s)")
  parser.add_argument("--size", type=int, default=256, help="of the fused pair (%(default)s)")
  parser.add_argument("--pairs", type=int, nargs="*", default=[1], help="fused at a time")
  parser.add_argument("--passes", type=int, nargs="*", default=[1, 6], help="at a time")
  parser.add_argument("--crops", type=int, default=16, help="for the block (%(default)s)")
  parser.add_argument("--crop-size", type=int, default=160)
  parser.add_argument("--top", type=int, default=0, help="list so many operations of each graph")
  args = parser.parse_args()
  if importlib.util.find_spec("libtpu") is None:
    print('described TPU: needs libtpu: pip install -e ".[preflight]"')
    return
  kind, _ = parse_topology(args.topology)
  (device,) = describe_devices(args.topology)
  operations_per_cycle = CHIPS[kind].peak_tflops * 1e12 / _CLOCK_HZ[kind]
  print(f"{args.topology}, width {args.width}, bfloat16; estimates: nothing is run")
  print(f"{'':34} {'Mcycles':>8} {'of peak':>8} {'MB':>7}")

  def report(name: str, function: Any, flops: float, inputs: Any, iterations: int = 1) -> None:
    on_chip = functools.partial(_placed, jax.sharding.SingleDeviceSharding(device))
    compiled = jax.jit(function).lower(*jax.tree.map(on_chip, inputs)).compile()
    by_operation = estimated_cycles(compiled.as_text(), iterations)
    cycles = by_operation.total()
    memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
    share = flops / operations_per_cycle / cycles
    print(f"{name:34} {cycles / 1e6:8.2f} {share:8.2f} {memory:7.0f}", flush=True)
    for operation, count in by_operation.most_common(args.top):
      print(f"  {count / cycles:6.1%} {operation}")

  for rate in (0.0, 0.2):
    gradient, *inputs = _block(args, rate)
    name = f"ResNet block's gradient, dropout {rate:g}"
    report(name, gradient, 3 * _block_arithmetic(args), inputs)
  config = measuring.model_config(args.width)
  params = measuring.drawn_params(config)
  for pairs in args.pairs:
    image = jax.ShapeDtypeStruct((pairs, args.size, args.size, 1), np.float32)
    keys = jax.eval_shape(functools.partial(example_keys, 0, [""] * pairs))
    inputs = [params, {"a": image, "b": image}, keys]
    flops = measuring.arithmetic(METHOD.fuse(config, Compute("bfloat16", 6)), *inputs)
    for passes in args.passes:
      fuse = METHOD.fuse(config, Compute("bfloat16", passes))
      name = f"{pairs} x {args.size}, {passes} passes at a time"
      report(name, fuse, flops, inputs, 6 // passes)


def _block(args: argparse.Namespace, rate: float) -> tuple[Any, ...]:
  """The gradient of a block of the finest level, and the shapes of what it takes."""
  block = ResnetBlock(args.width, min(32, args.width), rate, dtype=jnp.bfloat16)
  shape = (args.crops, args.crop_size, args.crop_size, args.width)
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  embedding = jax.ShapeDtypeStruct((args.crops, args.width), jnp.bfloat16)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), args.crops))
  params = jax.eval_shape(functools.partial(block.init, jax.random.key(0)), (x,), embedding, keys)

  def loss(params: Any, x: jax.Array, embedding: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(block.apply(params, (x,), embedding, keys).astype(jnp.float32)))

  return jax.grad(loss, (0, 1)), params, x, embedding, keys


def _block_arithmetic(args: argparse.Namespace) -> float:
  """Operations of the two convolutions of a block, forward."""
  return 2 * 2 * 9 * args.width**2 * args.crops * args.crop_size**2


def _placed(sharding: Any, x: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def estimated_cycles(hlo: str, iterations: int = 1) -> collections.Counter[str]:
  """Sums a compiled TPU program's estimated cycles by operation.

  Args:
    hlo: the program's text.
    iterations: of its loop, where it has one.
  """
  by_computation: dict[str, collections.Counter[str]] = {}
  bodies = set()
  current: collections.Counter[str] = collections.Counter()
  for line in hlo.splitlines():
    if found := re.match(r"(?:ENTRY )?%([\w.-]+) .*\{$", line):
      current = by_computation.setdefault(found[1], collections.Counter())
    if found := re.search(r'"estimated_cycles":"(\d+)"', line):
      name = re.search(r'op_name="([^"]*)"', line)
      current[name[1] if name else line.split(" = ")[0].strip()] += int(found[1])
    if found := re.search(r" while\(.* body=%([\w.-]+)", line):
      bodies.add(found[1])
  if len(bodies) > (iterations > 1):
    raise ValueError(f"{len(bodies)} loops: how often each runs is not known")
  total: collections.Counter[str] = collections.Counter()
  for computation, counts in by_computation.items():
    times = iterations if computation in bodies else 1
    total.update({name: n * times for name, n in counts.items()})
  return total


if __name__ == "__main__":
  main()
