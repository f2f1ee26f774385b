"""Fuses files: two, or two folders of any length, of pictures and volumes; or more than two.

Pictures are read in threads ahead of the model and written in threads behind it, so that decoding
and encoding overlap with the arithmetic. Volumes go through `volumes.py`, one after the other. A
pair that fails is named with its reason and the others go on.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dmfnet_jax.errors import UserError, why_failed
from dmfnet_jax.fusing import stream
from dmfnet_jax.fusing.familiar import Familiarity
from dmfnet_jax.fusing.match import Pair, match_pairs
from dmfnet_jax.fusing.options import FIELDS, VOLUMES, FuseOptions, flag
from dmfnet_jax.fusing.pairing import Naming
from dmfnet_jax.fusing.pictures import LoadedPair, load_pair, write_pair
from dmfnet_jax.fusing.resume import compare_or_leave_record, unfinished, which_process
from dmfnet_jax.io import paths, pictures
from dmfnet_jax.messages import first_of, say


def fuse_files(
  a: paths.PathLike | None,
  b: paths.PathLike | None,
  out: paths.PathLike,
  options: FuseOptions,
  *,
  further: Sequence[paths.PathLike] = (),
) -> int:
  """Fuses two files or series, all pairs of two folders by `pairing`, or those of a list.

  The fused picture of a pair depends on the model, the two pictures, the seed and the pair's name
  (the stem of A's file), not on the other pairs nor on the batch size, save that XLA's rounding,
  which may differ between batch sizes, moves a few pixels in a million by one grey level. It is
  grey where B is grey and carries B's colour where B is coloured; of a coloured A the luma is
  taken. With windows or a colour map, and for volumes always, what the result depends on goes to
  `STEM.json` beside it.

  Args:
    a: a file, a folder with the DICOM files of a series, or a folder of pictures and volumes. With
      `options.pairs` the folder where the list's paths begin, or None.
    b: the same kind.
    out: for two pictures a file (by its suffix), or else a folder, which then gets `STEM.png`. For
      volumes a NIfTI file (`.nii.gz`, `.nii`), or else a folder: where A is NIfTI it gets
      `STEM.nii.gz`, where A is DICOM the files of a new series. For many pairs a folder, which
      gets one `STEM.png`, `STEM.nii.gz` or series folder STEM per pair. Folders are made where
      needed and older results replaced.
    options: how; its fields say what each does.
    further: what a model that takes more than two sources takes besides, in its order: the same
      kind; in folders they have their pair's name.

  Returns:
    0, or 1 where some pairs failed.

  Raises:
    UserError: nothing can be done: no such path, no pairs, an unknown model or one that takes
      another number of sources, a result that would replace a source, results of other options
      where those are to be kept. Nothing has been written then.
  """
  pairs, options = find_own_pairs(a, b, out, options, further)
  if not pairs:
    return 0
  return 1 if fuse_pairs(load(options, 2 + len(further)), pairs, out, options) else 0


def find_own_pairs(
  a: paths.PathLike | None,
  b: paths.PathLike | None,
  out: paths.PathLike,
  options: FuseOptions,
  further: Sequence[paths.PathLike] = (),
) -> tuple[list[Pair], FuseOptions]:
  """This process's part of what `find_pairs` finds."""
  index, count = which_process(options.shard)
  pairs, options = find_pairs(a, b, out, options, further)
  if count > 1:
    mine = pairs[index::count]
    say(f"process {index} of {count}: {len(mine)} of {len(pairs)} pairs")
    pairs = mine
  return pairs, options


def find_pairs(
  a: paths.PathLike | None,
  b: paths.PathLike | None,
  out: paths.PathLike,
  options: FuseOptions,
  further: Sequence[paths.PathLike] = (),
) -> tuple[list[Pair], FuseOptions]:
  """The pairs of `fuse_files`, and the options with the endings that were recognised.

  What was left out is named on stderr. Nothing is written, and no model loaded.

  Raises:
    UserError: there are no pairs, or what does not fit them.
  """
  _ = options.windows, options.table  # a mistyped one is noticed here
  with_std, with_overlay = options.samples is not None, options.overlay is not None
  naming = Naming(options.suffix_a, options.suffix_b, options.pairs)
  matched = match_pairs(
    a, b, out, naming, further=further, with_std=with_std, with_overlay=with_overlay
  )
  pairs, alone, naming = matched.pairs, matched.alone, matched.naming
  options = dataclasses.replace(options, suffix_a=naming.suffix_a, suffix_b=naming.suffix_b)
  for note in matched.notes:
    say(note)
  if alone and options.strict:
    raise UserError(
      f"without a partner: {first_of(alone)}: complete the pairs or leave out --strict"
    )
  for path in alone:
    say(f"warning: no partner for {path}")
  if not pairs:
    raise UserError(f"no file in {a} has a partner of the same stem in {b}: {matched.advice}")
  if options.resume and pairs[0].out.parent != paths.as_path(out):
    raise UserError(f"{out}: --resume needs a folder as the output")
  _check_options(pairs, options)
  return pairs, options


def load(options: FuseOptions, sources: int = 2, *, synthesis: bool = False) -> Any:
  """Loads the model of the options, to fuse so many sources, or to make a missing picture of them.

  Raises:
    UserError: there is none, or it does not do what is asked for.
  """
  # These take their time: not for a mistyped path.
  import jax

  from dmfnet_jax.inference.model import load_model

  model = load_model(options.model, compute_dtype=options.precision, on_step=stream.step_bar())
  _check_model(model, options, sources, synthesis)
  if options.precision == "bfloat16" and jax.default_backend() == "cpu":
    say(
      "warning: bfloat16 is slower than float32 on a CPU here; its fast way is OpenVINO on "
      "`dmfnet export --format onnx`"
    )
  return model


def fuse_pairs(
  model: Any, pairs: Sequence[Pair], out: paths.PathLike, options: FuseOptions
) -> dict[str, str]:
  """Fuses pairs, one at least, that `find_pairs` has found into `out`.

  Returns:
    The reasons of those that failed, by name; each is also named on stderr.

  Raises:
    UserError: results that are to be kept were made otherwise, or nothing can be written.
  """
  volumes = [pair for pair in pairs if pair.is_volume]
  if model.method.space == 3 and len(volumes) < len(pairs):
    picture = next(pair.a for pair in pairs if not pair.is_volume)
    raise UserError(
      f"{picture}: is a picture, and {options.model} fuses whole volumes (NIfTI, DICOM)"
    )
  folder = pairs[0].out.parent
  paths.make_folder(folder)
  total, model_sha256 = len(pairs), model.fingerprint()
  if folder == paths.as_path(out):
    there = compare_or_leave_record(folder, options, model_sha256)
    pairs = unfinished(pairs, there) if options.resume else pairs
    volumes = [pair for pair in pairs if pair.is_volume]
  familiarity = Familiarity(options.model, model.trained_on)
  familiarity.check_names(pair for pair in pairs if not pair.is_volume)
  of_pictures = {pair.stem: pair for pair in pairs if not pair.is_volume}
  failures: dict[str, str] = {}
  if of_pictures:
    with stream.Progress(len(of_pictures)) as progress:
      fuse_pictures(model, of_pictures, options, model_sha256, progress)
    failures |= progress.failures
  if volumes:
    from dmfnet_jax.fusing.volumes import fuse_volumes  # its libraries take half a second

    failures |= fuse_volumes(model, volumes, options, model_sha256, familiarity)
  kept = total - len(pairs)
  earlier = f", {kept} of them earlier" if kept else ""
  done = "made" if model.method.is_synthesis else "fused"
  say(f"{total - len(failures)} of {total} pairs {done} into {out}{earlier}")
  return failures


def _check_options(pairs: Sequence[Pair], options: FuseOptions) -> None:
  """Says which options have no effect; refuses a file where several montages are to be written."""
  if options.window_c is not None and len(pairs[0].sources) < 3:
    say("warning: --window-c: there is no third source, no effect here")
  count = sum(pair.is_volume for pair in pairs)
  set_for_volumes = [
    f"--{flag(name)}"
    for name, field in FIELDS.items()
    if field.metadata["group"] == VOLUMES and getattr(options, name) != field.default
  ]
  if set_for_volumes and not count:
    say(f"warning: {', '.join(set_for_volumes)}: for volumes alone, no effect here")
  is_file = paths.as_path(options.montage or "").suffix.lower() in pictures.IMAGE_SUFFIXES
  if count > 1 and is_file:
    raise UserError(
      f"{options.montage}: several volumes need a folder for their montages, not a file"
    )


def _check_model(model: Any, options: FuseOptions, sources: int, synthesis: bool) -> None:
  """Refuses a model that does not do what is asked for, before it fails for every pair."""
  method = model.method
  if method.is_classification:
    raise UserError(f"{options.model} makes no picture: it classifies, as dmfnet classify does")
  if method.is_synthesis and not synthesis:
    raise UserError(
      f"{options.model} does not fuse: it makes a missing picture of two others: use "
      f"dmfnet synthesize A B -o OUT --model {options.model}"
    )
  if synthesis and not method.is_synthesis:
    raise UserError(f"{options.model} makes no missing picture: it fuses, as dmfnet fuse does")
  takes = ", ".join(field.name for field in method.sources)
  if len(method.sources) != sources:
    raise UserError(
      f"{options.model} takes {len(method.sources)} sources ({takes}), and {sources} are given"
    )
  if options.samples is not None and not method.is_random:
    raise UserError(f"{options.model} draws no noise: leave out --samples")
  if method.space == 3:
    model.block_size((1, 1, 1), options.tile)
  else:
    model.tile_size(1, 1, options.tile)
  if options.emphasis is not None:
    model.check_emphasis(options.emphasis)


def fuse_pictures(
  model: Any,
  pairs: Mapping[str, Pair],
  options: FuseOptions,
  model_sha256: str,
  progress: Any,
  tell: Callable[[str], None] = say,
) -> None:
  """Fuses pairs of pictures, into folders that exist.

  Args:
    model: a `Model` that takes these sources.
    pairs: by their stems.
    options: how.
    model_sha256: the model's fingerprint.
    progress: a `stream.Progress`, or what has its `done` and `fail`: told of each pair.
    tell: told each remark once.
  """

  def load(pair: Pair) -> LoadedPair:
    return load_pair(pair, options, model_sha256, model)

  def size(loaded: LoadedPair) -> tuple[int, int]:
    return model.padded_size(*loaded.sources[0].shape[:2])

  def limit(padded_size: tuple[int, int]) -> int:
    return model.batch_size(padded_size, options.batch_size)

  def finish_writing(leave: int) -> None:
    """Waits until no more than so many results wait to be written."""
    while len(writing) > leave:
      stem, job = writing.popleft()
      try:
        job.result()
        progress.done()
      except (UserError, MemoryError) as error:
        progress.fail(stem, why_failed(error, "the results"))

  told: set[str] = set()
  writing: collections.deque[tuple[str, Any]] = collections.deque()
  with stream.threads() as pool:
    batches = stream.read_in_batches(pool, pairs, load, key=size, limit=limit, failed=progress.fail)
    for batch in batches:
      for loaded in batch.values():
        for key, remark in loaded.remarks.items():
          if key not in told:
            tell(remark)
            told.add(key)
      try:
        fused, deviations = _fuse_batch(model, batch, options)
      except (UserError, MemoryError) as error:
        for stem in batch:
          progress.fail(stem, why_failed(error, "the pictures"))
        continue
      for loaded, picture, deviation in zip(batch.values(), fused, deviations, strict=True):
        job = pool.submit(write_pair, loaded, picture, deviation, options.samples)
        writing.append((loaded.pair.stem, job))
      finish_writing(2 * len(batch))
    finish_writing(0)


def _fuse_batch(
  model: Any, batch: Mapping[str, LoadedPair], options: FuseOptions
) -> tuple[Sequence[Any], Sequence[Any]]:
  """Returns the fused pictures and their deviations; None each without samples."""
  sources = zip(*(loaded.sources for loaded in batch.values()), strict=True)
  asked: dict[str, Any] = {"seed": options.seed, "batch_size": options.batch_size}
  asked |= {"names": list(batch), "emphasis": options.emphasis}
  (asked["tile"],) = {loaded.tile or "off" for loaded in batch.values()}  # they are of one size
  if options.samples is None:
    return model.fuse(*map(list, sources), **asked), [None] * len(batch)
  return model.fuse(*map(list, sources), **asked, samples=options.samples)
