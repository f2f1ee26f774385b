"""The input pipeline: which examples a step sees, how they are cut, how a resume repeats them."""

import itertools
import json
import pickle

import numpy as np
import pytest

from dmfnet_jax.data import mixture, pipeline
from dmfnet_jax.data.examples import DecodedPairs
from dmfnet_jax.errors import UserError
from dmfnet_jax.io.color import rgb_to_luma
from dmfnet_jax.io.pictures import to_float


def make_source(count=10, height=24, width=20, seed=0):
  rng = np.random.default_rng(seed)
  return [
    {
      "a": rng.integers(0, 256, (height, width, 1), np.uint8),
      "b": rng.integers(0, 256, (height, width, 3), np.uint8),
      "name": f"pair{i}".encode(),
      "modality": b"CT",
    }
    for i in range(count)
  ]


class CountingSource(list):
  """A list that counts how often each record is read."""

  def __init__(self, items):
    super().__init__(items)
    self.reads = np.zeros(len(items), int)

  def __getitem__(self, record):
    self.reads[record] += 1
    return super().__getitem__(record)


def train(source, **changes):
  options = {"crop_size": 16, "batch_size": 4, "seed": 7} | changes
  return pipeline.make_train_dataset(source, **options)


def take(batches, count):
  return list(itertools.islice(batches, count))


def assert_same(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_a_batch_has_the_promised_arrays():
  (batch,) = take(train(make_source()), 1)
  assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
    "a": ((4, 16, 16, 1), "float32"),
    "b": ((4, 16, 16, 1), "float32"),
    "index": ((4,), "int32"),
    "record": ((4,), "int32"),
  }
  np.testing.assert_array_equal(batch["index"], [0, 1, 2, 3])


def test_pictures_are_scaled_luma():
  source = make_source(height=16, width=16)
  (batch,) = take(train(source, flip=False), 1)
  for a, b, record in zip(batch["a"], batch["b"], batch["record"], strict=True):
    np.testing.assert_array_equal(a, to_float(source[record]["a"]))
    np.testing.assert_array_equal(b[..., 0], to_float(rgb_to_luma(source[record]["b"])))


