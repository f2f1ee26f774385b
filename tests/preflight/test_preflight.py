"""`dmfnet preflight`: what it reads off a compiled step, and what it answers."""

import pathlib
import re
import sys
from unittest import mock

import jax
import pytest
import tiny

from dmfnet_jax.cli import main
from dmfnet_jax.errors import UserError
from dmfnet_jax.preflight import preflight
from dmfnet_jax.preflight.chips import CHIPS, describe_devices, parse_topology
from dmfnet_jax.preflight.step_cost import (
  StepCost,
  compile_step,
  count_collectives,
  read_refusal,
)
from dmfnet_jax.training import setup
from dmfnet_jax.weights.files import save_weights

HLO = """
  %all-reduce.1 = (f32[3,3,8,16]{3,2,1,0:T(8,128)S(1)}, /*index=1*/bf16[5]{0:T(128)}) all-reduce(%a, %b), channel_id=1
  ROOT %fusion = f32[4] fusion(%all-reduce.1), kind=kLoop
  %all-reduce-start.2 = f32[]{:T(128)} all-reduce-start(%c), channel_id=2
  %all-reduce-done.2 = f32[]{:T(128)} all-reduce-done(%all-reduce-start.2)
  %all-gather.3 = u32[7]{0} all-gather(%d), dimensions={0}
"""  # noqa: E501


class NoCompiler:
  """Stands for a compiler of four chips that hold twenty pairs each; keeps what it was given."""

  def __init__(self, cost=lambda batch: StepCost(batch <= 20, total_gib=batch / 2, limit_gib=10.0)):
    self.cost = cost
    self.runs = []
    self.batches = []

  def compile_step(self, run, devices, batch):
    self.runs.append(run)
    self.batches.append(batch)
    return self.cost(batch)

  def preflight(self, config, **options):
    with mock.patch.multiple(
      "dmfnet_jax.preflight",
      describe_devices=lambda topology, num_slices: [object()] * 4,
      compile_step=self.compile_step,
    ):
      return preflight(config, "v5e:2x2", **options)


def test_collectives_are_counted_once_with_their_bytes():
  counts, size = count_collectives(HLO)
  assert counts == {"all-reduce": 2, "all-gather": 1}
  assert size == 4 * 3 * 3 * 8 * 16 + 2 * 5 + 4 + 4 * 7


def test_the_compilers_refusal_is_read():
  message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.0M of 15.75G hbm."
  assert read_refusal(message) == (0.5, 15.75)
  message = "total memory required for HLO temporaries (21.41G) exceeds available HBM (15.75G)."
  assert read_refusal(message) == (21.41, 15.75)
  assert read_refusal("RESOURCE_EXHAUSTED: something else") == (float("inf"), None)


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:2x", "v5e:axb", ":2x2", "v5e:2x2 "])
def test_what_is_no_topology_is_refused(name):
  with pytest.raises(UserError, match=r"KIND:SHAPE, such as v5e:16x16"):
    parse_topology(name)


@pytest.mark.parametrize(("batch_size", "pairs", "code"), [(64, 16, 0), (96, 24, 1), (1, 1, 0)])
def test_exit_code_says_whether_it_fits(capsys, batch_size, pairs, code):
  compiler = NoCompiler()
  assert compiler.preflight(tiny.config(1, batch_size=batch_size)) == code
  captured = capsys.readouterr()
  assert compiler.batches == [pairs]
  assert f"4 chips (v5e:2x2), {pairs} pairs a chip, {4 * pairs} in all" in captured.out
  assert ("does NOT fit" in captured.out) == (code == 1)
  assert ("is no multiple of the 4 chips" in captured.err) == (batch_size == 1)


@pytest.mark.parametrize("first", [1, 16, 20, 21, 40, 5000])
def test_the_largest_batch_is_found_to_an_eighth(capsys, first):
  compiler = NoCompiler()
  assert compiler.preflight(tiny.config(1, batch_size=4 * first), find_batch=True) == 0
  out = capsys.readouterr().out
  found = int(out.partition("(v5e:2x2), ")[2].partition(" ")[0])
  assert 18 <= found <= 20
  assert len(compiler.batches) == len(set(compiler.batches)) <= 5  # each takes minutes


