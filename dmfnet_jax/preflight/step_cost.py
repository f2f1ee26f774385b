"""Compiles a config's train step for described devices, and reads off what it costs a chip."""

import collections
import contextlib
import functools
import math
import re
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from dmfnet_jax.methods.method import batch_fields
from dmfnet_jax.training import setup
from dmfnet_jax.training.setup import Setup

_GIB = 2**30


class StepCost(NamedTuple):
  """What one train step costs one chip."""

  fits: bool  # whether the compiler could place it in the chip's memory
  arguments_gib: float = 0.0  # state and batch; the new state takes the old one's place
  temporaries_gib: float = 0.0  # activations and what else lives during the step only
  output_gib: float = 0.0  # what is returned in memory of its own
  total_gib: float = 0.0  # all of these and the program; what the compiler says if it does not fit
  limit_gib: float | None = None  # what the compiler lets a program have, where it says
  flops: float = 0.0
  bytes_accessed: float = 0.0  # to and from memory, as the compiler counts them
  collectives: Mapping[str, int] = types.MappingProxyType({})  # number by kind
  collective_bytes: int = 0  # that they work on, together
  gradient_bytes: int = 0  # of the trained parameters
  compile_seconds: float = 0.0


def compile_step(run: Setup, devices: Sequence[jax.Device], batch_per_chip: int) -> StepCost:
  """Compiles the train step that `dmfnet train` runs, for described devices, one a chip.

  Of the networks that the run keeps the shapes are enough.
  """
  count = len(devices)
  state = jax.eval_shape(functools.partial(setup.init_state, run._replace(frozen={})))
  state = state.replace(frozen=run.frozen)
  gradient_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
  state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), state)
  lead, space = (count, batch_per_chip), (run.config.crop_size,) * run.method.space
  batch = {
    field.name: jax.ShapeDtypeStruct(
      (*lead, *(() if field.is_vector else space), field.channels), jnp.float32
    )
    for field in batch_fields(run.method, run.stage)
  }
  batch["index"] = jax.ShapeDtypeStruct(lead, jnp.int32)
  lowered = setup.pmap_train_step(run, devices).lower(state, batch)
  start = time.perf_counter()
  try:
    with _uncached():
      compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    # The compiler refuses what exceeds the memory: "Used 20.1G of 15.75G hbm".
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    compiled, (used, limit) = None, read_refusal(str(error))
  seconds = time.perf_counter() - start
  if compiled is None:
    cost = StepCost(fits=False, total_gib=used, limit_gib=limit)
  else:
    cost = _read_cost(compiled)
  return cost._replace(gradient_bytes=gradient_bytes, compile_seconds=seconds)


def _read_cost(compiled: Any) -> StepCost:
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  output = memory.output_size_in_bytes - memory.alias_size_in_bytes
  total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + output
  collectives, collective_bytes = count_collectives(compiled.as_text())
  return StepCost(
    fits=True,
    arguments_gib=memory.argument_size_in_bytes / _GIB,
    temporaries_gib=memory.temp_size_in_bytes / _GIB,
    output_gib=output / _GIB,
    total_gib=(total + memory.generated_code_size_in_bytes) / _GIB,
    flops=cost["flops"],
    bytes_accessed=cost["bytes accessed"],
    collectives=collectives,
    collective_bytes=collective_bytes,
  )


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
  """Keeps JAX's compilation cache out: without the devices it cannot load what it has kept."""
  before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # it has looked at the setting once, and would not again
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def read_refusal(message: str) -> tuple[float, float | None]:
  """What a program needs and may have, GiB, as the compiler says it; infinity and None else."""
  # Which of the two depends on how far it came.
  found = re.search(r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm", message) or re.search(
    r"temporaries \(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)", message
  )
  if not found:
    return math.inf, None
  unit = {"K": 2**-20, "M": 2**-10, "G": 1.0, "": 2**-30}
  return float(found[1]) * unit[found[2]], float(found[3]) * unit[found[4]]


_COLLECTIVE = re.compile(
  r" = (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
  r"(?:-start)?\("
)
_ARRAY = re.compile(r"\b[a-z]+(\d+)\w*\[([\d,]*)\]")


def count_collectives(hlo: str) -> tuple[dict[str, int], int]:
  """The number of communications by kind in a compiled program's text, and their results' bytes.

  An asynchronous one, which has a start and an end there, counts once.
  """
  counts: collections.Counter[str] = collections.Counter()
  total = 0
  for line in hlo.splitlines():
    # Layouts hold parentheses of their own: f32[8,128]{1,0:T(8,128)}; comments number the results.
    found = _COLLECTIVE.search(re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", line))
    if not found:
      continue
    counts[found[2]] += 1
    for bits, shape in _ARRAY.findall(found[1]):
      total += int(bits) // 8 * math.prod(map(int, filter(None, shape.split(","))))
  return counts, total
