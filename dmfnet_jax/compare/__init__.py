"""`dmfnet compare`: the same pairs fused with several models, in one table and on one page."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from dmfnet_jax.compare import page, table
from dmfnet_jax.compare.disagreement import disagreements
from dmfnet_jax.compare.table import Result
from dmfnet_jax.compare.timing import Timed
from dmfnet_jax.errors import UserError, why_failed
from dmfnet_jax.fusing.files import find_pairs, fuse_pairs, load
from dmfnet_jax.fusing.match import Pair, match_pairs
from dmfnet_jax.fusing.measure import measure
from dmfnet_jax.fusing.options import FuseOptions
from dmfnet_jax.fusing.pairing import Naming
from dmfnet_jax.fusing.triples import find_triples
from dmfnet_jax.io import finite_json, paths
from dmfnet_jax.messages import say

_LABELLED = re.compile(r"([\w.-]+)=(.+)")
_LABEL = re.compile(r"\w[\w.-]*")  # it names a folder


def compare_models(
  a: paths.PathLike | None,
  b: paths.PathLike | None,
  out: paths.PathLike,
  models: Mapping[str, str],
  options: FuseOptions,
  *,
  given: Mapping[str, str] | None = None,
  ssim_range: float = 255,
  max_pictures: int = 100,
) -> int:
  """Fuses all pairs with each model, measures them, and writes a table and a page.

  The fused pictures go to OUT/LABEL as `fusing.files.fuse_files` writes them; the table of means to
  stdout, OUT/compare.csv, OUT/compare.md and, with the values of every pair, OUT/compare.json; the
  page to OUT/compare.html. A model that cannot be used is named and the others go on. Pictures are
  read, fused and measured as streams: how many there are does not matter for the memory.

  Args:
    a: see `fuse_files`.
    b: the same kind.
    out: the folder, made where missing.
    models: label -> the model, as `parse_models` gives them.
    options: how to fuse; its `model` does not matter.
    given: label -> a folder of what another program made of the same pairs, named as they are.
    ssim_range: see `dmfnet_jax.metrics.compute_metrics`.
    max_pictures: pairs that the page shows, worst disagreements first.

  Returns:
    0, or 1 where a model or some pairs failed.

  Raises:
    UserError: nothing can be done: what `fuse_files` says of the sources, or none of the models
      could be used, or a label is given twice.
  """
  given = given or {}
  for label in given:
    if label in models:
      raise UserError(f"--fused: {label} is a model of --models, too: write OTHER={given[label]}")
  folder = paths.as_path(out)
  if folder.is_file():
    raise UserError(f"{out}: give a folder for the results of all models, not a file")
  labels = list(models)
  first, options = find_pairs(a, b, folder / labels[0], options)
  naming = Naming(options.suffix_a, options.suffix_b, options.pairs)
  pairs = {label: match_pairs(a, b, folder / label, naming).pairs for label in labels[1:]}
  pairs = {labels[0]: first, **pairs}
  paths.make_folder(folder)
  results: dict[str, Result] = {}
  failed: dict[str, str] = {}
  for label in (*models, *given):
    try:
      if label in given:
        pairs[label], results[label] = _measure_given(a, b, given[label], naming, ssim_range)
      else:
        asked = dataclasses.replace(options, model=models[label])
        results[label] = _use(pairs[label], folder / label, asked, ssim_range)
    except (UserError, MemoryError) as error:
      failed[label] = why_failed(error, "its pictures")
      say(f"error: model {label}: {failed[label]}")
  if not results:
    raise UserError("none of the models could be used, see above")

  compared = table.compare(results)
  by_stem = {label: {pair.stem: pair for pair in pairs[label]} for label in results}
  volumes = {pair.stem for pair in first if pair.is_volume}
  found = disagreements(by_stem, [stem for stem in compared.common if stem not in volumes])
  print(table.format_text(compared))
  facts = {name: getattr(options, name) for name in ("seed", "precision", "tile")}
  document: dict[str, Any] = {**table.to_json(compared), "disagreement": found, "failed": failed}
  written = {
    "compare.csv": table.format_csv(compared),
    "compare.md": table.format_markdown(compared),
    "compare.json": finite_json.dumps(document | facts, indent=1) + "\n",
    "compare.html": page.compare_page(
      compared, by_stem, found, failed, facts=facts, max_pictures=max_pictures
    ),
  }
  for name, text in written.items():
    paths.write_bytes(folder / name, text.encode())
  say(f"table and page: {', '.join(str(folder / name) for name in written)}")
  return 1 if failed or any(result.failures for result in results.values()) else 0


def parse_models(words: str, option: str = "--models") -> dict[str, str]:
  """Reads a list of models, or of folders.

  Args:
    words: released names, files, workdirs, addresses of the Hub or methods without weights, with
      commas between them; where wanted as LABEL=MODEL.
    option: the one whose value this is, for messages.

  Returns:
    Label -> model. The label is otherwise the name without the folders and `.safetensors`.

  Raises:
    UserError: there is none, two have one label, or a label cannot name a folder.
  """
  found: dict[str, str] = {}
  for word in filter(None, map(str.strip, words.split(","))):
    labelled = _LABELLED.fullmatch(word)
    label, model = labelled.groups() if labelled else (_label(word), word)
    if label in found:
      raise UserError(
        f"{option}: {found[label]} and {model} are both called {label}: write LABEL={model}"
      )
    if not _LABEL.fullmatch(label):
      raise UserError(f"{option}: {word}: write LABEL={model}, LABEL of letters, digits, - and _")
    found[label] = model
  if not found:
    raise UserError(f"{option}: name one at least, such as small,max,mean,overlay")
  return found


def _label(word: str) -> str:
  return PurePosixPath(word).name.removesuffix(".safetensors")


def _use(pairs: list[Pair], folder: Any, options: FuseOptions, ssim_range: float) -> Result:
  """Fuses pairs with one model and measures them."""
  model = Timed(load(options))
  failures = fuse_pairs(model, pairs, folder, options)
  left = {pair.stem: pair for pair in pairs if pair.stem not in failures}
  if not left:
    raise UserError("it fused none of the pairs, see above")
  seconds = model.seconds(next(iter(left.values())), options)
  parameters, sha256 = model.count_parameters(), model.fingerprint()
  measured = measure(left, ssim_range=ssim_range)
  return Result(
    options.model, sha256, parameters, seconds, measured.pairs, failures | measured.failures
  )


def _measure_given(
  a: paths.PathLike | None,
  b: paths.PathLike | None,
  place: str,
  naming: Naming,
  ssim_range: float,
) -> tuple[list[Pair], Result]:
  """Measures what another program has made of the pairs; it has no costs that we know."""
  found, failures = find_triples(a, b, place, naming=naming)
  measured = measure(found, ssim_range=ssim_range)
  result = Result(place, "", math.nan, math.nan, measured.pairs, failures | measured.failures)
  return list(found.values()), result
