"""`dmfnet preflight`: the real train step, compiled for TPUs that are not there.

libtpu, from PyPI, compiles on any x86 machine for a described slice. What the compiler says of
memory, arithmetic and communication is exact for its version; the time of a step is estimated from
the chip's published peaks, and can only be a bound.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from dmfnet_jax import methods
from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.messages import say
from dmfnet_jax.methods.method import Params, join, select
from dmfnet_jax.preflight.chips import CHIPS, Chip, describe_devices, parse_topology
from dmfnet_jax.preflight.step_cost import StepCost, compile_step
from dmfnet_jax.training import setup
from dmfnet_jax.training.config import parse_config
from dmfnet_jax.training.defaults import run_defaults
from dmfnet_jax.training.setup import Setup
from dmfnet_jax.weights import load_params

_MAX_BATCH = 4096  # pairs a chip that are tried
_GUESSES = 4  # so many times the next one is where memory should be full; then the gap is halved


def preflight(
  config: ml_collections.ConfigDict, topology: str, *, num_slices: int = 1, find_batch: bool = False
) -> int:
  """Prints what a config's train step takes on each chip of a slice.

  Args:
    config: a config as those in `configs/`. The batch a chip is its `batch_size` over the chips;
      where that is no whole number, one pair. `start` of a later stage may also be a config file
      of the earlier one, and where it is empty that is the one with the method's defaults.
    topology: such as "v5e:16x16".
    num_slices: how many such slices.
    find_batch: look for the largest batch a chip that fits, instead.

  Returns:
    0 where it fits, 1 where it does not.

  Raises:
    UserError: the config or the topology is wrong, or libtpu is missing.
  """
  kind, _ = parse_topology(topology)
  devices = describe_devices(topology, num_slices)
  chips, rest = len(devices), config.batch_size % len(devices)
  setup.check_config(config, 1 if rest else chips)
  run = _described(config)
  batch = 1 if rest else config.batch_size // chips
  if rest and not find_batch:
    say(
      f"config.batch_size={config.batch_size} is no multiple of the {chips} chips: compiling with "
      "one pair a chip"
    )
  where = f"{chips} chips ({topology}" + (f", {num_slices} slices)" if num_slices > 1 else ")")

  def compile_with(pairs: int) -> StepCost:
    say(f"compiling for {where}, {pairs} pairs a chip: minutes at the paper's size")
    return compile_step(run, devices, pairs)

  if find_batch:
    batch, cost = _find_batch(compile_with, batch, CHIPS[kind].hbm_gib)
  else:
    cost = compile_with(batch)
  remat = "with" if config.remat else "without"
  print(
    f"{where}, {batch} pairs a chip, {batch * chips} in all; {config.method}, stage "
    f"{config.stage}, crops of {config.crop_size}, {config.compute_dtype}, {remat} remat"
  )
  print(_describe(cost, CHIPS[kind]), flush=True)
  return 0 if cost.fits else 1


def _described(config: ml_collections.ConfigDict) -> Setup:
  """What a config stands for, with the shapes of the networks that an earlier stage would give."""
  method = methods.get(config.method)
  earlier = [stage for stage in method.stages if stage < config.stage]
  shapes: Params = {}
  if earlier:
    model_config, shapes = _start(config, max(earlier))
    config = setup.with_sections(config, model_config)
    method.check(config)
  stage = method.stages[config.stage](config)
  for field in set(stage.frozen.values()) - {"start"}:
    if stage.substitute is not None and not config[field]:
      shapes = join(shapes, jax.eval_shape(stage.substitute, gaussian.make_key(0)))
    else:
      shapes = join(shapes, _shapes(load_params(config[field])[0]))
  return Setup(config, method, stage, select(shapes, stage.frozen))


def _start(config: ml_collections.ConfigDict, earlier: int) -> tuple[Mapping[str, Any], Params]:
  """The model config and the networks' shapes of what a later stage begins from."""
  if config.start and not config.start.partition(":")[0].endswith(".py"):
    params, model_config = load_params(config.start)
    return model_config, _shapes(params)
  if config.start:
    before = parse_config(["--config", config.start])
  else:
    fields = run_defaults() | methods.get(config.method).defaults(earlier)
    before = ml_collections.ConfigDict({**fields, "method": config.method, "stage": earlier})
  run = _described(before)
  params = jax.eval_shape(run.stage.init, gaussian.make_key(0))
  return run.config.to_dict(), join(run.frozen, params)


def _shapes(params: Params) -> Params:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def _find_batch(
  compile_with: Callable[[int], StepCost], first: int, hbm_gib: float
) -> tuple[int, StepCost]:
  """Finds a batch that fits, while one an eighth larger does not.

  A compilation takes minutes, and memory grows nearly in proportion to the batch: the first few
  tries are a little to either side of where it should be full.
  """
  low, high, batch, limit = 0, _MAX_BATCH + 1, first, hbm_gib
  fitting: StepCost | None = None
  guesses = 0
  while True:
    cost = compile_with(batch)
    say(f"{batch} pairs a chip: {_total(cost)}, {_verdict(cost)}")
    limit = cost.limit_gib or limit
    if cost.fits:
      low, fitting = batch, cost
    else:
      high = batch
    # To an eighth: the next step would cost minutes, and batches are round numbers.
    if high - low <= max(1, low // 8):
      return (low, fitting) if fitting is not None else (batch, cost)
    if guesses < _GUESSES and 0 < cost.total_gib < math.inf:
      guesses += 1
      batch = round(batch * limit / cost.total_gib * (1.05 if cost.fits else 0.95))
    else:
      batch = 2 * low if high > _MAX_BATCH else (low + high) // 2
    batch = min(max(batch, low + 1), high - 1)


def _total(cost: StepCost) -> str:
  # The compiler does not always say how much it lacks.
  return f"{cost.total_gib:.2f} GiB" if math.isfinite(cost.total_gib) else "more than there is"


def _verdict(cost: StepCost) -> str:
  return "fits" if cost.fits else "does NOT fit"


def _describe(cost: StepCost, chip: Chip) -> str:
  limit = f"{chip.hbm_gib:g} GiB"
  if cost.limit_gib is not None:
    limit += f", of which a program may have {cost.limit_gib:.2f}"
  lines = {"memory": f"{_total(cost)} of {limit}: {_verdict(cost)}"}
  if cost.fits:
    counts = ", ".join(f"{n} {kind}" for kind, n in sorted(cost.collectives.items())) or "none"
    arithmetic = cost.flops / (chip.peak_tflops * 1e12)
    traffic = cost.bytes_accessed / (chip.bandwidth_gbs * 1e9)
    lines |= {
      "  arguments": f"{cost.arguments_gib:.2f} GiB (state and batch)",
      "  temporaries": f"{cost.temporaries_gib:.2f} GiB",
      "  output": f"{cost.output_gib:.2f} GiB beside the donated state",
      "FLOPs a step": f"{cost.flops / 1e12:.3f} TFLOP a chip",
      "collectives": f"{counts}; {cost.collective_bytes / 1e6:.2f} MB (gradient: "
      f"{cost.gradient_bytes / 1e6:.2f} MB)",
      "step, ESTIMATE": f"at least {1e3 * max(arithmetic, traffic):.0f} ms (arithmetic "
      f"{1e3 * arithmetic:.0f} ms at the bfloat16 peak, memory traffic {1e3 * traffic:.0f} ms); "
      "nothing was run",
    }
  lines["compile time"] = f"{cost.compile_seconds:.0f} s"
  return "\n".join(f"  {name:<15} {text}" for name, text in lines.items())
