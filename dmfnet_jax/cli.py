"""The `dmfnet` command: parses, calls one function a sub-command, turns errors into exit codes.

Only the standard library is imported before a sub-command runs, so that `dmfnet --help` and a
mistyped option answer at once.

Exit codes: 0 all done; 1 some pairs failed; 2 wrong usage, or nothing could be done; 130
interrupted; 141 the reader of the output went away.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence

import dmfnet_jax
from dmfnet_jax import cli_fuse
from dmfnet_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: the arguments after the program's name; by default those of the process.

  Returns:
    The exit code. A user's mistake gives one line on stderr; any other exception is a bug and
    keeps its traceback.
  """
  # Pillow's remarks on damaged files, whose errors we report, would stand between our own lines.
  warnings.filterwarnings("ignore", module=r"PIL\.")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # nor are TensorFlow's start-up notes ours
  try:
    code = _run(sys.argv[1:] if argv is None else argv)
    sys.stdout.flush()  # here, so that a closed pipe is noticed inside this `try`
    return code
  except SystemExit as stop:  # argparse: 0 after --help, 2 after wrong usage
    return stop.code if isinstance(stop.code, int) else 2
  except UserError as error:
    print(f"dmfnet: error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("dmfnet: interrupted", file=sys.stderr)
    return 130
  except BrokenPipeError:
    if not _drop_closed_output():
      raise  # another pipe than our output's: a bug or a lost worker process
    return 141


def _run(argv: Sequence[str]) -> int:
  parser = build_parser()
  args, rest = parser.parse_known_args(cli_fuse.join_windows(argv))
  if rest and not getattr(args, "takes_overrides", False):
    parser.error(f"unrecognized arguments: {' '.join(rest)}")
  args.overrides = rest
  return int(args.function(args) or 0)


def _drop_closed_output() -> bool:
  """Tells whether the reader of stdout or stderr is gone, and if so silences that stream."""
  dropped = False
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.write("\n")  # only a write can tell
      stream.flush()
    except BrokenPipeError:
      # Python flushes once more when it ends: that flush must find somewhere to write to.
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
      dropped = True
  return dropped


def build_parser() -> argparse.ArgumentParser:
  """Returns the parser of the whole command; each sub-command sets `function`."""
  parser = argparse.ArgumentParser(
    prog="dmfnet",
    description="Fuses registered medical images: MRI (A) with CT, PET or SPECT (B).",
    allow_abbrev=False,
  )
  parser.add_argument("--version", action="version", version=f"dmfnet {dmfnet_jax.__version__}")
  commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

  def command(name: str, function: Callable[[argparse.Namespace], int | None], about: str):
    sub = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
    sub.set_defaults(function=function)
    return sub

  demo = command("demo", _demo, "Fuse a few simulated pairs, with no data to bring, and show them.")
  demo.add_argument("--out", metavar="DIR", default="demo", help="folder to write to (%(default)s)")

  fuse = command("fuse", _fuse, "Fuse two files or series, or all pairs of two folders.")
  cli_fuse.add_arguments(fuse)

  about = "Write a model as one program for CPU, GPU and TPU that needs only JAX to run."
  export = command("export", _export, about)
  cli_fuse.add_export_arguments(export)

  evaluate = command("evaluate", _evaluate, "Compute the twelve fusion metrics of fused pictures.")
  evaluate.add_argument("--a", metavar="DIR", required=True, help="the MRI pictures")
  evaluate.add_argument("--b", metavar="DIR", required=True, help="the CT, PET or SPECT pictures")
  evaluate.add_argument("--fused", metavar="DIR", required=True, help="the fused pictures")
  evaluate.add_argument("--json", metavar="FILE", help="also write the metrics of every pair here")

  train = command("train", _train, "Train, or resume a training, with a config file.")
  train.usage = "%(prog)s --config FILE.py --workdir DIR [--config.FIELD=VALUE ...]"
  train.add_argument("--workdir", metavar="DIR", required=True, help="checkpoints and logs")
  _add_config(train)
  hosts = train.add_argument_group(
    "several processes",
    "detected on TPU slices, under SLURM and Open MPI; elsewhere give all three",
  )
  hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
  hosts.add_argument("--num-processes", metavar="N", type=cli_fuse.whole(1), help="how many")
  hosts.add_argument("--process-id", metavar="I", type=cli_fuse.whole(0), help="this one, from 0")
  hosts.add_argument(
    "--preempted-exit-code",
    metavar="N",
    type=cli_fuse.whole(0),
    default=0,
    help="where SIGTERM stopped the run, for launchers that start again what fails (%(default)s)",
  )

  about = "Compile the train step for a TPU slice that is not here: does it fit, what does it cost?"
  preflight = command("preflight", _preflight, about)
  preflight.usage = "%(prog)s --config FILE.py --topology KIND:SHAPE [--config.FIELD=VALUE ...]"
  preflight.description = f"{about} Exit code 0 where it fits, 1 where it does not."
  preflight.add_argument(
    "--topology", metavar="KIND:SHAPE", required=True, help="such as v5e:16x16, v6e:2x2, v4:2x2x2"
  )
  preflight.add_argument(
    "--num-slices", metavar="N", type=cli_fuse.whole(1), default=1, help="slices of that shape"
  )
  preflight.add_argument(
    "--find-batch", action="store_true", help="find the largest batch a chip that fits"
  )
  _add_config(preflight)

  data = command("data", _data, "Prepare a dataset for training.")
  steps = data.add_subparsers(title="steps", metavar="STEP", required=True)
  about = "Read a dataset's sources once and write it in the form that training reads."
  prepare = steps.add_parser("prepare", help=about, description=about, allow_abbrev=False)
  prepare.add_argument("name", metavar="NAME", help="the dataset, such as mni_pairs")
  prepare.add_argument("--data-dir", metavar="DIR", required=True, help="where to write it")
  prepare.add_argument("--manual-dir", metavar="DIR", help="where its sources lie, if on disk")

  convert = command("convert", _convert, "Convert the published PyTorch weights.")
  convert.add_argument("--unet", metavar="UNET.pth", required=True, help="the UNet's file")
  convert.add_argument("--fusion-head", metavar="HEAD.pth", required=True, help="the head's file")
  convert.add_argument("-o", "--out", metavar="MODEL.safetensors", required=True, help="to write")

  about = "Write one HTML file to judge fused pictures, or a training run, in any browser."
  report = command("report", _report, about)
  report.usage = "%(prog)s (A B FUSED | WORKDIR) -o REPORT.html [options]"
  report.add_argument(
    "sources",
    metavar="SOURCE",
    nargs="+",
    help="A B FUSED: three folders whose pictures share their stems, or three pictures; or the "
    "workdir of a training run",
  )
  report.add_argument("-o", "--out", metavar="REPORT.html", required=True, help="to write")
  report.add_argument("--title", metavar="TEXT", help="the heading (by default the folder's name)")
  report.add_argument(
    "--pictures",
    metavar="N",
    type=cli_fuse.whole(0),
    default=500,
    help="pairs shown in pictures, worst first; the others in the table only (%(default)s)",
  )

  about = "Serve a page in the browser to fuse a pair: upload or pick, look, download."
  serve = command("serve", _serve, about)
  serve.add_argument(
    "--model",
    metavar="NAME|FILE|WORKDIR",
    default="small",
    help="a released model, a .safetensors file or a training workdir (%(default)s)",
  )
  serve.add_argument(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    help="the address to listen on; 0.0.0.0 lets in whoever reaches this machine (%(default)s)",
  )
  serve.add_argument(
    "--port",
    type=cli_fuse.whole(0, 65535),
    default=7860,
    help="0: the first free one from 7860 on (%(default)s)",
  )
  return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--config",
    metavar="FILE.py",
    required=True,
    help="the recipe; --config.FIELD=VALUE sets one of its fields",
  )
  parser.set_defaults(takes_overrides=True)


