"""Sample pictures of a run, on a few validation pairs that stay the same throughout."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dmfnet_jax.data.examples import with_channels
from dmfnet_jax.inference.engine import example_keys
from dmfnet_jax.inference.model import Model
from dmfnet_jax.io import color, pictures
from dmfnet_jax.io.panels import panel
from dmfnet_jax.methods.method import batch_fields, select
from dmfnet_jax.training.setup import Setup, trained_networks
from dmfnet_jax.training.state import TrainState
from dmfnet_jax.weights import workdir

_ROWS = 4

Sampler = Callable[[TrainState, Sequence[Any], epath.Path], np.ndarray | None]


def make_sampler(run: Setup) -> Sampler:
  """Returns `draw(state, source, path) -> picture` for a run.

  It takes the state on the host, the validation source and the PNG to write. The picture shows what
  the stage draws itself or, where it fuses, the sources, the fused picture and the maximum of the
  sources. It returns what it wrote, uint8 [H, W, 3]; None where the stage has nothing to show.
  """
  if run.stage.draw is not None:
    draw = _make_own_drawing(run)
  elif set(run.method.networks) <= {*run.frozen, *trained_networks(run.stage)}:
    draw = _make_fused_drawing(run)
  else:
    return lambda state, source, path: None

  def sampler(state: TrainState, source: Sequence[Any], path: epath.Path) -> np.ndarray:
    picture = draw(state, _choose(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.write_image(path, picture)
    return picture

  return sampler


def _choose(source: Sequence[Any]) -> list[Any]:
  """A few examples from all over the split, of as many modalities as it has."""
  spread = np.linspace(0, len(source) - 1, min(8 * _ROWS, len(source))).round().astype(int)
  by_modality: dict[Any, list[Any]] = {}
  for example in (source[int(i)] for i in spread):
    by_modality.setdefault(example["modality"], []).append(example)
  in_turn = itertools.zip_longest(*(by_modality[key] for key in sorted(by_modality)))
  return [example for group in in_turn for example in group if example is not None][:_ROWS]


def _make_own_drawing(run: Setup) -> Callable[..., np.ndarray]:
  draw_columns = jax.jit(run.stage.draw)  # type: ignore[arg-type]
  fields = batch_fields(run.method, run.stage)
  stride = run.method.stride(run.config)

  def draw(state: TrainState, examples: Sequence[Any]) -> np.ndarray:
    # Cut to one size, so that they are one batch.
    height, width = (
      min(example[fields[0].name].shape[axis] for example in examples) // stride * stride
      for axis in (0, 1)
    )
    batch = {
      f.name: jnp.stack(
        [
          example[f.name].astype(np.float32)
          if f.is_vector
          else _as_float(example[f.name], f.channels)[:height, :width]
          for example in examples
        ]
      )
      for f in fields
    }
    keys = example_keys(run.config.seed, [str(row) for row in range(len(examples))])
    columns = draw_columns(state.eval_params, batch, keys)
    rows = [
      [_shown(pictures.from_float(np.asarray(column[row]))) for column in columns.values()]
      for row in range(len(examples))
    ]
    return panel(rows, column_titles=list(columns))

  return draw


def _as_float(picture: np.ndarray, channels: int) -> np.ndarray:
  return pictures.to_float(with_channels(picture, channels))


def _shown(picture: np.ndarray) -> np.ndarray:
  return picture if picture.shape[-1] == 3 else picture[..., 0]


def _draw_planes(model: Model, example: Any) -> np.ndarray:
  """Three planes through the middle of volumes, which are fused whole."""
  a, b = (with_channels(example[name], 1)[..., 0] for name in ("a", "b"))
  volumes = [a, b, model.fuse(a, b), np.maximum(a, b)]
  # Upward in the picture is upward in space.
  middle = [[np.take(x, x.shape[axis] // 2, axis).T[::-1] for x in volumes] for axis in (2, 1, 0)]
  return panel(middle, column_titles=["A", "B", "fused", "max(A, B)"])


def _make_fused_drawing(run: Setup) -> Callable[..., np.ndarray]:
  config = workdir.model_config(run.config.to_dict())

  def draw(state: TrainState, examples: Sequence[Any]) -> np.ndarray:
    params = select(state.eval_params, run.method.networks)
    model = Model(params, config, compute_dtype=run.config.compute_dtype)
    rows = []
    if run.method.space == 3:
      return _draw_planes(model, examples[0])
    for example in examples:
      a, b = example["a"][..., 0], example["b"]
      fused = model.fuse(a, b, seed=run.config.seed)
      brighter = color.replace_luma(b, np.maximum(a, color.rgb_to_luma(b)))
      rows.append([a, b, fused, brighter])
    return panel(rows, column_titles=["A", "B", "fused", "max(A, B)"])

  return draw