@pytest.mark.parametrize("total_gib", [0.0, 0.01, 100.0, float("inf")])
def test_the_largest_batch_is_found_also_where_memory_tells_nothing(capsys, total_gib):
  compiler = NoCompiler(lambda batch: StepCost(fits=batch <= 20, total_gib=total_gib))
  assert compiler.preflight(tiny.config(1, batch_size=4), find_batch=True) == 0
  assert 18 <= int(capsys.readouterr().out.partition("(v5e:2x2), ")[2].partition(" ")[0]) <= 20
  assert len(compiler.batches) == len(set(compiler.batches)) <= 20


def test_where_not_even_one_pair_fits():
  compiler = NoCompiler(lambda batch: StepCost(fits=False))
  assert compiler.preflight(tiny.config(1, batch_size=4), find_batch=True) == 1


def test_stage2_takes_its_unet_from_a_recipe_or_a_run(tmp_path):
  def width(start):
    compiler = NoCompiler()
    assert compiler.preflight(tiny.config(2, start=start)) == 0
    (run,) = compiler.runs
    return run.config.unet.width

  assert width("") == 128
  assert width("configs/dmfnet.py:size=small") == 32
  params, config = tiny.model()
  save_weights(tmp_path / "tiny.safetensors", params, config)
  assert width(str(tmp_path / "tiny.safetensors")) == 8


@pytest.mark.parametrize(
  ("topology", "slices", "chips"),
  [("v5e:16x16", 1, 256), ("v6e:2x2", 2, 8), ("v4:2x2x2", 1, 8), ("v5p:2x2x1", 1, 4)]
  + [(f"{kind}:{'1x1x1' if kind in ('v4', 'v5p') else '1x1'}", 1, 1) for kind in CHIPS],
)
def test_a_device_is_a_chip(libtpu, topology, slices, chips):
  assert len(describe_devices(topology, slices)) == chips


def test_a_slice_that_there_is_not(libtpu):
  with pytest.raises(UserError, match=r"there is no topology 'v5e:3x5': .*not divisible"):
    describe_devices("v5e:3x5")


def test_without_libtpu_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)  # as if it were not installed
  with pytest.raises(UserError, match=r"dmfnet_jax\[preflight\]"):
    describe_devices("v5e:2x2")


def test_the_real_step_is_compiled(libtpu, recwarn):
  """With a model of three numbers: arguments, donation, and one combined all-reduce."""
  config = setup.set_up(tiny.toy_config(), pathlib.Path("no workdir"))
  cost, more = (compile_step(config, describe_devices("v5e:2x2"), pairs) for pairs in (2, 64))
  assert cost.fits
  assert cost.collectives == {"all-reduce": 1}
  # Three gradients, the loss and its term.
  assert cost.gradient_bytes == 12
  assert 12 <= cost.collective_bytes <= 20
  assert more.flops > 20 * cost.flops > 0
  jax.jit(lambda x: x + 1)(0)  # the cache is in use, and stays so
  compile_step(config, describe_devices("v5e:2x2"), 64)
  assert not any("persistent compilation cache" in str(warning.message) for warning in recwarn)
  alone = compile_step(config, describe_devices("v5e:1x1"), 64)
  assert more.flops == pytest.approx(alone.flops, rel=0.1)  # a chip does its own share only
  assert alone.collectives == {}
  assert more.arguments_gib > cost.arguments_gib
  assert cost.compile_seconds > 0


def test_the_frozen_networks_are_shapes_alone():
  """Of Stage II with no Stage I at hand: those of the method's defaults, and nothing computed."""
  compiler = NoCompiler()
  assert compiler.preflight(tiny.config(2)) == 0
  (run,) = compiler.runs
  leaves = jax.tree.leaves(run.frozen["unet"])
  assert sum(leaf.size for leaf in leaves) == 20_670_081
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


@pytest.mark.slow
def test_the_command_compiles_stage1_for_a_pod(libtpu, capsys):
  unet = ["--config.unet.width=8", "--config.unet.multipliers=(1,2)"]
  unet += ["--config.unet.num_res_blocks=1", "--config.unet.norm_groups=4"]
  words = ["preflight", "--config", "configs/dmfnet.py:stage=1", "--topology", "v5e:16x16"]
  assert main([*words, "--config.crop_size=16", "--config.batch_size=256", *unet]) == 0
  out = capsys.readouterr().out
  for line in ("256 chips", "fits", "temporaries", "TFLOP a chip", "ESTIMATE"):
    assert line in out
  collectives = re.search(
    r"collectives +(\d+) all-reduce; ([\d.]+) MB \(gradient: ([\d.]+) MB", out
  )
  assert 1 <= int(collectives[1]) <= 2  # combined, not one a parameter
  assert float(collectives[2]) <= float(collectives[3]) + 0.01
