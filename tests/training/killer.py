"""Runs a job of `worker.py` again and again, killing it each time; then lets it finish.

    killer.py JSON NUM_KILLS

Attempts are forks of this process, which has imported everything and started nothing: a start
takes a moment. Prints how often a save was under way when the kill came.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import worker


def attempt(job: dict) -> int:
  """Starts the job in a process of its own; returns its id."""
  pid = os.fork()
  if pid == 0:
    try:
      worker.run(job)
    except BaseException as error:
      print(f"{type(error).__name__}: {error}", flush=True)
      os._exit(1)
    os._exit(0)
  return pid


def unfinished(workdir: Path) -> set[str]:
  """The checkpoints that are not whole: Orbax has them under another name until then."""
  return {path.name for path in (workdir / "checkpoints").glob("*tmp*")}


def lines(workdir: Path) -> int:
  path = workdir / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> None:
  job, num_kills = json.loads(sys.argv[1]), int(sys.argv[2])
  workdir, rng = Path(job["workdir"]), random.Random(0)
  during_saves = 0
  for kill in range(num_kills):
    rests = unfinished(workdir)  # of saves that earlier kills have cut short: the run copes
    pid = attempt(job)
    begin, written = time.monotonic(), None
    wait = [rng.uniform(0, 2), 60.0, 60.0][kill % 3]
    while time.monotonic() - begin < wait:
      if os.waitpid(pid, os.WNOHANG)[0]:
        sys.exit(f"attempt {kill} ended before it was killed")
      if kill % 3 == 1 and unfinished(workdir) - rests:
        break
      if kill % 3 == 2:
        # The file starts anew without the lines after the checkpoint; then some are added.
        count = lines(workdir)
        written = count if written is None else min(written, count)
        if count >= written + 3:
          break
      time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.01 if kill % 3 == 1 else 0.03))  # a save is soon done
    during_saves += bool(unfinished(workdir) - rests)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
  print(f"{during_saves} of {num_kills} kills during a save", flush=True)
  _, status = os.waitpid(attempt(job), 0)
  sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
  main()
