"""`dmfnet classify`: what a model judges of pictures and a table, printed and as JSON.

Pictures are found and read as for fusing, by `pairing` and `stream`.
"""

import csv
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dmfnet_jax.errors import UserError, why_failed
from dmfnet_jax.fusing import kinds, pairing, stream
from dmfnet_jax.fusing.kinds import FOLDER, PICTURE
from dmfnet_jax.fusing.pairing import Naming
from dmfnet_jax.io import finite_json, paths, pictures, seven_point
from dmfnet_jax.messages import say

NOTICE = "research use only, not for diagnosis"
_NAME = "name"  # the column that says which pictures a row belongs to
_BATCH = 32

Rows = Mapping[str, Mapping[str, str]]  # by name; "" for the only one of a table without names
Judged = dict[str, dict[str, float]]  # output -> class -> probability


class _Loaded(NamedTuple):
  """The sources of one example in the method's order."""

  sources: Sequence[np.ndarray]


def classify_files(
  a: paths.PathLike,
  b: paths.PathLike,
  metadata: paths.PathLike,
  *,
  model: str,
  out: paths.PathLike | None = None,
  batch_size: int | None = None,
  plugins: Sequence[str] = (),
) -> int:
  """Classifies two pictures with what a table says, or those of two folders.

  Args:
    a: the picture that the model takes first, or a folder of them.
    b: the second, or a folder of pictures of the same stems.
    metadata: a CSV file with a heading. The column `name` says by the pictures' stem which row is
      whose; of two pictures it may be missing where there is one row.
    model: a model file or a training workdir.
    out: where the probabilities go as JSON, too.
    batch_size: see `Model.classify`.
    plugins: see `load_model`.

  Returns:
    0, or 1 where some failed: each is named with its reason.

  Raises:
    UserError: nothing can be done: no such path, no pairs, a table that cannot be read, or a model
      that does not classify two pictures and a table. Nothing has been written then.
  """
  found = find_pictures(paths.as_path(a), paths.as_path(b))
  rows = read_table(metadata)
  from dmfnet_jax.inference.model import load_model  # not for a mistyped path

  loaded = load_model(model, plugins=plugins)
  method = loaded.method
  vectors = [field.is_vector for field in method.sources]
  if not method.is_classification or vectors != [False, False, True]:
    raise UserError(f"{model} does not classify two pictures and a table: it fuses, as dmfnet fuse")
  columns, left_out = method.sources[2].columns, method.left_out(loaded.config)
  if out is not None:
    paths.make_folder(paths.as_path(out).parent)

  def load(named: tuple[str, Any, Any]) -> _Loaded:
    name, *files = named
    row = rows.get(name) or (rows.get("") if len(found) == 1 else None)
    if row is None:
      raise UserError(f"{metadata} has no row whose {_NAME} is {name}")
    try:
      facts = seven_point.one_hot(row, columns, left_out)
    except UserError as error:
      raise UserError(f"{metadata}: {error}") from error
    return _Loaded([*map(pictures.read_image, files), facts])

  judged: dict[str, Judged] = {}
  items = {name: (name, *files) for name, files in found.items()}
  limit = batch_size or _BATCH
  with stream.Progress(len(items)) as progress, stream.threads() as pool:
    batches = stream.read_in_batches(
      pool, items, load, key=lambda _: 0, limit=lambda _: limit, failed=progress.fail
    )
    for batch in batches:
      sources = zip(*(one.sources for one in batch.values()), strict=True)
      try:
        results = loaded.classify(*map(list, sources), batch_size=batch_size)
      except (UserError, MemoryError) as error:
        for name in batch:
          progress.fail(name, why_failed(error, "the pictures"))
        continue
      for name, of_one in zip(batch, results, strict=True):
        judged[name] = {
          field.name: dict(zip(field.classes, map(float, of_one[field.name]), strict=True))
          for field in method.outputs
        }
        progress.done()
  for name in items:
    if name in judged:
      print("\n".join(describe(name, judged[name])))
  print(NOTICE)
  if out is not None:
    document = {"notice": NOTICE, "model": model, "examples": judged, "failed": progress.failures}
    paths.write_bytes(out, (finite_json.dumps(document, indent=1) + "\n").encode())
  return 1 if progress.failures else 0


def describe(name: str, judged: Judged) -> list[str]:
  """The lines that tell of one example: of each output the classes, the most probable first."""
  width = max(map(len, judged))
  lines = [f"{name}:"]
  for output, classes in judged.items():
    ranked = sorted(classes.items(), key=lambda item: -item[1])
    told = ", ".join(f"{label} {probability:.3f}" for label, probability in ranked)
    lines.append(f"  {output.replace('_', ' '):<{width}}  {told}")
  return lines


def find_pictures(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
  """The two pictures of each example, by the first one's stem.

  Raises:
    UserError: a path does not exist, or does not fit the other; or there are no pairs.
  """
  for path in (a, b):
    if not path.exists():
      raise UserError(f"{path}: no such {'file or ' if path.suffix else ''}folder")
  listed = [paths.list_files(path) if path.is_dir() else [] for path in (a, b)]
  kind_a, kind_b = (kinds.kind_of(path, files) for path, files in zip((a, b), listed, strict=True))
  if (kind_a, kind_b) == (PICTURE, PICTURE):
    return {paths.file_stem(a): (a, b)}
  if (kind_a, kind_b) != (FOLDER, FOLDER):
    raise UserError(f"{a} is a {kind_a} and {b} a {kind_b}: give two pictures, or two folders")
  together = pairing.match_folders((a, b), listed, Naming())
  for note in together.notes:
    say(note)
  for path in together.alone:
    say(f"warning: no partner for {path}")
  found = {
    name: (of_a, of_b)
    for name, ((kind, of_a), (_, of_b)) in together.pairs.items()
    if kind == PICTURE
  }
  if not found:
    advice = f": {together.advice}" if together.advice else ""
    raise UserError(f"no picture in {a} has a partner of the same stem in {b}{advice}")
  return found


def read_table(place: paths.PathLike) -> Rows:
  """Reads a CSV file with a heading: its rows by their `name`.

  Raises:
    UserError: it cannot be read, is no such table, or has two rows of one name.
  """
  try:
    lines = paths.read_bytes(place).decode("utf-8-sig").splitlines()
    read = list(csv.DictReader(lines, strict=True))
  except (UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"{place}: not a CSV file in UTF-8: {error}") from error
  rows: dict[str, Mapping[str, str]] = {}
  if not read:
    raise UserError(f"{place}: no rows below a heading")
  if len(read) > 1 and _NAME not in read[0]:
    raise UserError(f"{place}: several rows need a column {_NAME}: the stem of their pictures")
  for number, row in enumerate(read, 2):
    name = (row.get(_NAME) or "").strip()
    if name in rows:
      raise UserError(f"{place}: line {number}: a second row of {name or 'no name'}")
    rows[name] = row
  return rows
