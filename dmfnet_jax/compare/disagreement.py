"""How far what several models made of one pair lies apart."""

from collections.abc import Mapping, Sequence

import numpy as np

from dmfnet_jax.fusing import stream
from dmfnet_jax.fusing.match import Pair
from dmfnet_jax.io import color, pictures

RULE = (
  "the standard deviation of the models' lumas at each pixel, and its mean over the picture, in "
  "grey levels"
)


def disagreements(
  fused: Mapping[str, Mapping[str, Pair]], stems: Sequence[str]
) -> dict[str, float]:
  """How far the models' pictures of each pair lie apart, by `RULE`.

  Args:
    fused: model -> stem -> the pair, whose `out` is what the model made of it.
    stems: of pairs of pictures that all models have fused.

  Returns:
    Stem -> grey levels, from 0 (of a single model always), the largest first; equals by stem.
  """

  def of_pair(stem: str) -> float:
    lumas = [color.to_grey(pictures.read_image(of[stem].out)) for of in fused.values()]
    return float(np.stack(lumas).astype(np.float32).std(axis=0).mean())

  with stream.threads() as pool:
    found = dict(zip(stems, pool.map(of_pair, stems), strict=True))
  return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