def _config_arguments(args: argparse.Namespace) -> list[str]:
  """The config file and its overrides as `parse_config` takes them.

  Raises:
    UserError: among the remaining arguments is one that sets no config field.
  """
  takes_value = False
  for argument in args.overrides:
    is_override = argument.startswith("--config.")
    if not is_override and not takes_value:
      raise UserError(f"{argument}: no such option (a config field is set by --config.FIELD=VALUE)")
    takes_value = is_override and "=" not in argument
  return [f"--config={args.config}", *args.overrides]


def _start_jax() -> None:
  from absl import logging

  from dmfnet_jax.backend import enable_compilation_cache, ignore_absent_tpu

  # Below that, TFDS and Orbax remark on their own settings.
  logging.set_verbosity(logging.ERROR)
  enable_compilation_cache()
  ignore_absent_tpu()


def _demo(args: argparse.Namespace) -> None:
  _start_jax()
  from dmfnet_jax.demo import demo

  demo(args.out)


def _fuse(args: argparse.Namespace) -> int | None:
  _start_jax()
  return cli_fuse.run(args)


def _export(args: argparse.Namespace) -> None:
  _start_jax()
  cli_fuse.run_export(args)


def _evaluate(args: argparse.Namespace) -> int | None:
  _start_jax()
  from dmfnet_jax.inference.evaluate import evaluate_folders

  return evaluate_folders(args.a, args.b, args.fused, json_file=args.json)


def _train(args: argparse.Namespace) -> int:
  arguments = _config_arguments(args)
  from dmfnet_jax.training.config import parse_config

  config = parse_config(arguments)
  _start_jax()
  from dmfnet_jax.training import distributed

  with distributed.joined(args.coordinator, args.num_processes, args.process_id):
    from dmfnet_jax.training.loop import train_and_evaluate

    state = train_and_evaluate(config, args.workdir)
  return 0 if int(state.step) >= config.num_train_steps else args.preempted_exit_code


def _preflight(args: argparse.Namespace) -> int:
  arguments = _config_arguments(args)
  from dmfnet_jax.training.config import parse_config

  config = parse_config(arguments)
  _start_jax()
  from dmfnet_jax.preflight import preflight

  return preflight(config, args.topology, num_slices=args.num_slices, find_batch=args.find_batch)


def _data(args: argparse.Namespace) -> None:
  from dmfnet_jax.data.builders import prepare

  prepare(args.name, args.data_dir, args.manual_dir)


def _convert(args: argparse.Namespace) -> None:
  from dmfnet_jax.interop.torch_weights import convert

  convert(args.unet, args.fusion_head, args.out)


def _report(args: argparse.Namespace) -> int:
  _start_jax()
  from dmfnet_jax.report import write_report

  return write_report(args.sources, args.out, title=args.title, max_pictures=args.pictures)


def _serve(args: argparse.Namespace) -> None:
  _start_jax()
  from dmfnet_jax.serve import serve

  serve(args.model, host=args.host, port=args.port)