def test_each_epoch_has_every_record_once_in_its_own_order():
  batches = take(train(make_source(12)), 9)
  epochs = np.concatenate([batch["record"] for batch in batches]).reshape(3, 12)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(12), (3, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batches_go_on_over_the_end_of_an_epoch():
  batches = take(train(make_source(3), batch_size=8), 3)
  counts = np.bincount(np.concatenate([batch["record"] for batch in batches]))
  np.testing.assert_array_equal(counts, [8, 8, 8])


def test_both_pictures_are_cut_and_flipped_alike_and_in_every_way():
  # The value of a pixel tells its row and column; B's luma is A.
  rows, columns = np.mgrid[:24, :20]
  a = (rows * 8 + columns // 4).astype(np.uint8)[..., None]
  source = [{"a": a, "b": np.repeat(a, 3, axis=-1)}] * 4
  seen = set()
  for batch in take(train(source), 60):
    np.testing.assert_array_equal(batch["a"], batch["b"])
    values = np.rint((batch["a"][..., 0] + 1) * 127.5).astype(int)
    for crop in values:
      top_left, bottom_left, top_right = crop[0, 0], crop[-1, 0], crop[0, -1]
      seen.add((min(top_left, bottom_left) // 8, top_left < bottom_left, top_left < top_right))
  assert {top for top, _, _ in seen} == set(range(24 - 16 + 1))
  assert {(up, left) for _, up, left in seen} == set(itertools.product([True, False], repeat=2))


def test_what_a_stage_asks_for_is_cut_and_flipped_with_the_rest():
  """Three channels of B, its colours, and a further picture; and a pair's own numbers as before."""
  source = [{**pair, "further": pair["b"]} for pair in make_source()]
  fields = {"a": 1, "b": 3, "further": 1}
  for batch, pair in zip(
    take(train(source, fields=fields), 3), take(train(source), 3), strict=True
  ):
    np.testing.assert_array_equal(batch["a"], pair["a"])
    np.testing.assert_array_equal(batch["further"], pair["b"])
    colours = np.rint((batch["b"] + 1) * 127.5).astype(np.uint8)
    np.testing.assert_array_equal(to_float(rgb_to_luma(colours)), pair["b"][..., 0])
  source[0]["further"] = source[0]["b"][:-1]
  with pytest.raises(UserError, match=r"pair0.*differ in size.*further is 20 x 23"):
    take(pipeline.make_eval_batches(source, batch_size=1, crop_size=16, fields=fields), 1)


def test_without_flip_a_crop_is_a_window():
  source = make_source()
  for batch in take(train(source, flip=False), 3):
    for crop, record in zip(batch["a"], batch["record"], strict=True):
      windows = np.lib.stride_tricks.sliding_window_view(to_float(source[record]["a"]), crop.shape)
      assert (windows == crop).all(axis=(-3, -2, -1)).any()


def test_the_seed_decides():
  source = make_source()
  first, again, other = (take(train(source, seed=seed), 3) for seed in (7, 7, 8))
  assert_same(first, again)
  assert any((x["record"] != y["record"]).any() for x, y in zip(first, other, strict=True))
  # The generators of (seed, position) are not shifted copies of each other.
  assert not set(map(bytes, first[0]["a"])) & set(map(bytes, other[0]["a"]))


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_together_make_the_same_global_batches(process_count, monkeypatch):
  source = CountingSource(make_source())
  whole = take(train(source), 5)
  monkeypatch.setattr(pipeline, "CACHE_BYTES", 0)  # from here on every read is counted
  parts = []
  for process in range(process_count):
    source.reads[:] = 0
    part = train(source, process_index=process, process_count=process_count)
    parts.append(take(part, 5))
    part.close()
    # Each reads its own share only (and some batches ahead).
    assert source.reads.sum() < (5 + 8) * 4 / process_count
  for step, batch in enumerate(whole):
    for process in range(process_count):
      share = {key: value[process::process_count] for key, value in batch.items()}
      assert_same([parts[process][step]], [share])


def test_resume_repeats_the_uninterrupted_run_on_any_number_of_processes():
  source = make_source()
  uninterrupted = take(train(source), 4)
  run = train(source)
  assert_same(take(run, 2), uninterrupted[:2])
  state = json.loads(json.dumps(run.get_state()))
  assert state["next_batch"] == 2

  resumed = train(source)
  resumed.set_state(state)
  assert_same(take(resumed, 2), uninterrupted[2:])

  halves = [train(source, process_index=process, process_count=2) for process in (0, 1)]
  for process, half in enumerate(halves):
    half.set_state(state)
    expected = [{k: v[process::2] for k, v in batch.items()} for batch in uninterrupted[2:]]
    assert_same(take(half, 2), expected)
  assert halves[0].get_state() == halves[1].get_state() == resumed.get_state()


def test_a_run_can_be_moved_back():
  run = train(make_source())
  batches = take(run, 3)
  run.set_state(run.get_state() | {"next_batch": 1})
  assert_same(take(run, 2), batches[1:])


def test_worker_processes_make_the_same_batches_and_resume():
  source = make_source()
  uninterrupted = take(train(source), 8)
  first = train(source)
  assert_same(take(first, 2), uninterrupted[:2])

  second = train(source, num_workers=2)
  second.set_state(first.get_state())
  batches = take(second, 3)
  assert_same(batches, uninterrupted[2:5])
  assert type(batches[0]["a"]) is np.ndarray  # not in shared memory that somebody else frees
  state = second.get_state()
  second.close()

  third = train(source)
  third.set_state(state)
  assert_same(take(third, 3), uninterrupted[5:])


def test_a_mistake_is_a_user_error_out_of_a_worker_process_too():
  run = train(make_source(height=24, width=5), num_workers=1)
  with pytest.raises(UserError, match=r"example pair\d \(5 x 24\) is far smaller than the crop"):
    next(run)
  run.close()


@pytest.mark.parametrize("key", ["seed", "batch_size", "num_records", "dataset"])
def test_the_state_of_another_stream_is_refused(key):
  run = train(make_source())
  with pytest.raises(UserError, match=f"cannot resume.*{key}"):
    run.set_state(run.get_state() | {key: "another"})


def test_small_pictures_are_reflect_padded():
  source = make_source(height=12, width=16)
  (batch,) = take(train(source, flip=False), 1)
  for crop, record in zip(batch["a"][..., 0], batch["record"], strict=True):
    padded = np.pad(source[record]["a"][..., 0], ((2, 2), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(crop, to_float(padded))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"crop_size": 0}, "crop must be positive"),
    ({"batch_size": 0}, "batch size"),
    ({"batch_size": 6, "process_count": 4}, "multiple of the 4 processes"),
    ({"process_index": 2, "process_count": 2}, "process 2 is not one of 2"),
    ({"num_workers": -1}, "num_workers"),
    ({"seed": -1}, "seed"),
  ],
)
def test_impossible_settings_are_named(changes, message):
  with pytest.raises(UserError, match=message):
    train(make_source(), **changes)


def test_an_empty_split_is_named():
  with pytest.raises(UserError, match="empty"):
    train([])
  with pytest.raises(UserError, match="empty"):
    pipeline.make_eval_batches([], batch_size=1)


def test_the_cache_changes_nothing(monkeypatch):
  source = make_source()
  cached = take(train(source), 6)
  monkeypatch.setattr(pipeline, "CACHE_BYTES", 0)
  assert_same(take(train(source), 6), cached)


@pytest.mark.parametrize(("cache_bytes", "reads"), [(0, [2, 2, 2]), (2000, [1, 1, 2])])
def test_the_cache_keeps_what_fits(cache_bytes, reads):
  source = CountingSource(make_source(3))  # 2 * 24 * 20 bytes each
  pairs = DecodedPairs(source, cache_bytes)
  for record in (0, 1, 2, 0, 1, 2):
    expected = rgb_to_luma(list(source)[record]["b"])
    np.testing.assert_array_equal(pairs[record]["b"][..., 0], expected)
  np.testing.assert_array_equal(source.reads, reads)
  # A worker process starts with an empty cache, and room for as much.
  copy = pickle.loads(pickle.dumps(pairs))
  for record in (0, 1, 2, 0, 1, 2):
    copy[record]
  np.testing.assert_array_equal(copy._source.reads - source.reads, reads)


def test_evaluation_passes_once_over_everything_in_order():
  source = make_source(10, height=40, width=33)
  batches = pipeline.make_eval_batches(source, batch_size=4)
  for _ in range(2):  # it can be iterated again
    passed = list(batches)
    assert len(passed) == 3
    np.testing.assert_array_equal(np.concatenate([b["mask"] for b in passed]), [1] * 10 + [0] * 2)
    records = np.concatenate([batch["record"] for batch in passed])
    np.testing.assert_array_equal(records[:10], np.arange(10))
    assert passed[0]["mask"].dtype == np.float32
    # The centre, at multiples of 16: 40 x 33 becomes 32 x 32.
    expected = np.stack([to_float(example["a"][4:36, 0:32]) for example in source[:4]])
    np.testing.assert_array_equal(passed[0]["a"], expected)


def test_evaluation_is_shared_among_processes():
  source = make_source(5)
  whole = list(pipeline.make_eval_batches(source, batch_size=4))
  for process in (0, 1):
    part = pipeline.make_eval_batches(source, batch_size=4, process_index=process, process_count=2)
    assert_same(list(part), [{k: v[process::2] for k, v in batch.items()} for batch in whole])


def test_evaluation_of_different_sizes_needs_a_crop():
  source = make_source(1, 32, 32) + make_source(1, 48, 20)
  with pytest.raises(UserError, match=r"32 x 32.*crop_size"):
    list(pipeline.make_eval_batches(source, batch_size=2))
  (batch,) = pipeline.make_eval_batches(source, batch_size=2, crop_size=32)
  np.testing.assert_array_equal(batch["a"][0], to_float(source[0]["a"]))
  padded = np.pad(source[1]["a"], ((0, 0), (6, 6), (0, 0)), mode="reflect")
  np.testing.assert_array_equal(batch["a"][1], to_float(padded[8:40]))
  with pytest.raises(UserError, match="multiple of 16"):
    pipeline.make_eval_batches(source, batch_size=2, crop_size=20)
  with pytest.raises(UserError, match="smaller than 16 x 16"):
    list(pipeline.make_eval_batches(make_source(1, 32, 12), batch_size=1))


def make_mixture(counts, weights):
  sources = {f"set{i}": make_source(count, seed=i) for i, count in enumerate(counts)}
  return mixture.Mixture(sources, dict(zip(sources, weights, strict=True)))


def test_a_mixture_has_each_dataset_in_its_share_and_all_its_examples():
  source = make_mixture((5, 3), (0.75, 0.25))
  assert [bytes(x["name"]) for x in source][4:7] == [b"pair4", b"pair0", b"pair1"]
  records = np.concatenate([batch["record"] for batch in take(train(source), 30)])
  first = records < 5
  # Of any beginning, not only of the whole.
  drawn = np.cumsum(first) - 0.75 * np.arange(1, len(first) + 1)
  assert np.abs(drawn).max() <= 1
  epochs = records[first].reshape(-1, 5)
  assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) > 1
  for record in (0, 7):
    (found,) = np.flatnonzero(records == record)[:1]
    batch = take(train(source, flip=False, crop_size=48), found // 4 + 1)[-1]
    middle = batch["a"][found % 4]
    picture = to_float(source[record]["a"])
    assert np.isin(middle, picture).all()


def test_a_mixture_does_not_depend_on_processes_and_resumes():
  source = make_mixture((5, 3), (0.5, 0.5))
  whole = take(train(source), 6)
  shares = [take(train(source, process_index=p, process_count=2), 6) for p in range(2)]
  for batch, *parts in zip(whole, *shares, strict=True):
    for p, part in enumerate(parts):
      np.testing.assert_array_equal(batch["a"][p::2], part["a"])
  begun = train(source)
  take(begun, 2)
  resumed = train(source)
  resumed.set_state(json.loads(json.dumps(begun.get_state())))
  assert_same(take(resumed, 4), whole[2:])
  with pytest.raises(UserError, match="cannot resume"):
    train(make_mixture((5, 3), (0.6, 0.4))).set_state(begun.get_state())


def test_a_mixture_is_written_as_names_and_weights():
  assert mixture.parse("mni_pairs") == {"mni_pairs": 1.0}
  assert mixture.parse("mni_pairs:3, harvard_mmif:1") == {"mni_pairs": 0.75, "harvard_mmif": 0.25}
  assert mixture.kinds("mni_pairs:1,infrared_visible:1")[-1] == "infrared-visible"
  assert mixture.kinds("mni_pairs:1,paired_folder:1") == ()
  for wrong in ("a:1,b", "a:1,a:2", "a:0,b:1", "a:-1,b:2", "a:inf,b:1", ","):
    with pytest.raises(UserError, match="NAME:WEIGHT,NAME:WEIGHT"):
      mixture.parse(wrong)


def test_validation_of_a_mixture_is_per_dataset():
  source = make_mixture((5, 3), (0.75, 0.25))
  measured = {"set0": {"loss": 1.0, "ssim": 0.5}, "set1": {"loss": 3.0, "ssim": 0.7}}
  assert mixture.mean(measured, source) == pytest.approx(
    {
      "loss": 1.5,
      "ssim": 0.55,
      "set0/loss": 1.0,
      "set0/ssim": 0.5,
      "set1/loss": 3.0,
      "set1/ssim": 0.7,
    }
  )
  assert mixture.mean({"": {"loss": 1.0}}, make_source()) == {"loss": 1.0}
