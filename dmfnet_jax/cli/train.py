"""Train, or resume a training, with a config file."""

import argparse

from dmfnet_jax.cli.arguments import add_config, read_config, whole
from dmfnet_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  parser.usage = "%(prog)s --config FILE.py --workdir DIR [--config.FIELD=VALUE ...]"
  parser.add_argument("--workdir", metavar="DIR", required=True, help="checkpoints and logs")
  add_config(parser)
  hosts = parser.add_argument_group(
    "several processes",
    "detected on TPU slices, under SLURM and Open MPI; elsewhere give all three",
  )
  hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
  hosts.add_argument("--num-processes", metavar="N", type=whole(1), help="how many")
  hosts.add_argument("--process-id", metavar="I", type=whole(0), help="this one, from 0")
  hosts.add_argument(
    "--preempted-exit-code",
    metavar="N",
    type=whole(0),
    default=0,
    help="where SIGTERM stopped the run, for launchers that start again what fails (%(default)s)",
  )


def run(args: argparse.Namespace) -> int:
  """Trains; returns the exit code."""
  if "://" in args.workdir and not args.workdir.startswith("gs://"):
    # Of addresses it takes Google's alone where it writes by OCDBT, its default.
    raise UserError(f"{args.workdir}: Orbax writes no checkpoints there: give a folder, or gs://")
  config = read_config(args)
  from dmfnet_jax.training import distributed

  with distributed.joined(args.coordinator, args.num_processes, args.process_id):
    from dmfnet_jax.training.loop import train_and_evaluate

    state = train_and_evaluate(config, args.workdir)
  return 0 if int(state.step) >= config.num_train_steps else args.preempted_exit_code
