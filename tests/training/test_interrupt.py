"""Ctrl-C while a run trains: the first is a request, the second is obeyed at once."""

import os
import signal
import threading

import pytest

from dmfnet_jax.training.distributed import preemption


@pytest.fixture
def terminal():
  """Signals as in a process that a terminal has started."""
  before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
  signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def test_the_second_ctrl_c_ends_at_once(terminal, capfd):
  terminated = signal.getsignal(signal.SIGTERM)
  with preemption() as told:
    assert not told.reached()
    signal.raise_signal(signal.SIGINT)
    assert told.reached()
    assert told.by_ctrl_c()
    assert "Ctrl-C again ends at once" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  assert signal.getsignal(signal.SIGTERM) is terminated


def test_sigterm_is_no_ctrl_c(terminal):
  with preemption() as told:
    os.kill(os.getpid(), signal.SIGTERM)
    assert told.reached()
    assert not told.by_ctrl_c()


def test_a_background_job_goes_on_ignoring_it(terminal):
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with preemption() as told:
    signal.raise_signal(signal.SIGINT)
    assert not told.reached()
  assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_listen_to_no_signals(terminal):
  answers = []

  def train():
    with preemption() as told:
      answers.append(told.reached())

  thread = threading.Thread(target=train)
  thread.start()
  thread.join()
  assert answers == [False]
