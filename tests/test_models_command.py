"""`dmfnet models`: what there is to fuse and to train with."""

import re
from pathlib import Path

import pytest

from dmfnet_jax import methods
from dmfnet_jax.cli import main
from dmfnet_jax.weights.find import released_names


def lines_of(capsys, *words):
  assert main(["models", *words]) == 0
  return capsys.readouterr().out.splitlines()


def test_every_model_and_method_is_listed(capsys):
  lines = lines_of(capsys)
  names = [line.partition(":")[0] for line in lines if re.match(r"[a-z\d-]+: ", line)]
  assert names == [*released_names(), *methods.names()]
  for name in methods.names():
    for part, what in methods.get(name).torch_parts.items():
      assert f"    {part}: {what}" in lines
  assert all(len(line) <= 120 for line in lines if "card:" not in line)


@pytest.mark.parametrize("name", released_names())
def test_a_released_model_is_told_with_its_card(capsys, name):
  """Its card says how fast it is, in a line of its own that begins with these words."""
  lines = lines_of(capsys, name)
  assert lines[0] == f"{name}: a model of {'waveae' if name == 'waveae-small' else 'dmfnet'}"
  assert "  in: a, b; out: fused" in lines
  assert any(re.fullmatch(r"  [\d,]{6,9} parameters, \d\.\d MB", line) for line in lines)
  kinds = "infrared-visible" if name == "infrared" else "MRI-CT, MRI-PET, MRI-SPECT"
  assert f"  trained on {kinds}" in lines
  assert any(re.match(r"  Fuses a pair of .* in \d+\.\d+ s", line) for line in lines)
  (card,) = (line.removeprefix("  card: ") for line in lines if line.startswith("  card: "))
  assert Path(card).is_file()


@pytest.mark.parametrize(
  ("name", "lines"),
  [
    (
      "cddfuse",
      [
        "  in: a, b; out: fused; any sides; trained in 2 stages",
        "  configs/cddfuse.py:stage=2,size=paper trains 1,188,272 parameters in 60,000 steps of 8",
      ],
    ),
    (
      "waveae",
      [
        "  in: a, b; out: fused; any sides, padded to multiples of 4; trained in one stage",
        "  configs/waveae.py:stage=1,size=paper trains 378,961 parameters in 3,500 steps of 16",
      ],
    ),
  ],
)
def test_a_method_is_told_with_its_recipes(capsys, name, lines):
  assert set(lines) <= set(lines_of(capsys, name))


def test_methods_without_a_recipe_are_told_too(capsys):
  assert "  in: a, b; out: fused; sides as its model needs; not trained" in lines_of(capsys, "ddfm")
  lines = lines_of(capsys, "overlay")
  words = "in: a, b (3 channels); out: fused (3 channels); any sides; no weights: --model overlay"
  assert lines[1] == f"  {words} fuses"


def test_an_unknown_name_lists_those_that_there_are(capsys):
  assert main(["models", "smal"]) == 2
  error = capsys.readouterr().err
  given = "fast, infrared, small, small-fast, small-v2, waveae-small, adafuse"
  assert f"no method or released model 'smal': give one of {given}" in error
