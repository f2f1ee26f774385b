"""What TFS-Diff trains, and what its runs show."""

from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import make_schedule, sample_noise_level
from dmfnet_jax.methods.method import (
  Array,
  Config,
  Context,
  Field,
  Images,
  Loss,
  Params,
  Stage,
  Update,
)
from dmfnet_jax.methods.tfsdiff import networks, objectives, resampling
from dmfnet_jax.methods.tfsdiff.sampling import make_sampler

SOURCES = tuple(Field(name, channels=networks.COLOURS) for name in "abc")
TARGET = Field("target", channels=networks.COLOURS)


def side_by_side(sources: list[Array]) -> Array:
  """Three pictures [B, H, W, 3] as the condition [B, H, W, 9]."""
  return jnp.concatenate(sources, axis=-1)


def condition_of(config: Config, images: Images) -> Array:
  """The condition of a training batch: its sources as if they had been enlarged."""
  factor = config["enlargement"]["factor"] if config["enlargement"]["sharp_sources"] else 1
  return side_by_side(
    [
      resampling.enlarge(resampling.coarsen(images[source.name], factor), factor)
      for source in SOURCES
    ]
  )


def denoising(config: Any) -> Stage:
  """The only stage: the target is noised, and the network predicts the noise."""
  network = networks.build(config.unet.to_dict(), config.compute_dtype, config.remat)
  schedule = make_schedule(**config.schedule)
  sample = make_sampler(config.to_dict(), config.compute_dtype)

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    target = batch[TARGET.name]
    t_keys, level_keys, noise_keys, dropout_keys = jax.vmap(
      lambda key: jax.random.split(key, 4), out_axes=1
    )(context.keys)
    t = jax.vmap(lambda key: jax.random.randint(key, (), 1, schedule.num_timesteps + 1))(t_keys)
    noise_level = jax.vmap(sample_noise_level, (None, 0, 0))(schedule, level_keys, t)
    noise = gaussian.normal_per_example(noise_keys, target.shape[1:])
    predicted = network.apply(
      {"params": params["unet"]},
      condition_of(config, batch),
      gaussian.q_sample(target, noise_level, noise),
      noise_level,
      dropout_keys if context.train else None,
    )
    return Loss(*objectives.noise_loss(target, noise, predicted, batch_size=config.batch_size))

  def draw(params: Params, images: Images, keys: Array) -> dict[str, Array]:
    """The sources as the network sees them, what it makes of them, and the target."""
    step = 2 ** (len(config.unet.multipliers) - 1) * config.enlargement.factor
    _, height, width, _ = images[TARGET.name].shape
    window = tuple(slice(side // step * step) for side in (height, width))
    images = {name: image[:, *window] for name, image in images.items()}
    condition = condition_of(config, images)
    seen = jnp.split(condition, len(SOURCES), axis=-1)
    columns = {source.name.upper(): x for source, x in zip(SOURCES, seen, strict=True)}
    return columns | {"fused": sample(params["unet"], condition, keys), "target": images["target"]}

  return Stage(
    init=lambda key: {"unet": networks.init(key, network, len(SOURCES))},
    updates=(Update(loss, ("unet",)),),
    targets=(TARGET,),
    draw=draw,
  )
