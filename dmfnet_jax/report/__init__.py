"""`dmfnet report`: one HTML file to judge fused pictures, or a training run, in any browser."""

from collections.abc import Sequence

from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths

MAX_PICTURES = 500
"""Pairs that are shown in pictures, worst first; about 40 MB at 256 x 256."""


def write_report(
  sources: Sequence[paths.PathLike],
  out: paths.PathLike,
  *,
  title: str | None = None,
  max_pictures: int = MAX_PICTURES,
) -> int:
  """Writes the report of fused pictures or of a training run: one file that needs nothing else.

  Args:
    sources: either A, B and FUSED (three folders of pictures and volumes, or three files), see
      `fusing.triples.find_triples`, or the workdir of a training run.
    out: the HTML file; its folder is made where missing, an older file replaced.
    title: the page's heading; by default made from the sources' names.
    max_pictures: how many pairs or slices, worst first, are shown in pictures; the others have
      their line in the table of metrics only.

  Returns:
    0, or 1 where some pairs could not be measured: they are named on the page and on stderr.

  Raises:
    UserError: the sources are neither, nothing in them can be shown, or `out` cannot be written.
  """
  target = paths.as_path(out)
  if target.suffix.lower() not in (".html", ".htm"):
    raise UserError(f"{out}: a report is a web page: name a file that ends with .html")
  if len(sources) not in (1, 3):
    raise UserError(
      f"{len(sources)} sources: give three, A B FUSED, or one, the workdir of a training run"
    )
  failures: dict[str, str] = {}
  if len(sources) == 1:
    from dmfnet_jax.report import run

    page = run.run_page(sources[0], title=title)
  else:
    from dmfnet_jax.fusing.measure import measure
    from dmfnet_jax.fusing.triples import find_triples
    from dmfnet_jax.report import pairs

    found, failures = find_triples(*sources)
    measured = measure(found, with_baselines=True)
    failures |= measured.failures
    title = title or f"Fused: {sources[2]}"
    page = pairs.pairs_page(found, measured, failures, title=title, max_pictures=max_pictures)
  paths.make_folder(target.parent)
  paths.write_bytes(target, page.encode())
  return 1 if failures else 0
