r"""Runs a training command as several processes on this machine: a pod to try things on.

    python launch/local.py -n 2 --devices-per-process 2 -- \
        dmfnet train --config configs/dmfnet.py:stage=1,size=tiny --workdir runs/pod

Each process has so many CPU devices; they talk over loopback, with JAX's CPU collectives (Gloo).
Their lines come out behind [0], [1], ... Ctrl-C and SIGTERM reach each once. When one ends with
an error, the others have a minute to notice, as on a pod, and are killed then.

Exit code: 0 where all ended well, else that of the first one that did not.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

_GRACE_SECONDS = 60


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("-n", "--num-processes", type=int, default=2, help="default: %(default)s")
  parser.add_argument("--devices-per-process", type=int, default=1, help="default: %(default)s")
  parser.add_argument("command", nargs=argparse.REMAINDER, help="after --: what each process runs")
  args = parser.parse_args(argv)
  command = args.command[1:] if args.command[:1] == ["--"] else args.command
  if not command or args.num_processes < 1 or args.devices_per_process < 1:
    parser.error("give at least one process, one device, and a command after --")
  if shutil.which(command[0]) is None:
    parser.error(f"{command[0]}: no such program: is the virtual environment active?")

  with socket.create_server(("127.0.0.1", 0)) as probe:
    address = f"127.0.0.1:{probe.getsockname()[1]}"  # a free port
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_COORDINATOR_BIND_ADDRESS": address,  # loopback alone
    "JAX_NUM_PROCESSES": str(args.num_processes),
    "JAX_NUM_CPU_DEVICES": str(args.devices_per_process),
  }
  processes = [
    subprocess.Popen(
      command,
      env=environment | {"JAX_PROCESS_ID": str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,  # or the terminal would tell them too
    )
    for index in range(args.num_processes)
  ]

  def pass_on(number: int, frame: object) -> None:
    for process in processes:
      process.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, pass_on)
  printers = [
    threading.Thread(target=_print_lines, args=(index, process), daemon=True)
    for index, process in enumerate(processes)
  ]
  for printer in printers:
    printer.start()
  code = _wait(processes)
  for printer in printers:
    printer.join(timeout=5)
  return code


def _wait(processes: Sequence[subprocess.Popen]) -> int:
  """Waits for all; after the first failure only for so long."""
  code, deadline = 0, None
  while any(process.poll() is None for process in processes):
    failed = [process.returncode for process in processes if process.returncode]
    if failed and deadline is None:
      code, deadline = failed[0], time.monotonic() + _GRACE_SECONDS
    if deadline is not None and time.monotonic() > deadline:
      for process in processes:
        process.kill()
    time.sleep(0.1)
  code = code or next((p.returncode for p in processes if p.returncode), 0)
  return code if code >= 0 else 128 - code  # a signal's, as shells say it


def _print_lines(index: int, process: subprocess.Popen) -> None:
  assert process.stdout is not None
  for line in process.stdout:
    with contextlib.suppress(BrokenPipeError):
      print(f"[{index}] {line}", end="", flush=True)


if __name__ == "__main__":
  sys.exit(main())
