"""Sample pictures of a run, on a few validation pairs that stay the same throughout."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from dmfnet_jax.data import color, images
from dmfnet_jax.data.panels import panel
from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import make_schedule
from dmfnet_jax.inference.model import DMFNet
from dmfnet_jax.training import stages
from dmfnet_jax.training.checkpoint import model_config
from dmfnet_jax.training.state import TrainState

# Steps at which Stage I is shown: fusion's own noise, and what structure survives at more.
_SHOWN_STEPS = (20, 100, 300, 1000)
_ROWS = 4

Sampler = Callable[[TrainState, Sequence[Any], epath.Path], np.ndarray]


def make_sampler(config: ml_collections.ConfigDict) -> Sampler:
  """Returns `draw(state, source, path) -> picture` for a config's stage.

  Args:
    config: the run's config, with its `unet`.

  Returns:
    A function of the state on the host, the validation source and the PNG to write. Stage I's
    picture shows clean, noisy and denoised images at several steps; Stage II's A, B, the fused
    image and the maximum of the sources. It returns what it wrote, uint8 [H, W, 3].
  """
  draw = _make_stage1_drawing(config) if config.stage == 1 else _make_stage2_drawing(config)

  def sampler(state: TrainState, source: Sequence[Any], path: epath.Path) -> np.ndarray:
    picture = draw(state, _choose(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write_image(path, picture)
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


def _make_stage1_drawing(config: ml_collections.ConfigDict) -> Callable[..., np.ndarray]:
  unet, _ = stages.make_networks(config)
  schedule = make_schedule(**config.schedule)
  shown = [t for t in _SHOWN_STEPS if t <= config.schedule.num_timesteps]

  @jax.jit
  def denoise(params: Any, clean: jax.Array) -> tuple[jax.Array, jax.Array]:
    levels = schedule.noise_levels[jnp.asarray(shown)]
    noise = jax.random.normal(gaussian.make_key(config.seed), (len(shown), *clean.shape))
    noisy = gaussian.q_sample(clean[None], levels, noise)
    denoised, _ = unet.apply({"params": params}, noisy, levels)
    return noisy, denoised

  def draw(state: TrainState, examples: Sequence[Any]) -> np.ndarray:
    rows = []
    for index, example in enumerate(examples):
      # Both images of a pair are training images.
      grey = example["a"][..., 0] if index == 0 else color.rgb_to_luma(example["b"])
      grey = _crop(grey, config)
      clean = jnp.asarray(images.to_float(grey))[..., None]
      noisy, denoised = denoise(state.eval_params, clean)
      row = [grey]
      for pair in zip(noisy, denoised, strict=True):
        row += [images.from_float(np.asarray(image[..., 0])) for image in pair]
      rows.append(row)
    titles = ["clean"]
    for t in shown:
      titles += [f"noisy, t = {t}", "denoised"]
    return panel(rows, column_titles=titles)

  return draw


def _make_stage2_drawing(config: ml_collections.ConfigDict) -> Callable[..., np.ndarray]:
  def draw(state: TrainState, examples: Sequence[Any]) -> np.ndarray:
    params = {"unet": state.frozen_params, "fusion_head": state.eval_params}
    model = DMFNet(params, model_config(config.to_dict()), compute_dtype=config.compute_dtype)
    rows = []
    for example in examples:
      a, b = example["a"][..., 0], example["b"]
      fused = model.fuse(a, b, seed=config.seed)
      largest = color.replace_luma(b, np.maximum(a, color.rgb_to_luma(b)))
      rows.append([a, b, fused, largest])
    return panel(rows, column_titles=["A", "B", "fused", "max(A, B)"])

  return draw


def _crop(image: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
  """Cuts an image to the UNet's stride."""
  stride = 2 ** (len(config.unet.multipliers) - 1)
  height, width = (size // stride * stride for size in image.shape)
  return image[:height, :width]
