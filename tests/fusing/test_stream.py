"""Reading in batches: what shares one, what waits, what fails, and lines above a progress bar."""

import threading

import pytest

from dmfnet_jax.errors import UserError
from dmfnet_jax.fusing import stream
from dmfnet_jax.messages import say


def read(items, load=lambda item: item, key=lambda value: 0, limit=8):
  """All batches, and what failed."""
  failures = {}
  with stream.threads() as pool:
    batches = stream.read_in_batches(
      pool, items, load, key=key, limit=lambda k: limit, failed=failures.__setitem__
    )
    return [dict(batch) for batch in batches], failures


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_batches_are_full_and_in_order(limit):
  items = {str(i): i for i in range(20)}
  batches, failures = read(items, key=lambda value: value % 2, limit=limit)
  assert not failures
  for parity in (0, 1):
    mine = [batch for batch in batches if next(iter(batch.values())) % 2 == parity]
    assert [value for batch in mine for value in batch.values()] == list(range(parity, 20, 2))
    assert all(len(batch) == limit for batch in mine[:-1])
  assert {name: value for batch in batches for name, value in batch.items()} == items


def test_what_waits_is_bounded():
  """As many sizes as pictures: no size fills a batch of eight, and memory must not fill up."""
  read_so_far, taken, most_waiting = [], 0, 0

  def load(item):
    read_so_far.append(item)
    return item

  with stream.threads() as pool:
    for batch in stream.read_in_batches(
      pool,
      {str(i): i for i in range(150)},
      load,
      key=lambda value: value,
      limit=lambda k: 8,
      failed=pytest.fail,
    ):
      most_waiting = max(most_waiting, len(read_so_far) - taken)
      taken += len(batch)
  assert taken == 150
  assert most_waiting < 60  # until the last are read: four batches, and those being read ahead


def test_a_batch_may_become_smaller_on_the_way():
  sizes = []
  with stream.threads() as pool:
    for batch in stream.read_in_batches(
      pool,
      {str(i): i for i in range(20)},
      int,
      key=lambda value: 0,
      limit=lambda k: 2 if sizes else 4,
      failed=pytest.fail,
    ):
      sizes.append(len(batch))
  assert sizes == [4] + [2] * 8


def test_what_cannot_be_read_is_named_and_the_others_go_on():
  def load(item):
    if item == 2:
      raise UserError("2: is broken")
    if item == 5:
      raise MemoryError
    return item

  batches, failures = read({str(i): i for i in range(7)}, load)
  assert failures == {"2": "2: is broken", "5": "the pictures do not fit the memory"}
  assert [list(batch) for batch in batches] == [["0", "1", "3", "4", "6"]]


def test_a_bug_is_not_hidden_and_nothing_more_is_read():
  reading = threading.active_count()

  def load(item):
    raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    read({str(i): i for i in range(7)}, load)
  assert threading.active_count() == reading


def test_lines_stand_above_a_bar(capsys):
  """Also in a log: no line begins in the middle of one."""
  with stream.Progress(3, in_log=True) as progress:
    progress.done()
    say("a word")
    progress.fail("x", "no reason")
  lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
  assert "dmfnet: a word" in lines
  assert "dmfnet: error: pair x: no reason" in lines
  assert progress.failures == {"x": "no reason"}


@pytest.mark.parametrize(("total", "in_log"), [(1, True), (3, False)])
def test_no_bar_for_one_nor_where_nobody_looks(capsys, total, in_log):
  with stream.Progress(total, in_log=in_log) as progress:
    progress.done()
  assert capsys.readouterr().err == ""
