"""List the methods and the released models: inputs, size, weights, speed, card."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dmfnet_jax.cli.arguments import start_jax
from dmfnet_jax.errors import UserError

if TYPE_CHECKING:
  from dmfnet_jax.methods.method import Field, Method

_SPEED = re.compile(r"^Fuses a pair of .*", re.MULTILINE)  # how a card says it


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the name."""
  parser.add_argument(
    "name",
    metavar="NAME",
    nargs="?",
    help="one method or released model alone; of a method also what its recipes train",
  )


def run(args: argparse.Namespace) -> None:
  """Prints the list.

  Raises:
    UserError: no method and no released model has that name.
  """
  start_jax(args)
  from dmfnet_jax import methods
  from dmfnet_jax.weights.find import released_names

  if args.name is None:
    print("Released models: dmfnet fuse A B -o OUT --model NAME\n")
    for name in released_names():
      print("\n".join(_of_model(name)), end="\n\n")
    print("Methods: dmfnet train --config configs/NAME.py --workdir DIR")
    for name in methods.names():
      print("\n" + "\n".join(_of_method(name)))
  elif args.name in released_names():
    print("\n".join(_of_model(args.name)))
  elif args.name in methods.names():
    print("\n".join(_of_method(args.name)))
    for line in _recipes(args.name):  # each as soon as its networks are built
      print(line, flush=True)
  else:
    known = ", ".join([*released_names(), *methods.names()])
    raise UserError(f"no method or released model {args.name!r}: give one of {known}")


def _of_model(name: str) -> Iterator[str]:
  """The lines about a released model."""
  import jax

  from dmfnet_jax import methods
  from dmfnet_jax.weights import find

  path = find.released_path(name)
  params, config = find.load_params(name)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  card = path.with_suffix(".md")
  speed = _SPEED.search(card.read_text(encoding="utf-8")) if card.exists() else None
  yield f"{name}: a model of {config['method']}"
  yield f"  {_fields(methods.get(config['method']))}"
  yield f"  {count:,} parameters, {path.stat().st_size / 1e6:.1f} MB"
  if pairs := find.trained_on(name):
    yield f"  trained on {', '.join(pairs)}"
  if speed:
    yield f"  {speed[0]}"
  if card.exists():
    yield f"  card: {card}"


def _of_method(name: str) -> Iterator[str]:
  """The lines about a method, with nothing computed."""
  import importlib

  from dmfnet_jax import methods

  method = methods.get(name)
  about = (importlib.import_module(methods.__name__ + f".{name}").__doc__ or "").splitlines()[0]
  sides = "sides as its model needs"
  if method.stages or not method.networks:
    config = {k: v for stage in method.stages for k, v in method.defaults(stage).items()}
    stride = method.stride(config)
    sides = "any sides" if stride == 1 else f"any sides, padded to multiples of {stride}"
  count = len(method.stages)
  training = {0: "not trained", 1: "trained in one stage"}.get(count, f"trained in {count} stages")
  training = training if method.networks else f"no weights: --model {name} fuses"
  yield f"{name}: {about}"
  line = f"  {_fields(method)}; {sides}; {training}"
  yield from textwrap.wrap(line, width=120, subsequent_indent="    ", break_on_hyphens=False)
  if method.torch_parts:
    yield f"  published weights: dmfnet convert {name} PART=FILE -o MODEL.safetensors"
    for part, what in method.torch_parts.items():
      yield f"    {part}: {what}"


def _fields(method: Method) -> str:
  """What goes in and what comes out."""

  def words(fields: tuple[Field, ...]) -> str:
    kinds = [
      f" ({field.channels} numbers)"
      if field.is_vector
      else f" ({field.channels} channels)" * (field.channels > 1)
      for field in fields
    ]
    return ", ".join(field.name + kind for field, kind in zip(fields, kinds, strict=True))

  space = " volumes" if method.space == 3 else ""
  return f"in: {words(method.sources)}{space}; out: {words(method.outputs)}"


def _recipes(name: str) -> Iterator[str]:
  """How many parameters each size of a method's recipe trains; the networks are only traced."""
  import importlib

  import jax

  from dmfnet_jax import methods
  from dmfnet_jax.diffusion import gaussian
  from dmfnet_jax.training.setup import trained_networks, with_sections
  from dmfnet_jax.weights.workdir import model_config

  method = methods.get(name)
  if not method.stages:
    return
  recipe: Any = importlib.import_module(f"dmfnet_jax.configs.{name}")
  for size in recipe.SIZES:
    earlier: dict[str, Any] = {}
    for stage in sorted(method.stages):
      config = with_sections(recipe.get_config(f"stage={stage},size={size}"), earlier)
      made = method.stages[stage](config)
      params = jax.eval_shape(made.init, gaussian.make_key(0))
      trained = [params[network] for network in trained_networks(made)]
      count = sum(leaf.size for leaf in jax.tree.leaves(trained))
      yield (
        f"  configs/{name}.py:stage={stage},size={size} trains {count:,} parameters in "
        f"{config.num_train_steps:,} steps of {config.batch_size}"
      )
      earlier |= model_config(config.to_dict(), earlier)
