"""Write a model as one program that runs without this package: in JAX, or as ONNX."""

import argparse
import re

from dmfnet_jax.cli.arguments import add_plugin, start_jax, whole
from dmfnet_jax.cli.fuse import add_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments; `export_model` says what each does."""
  parser.add_argument(
    "model",
    metavar="MODEL",
    help="a released model, a .safetensors file, a workdir or hf://OWNER/NAME",
  )
  parser.add_argument("-o", "--out", metavar="FILE", required=True, help="to write")
  parser.add_argument(
    "--size",
    metavar="N|HxW|DxHxW",
    type=_size,
    default=(256, 256),
    help="of the pictures: a side, or height x width; any (256); of volumes three sides",
  )
  parser.add_argument(
    "--batch",
    metavar="N",
    type=whole(1),
    default=1,
    help="pairs that go through the networks at a time; the program takes any multiple of it "
    "(%(default)s)",
  )
  parser.add_argument(
    "--format",
    choices=("jax", "onnx"),
    default="jax",
    help="jax: for CPU, GPU and TPU, needs only JAX; onnx: for ONNX Runtime, OpenVINO and others "
    "(%(default)s)",
  )
  add_option(parser, "precision")
  add_plugin(parser)


def run(args: argparse.Namespace) -> None:
  """Exports."""
  start_jax(args)
  from dmfnet_jax.inference.export import export_model

  export_model(
    args.model,
    args.out,
    size=args.size,
    batch=args.batch,
    precision=args.precision,
    file_format=args.format,
  )


def _size(text: str) -> tuple[int, ...]:
  """Parses a side, which stands for all, height x width, or three sides."""
  if not re.fullmatch(r"\d+(x\d+){0,2}", text) or 0 in (sides := [int(n) for n in text.split("x")]):
    raise argparse.ArgumentTypeError(f"{text!r} is no size: use 256, or 240x320 (height x width)")
  return (*sides, *sides)[: max(2, len(sides))]
