"""What the two stages of DM-FNet train, and how they are judged (SPEC, Stage I and Stage II)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax import losses
from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import make_schedule, sample_noise_level
from dmfnet_jax.methods import parts
from dmfnet_jax.methods.dmfnet import features
from dmfnet_jax.methods.dmfnet.networks import build_fusion_head, build_unet, init_head, init_unet
from dmfnet_jax.methods.method import Array, Context, Images, Loss, Params, Stage, Update

LOSSES = {"fusion": losses.fusion_loss}

# Steps at which Stage I is shown: fusion's own noise, and what structure survives at more.
_SHOWN_STEPS = (20, 100, 300, 1000)


def denoising(config: Any) -> Stage:
  """Stage I: both images of a pair are noised, and the UNet predicts the clean ones."""
  unet = build_unet(config.unet.to_dict(), config.compute_dtype, config.remat)
  schedule = make_schedule(**config.schedule)
  first, last = config.timestep_range

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    x_start = jnp.concatenate([batch["a"], batch["b"]])
    keys = jax.vmap(lambda key: jax.random.split(key, 2), out_axes=1)(context.keys).reshape(-1)
    t_keys, level_keys, noise_keys, dropout_keys = jax.vmap(
      lambda key: jax.random.split(key, 4), out_axes=1
    )(keys)
    t = jax.vmap(lambda key: jax.random.randint(key, (), first, last + 1))(t_keys)
    noise_level = jax.vmap(sample_noise_level, (None, 0, 0))(schedule, level_keys, t)
    noise = gaussian.normal_per_example(noise_keys, x_start.shape[1:])
    x_noisy = gaussian.q_sample(x_start, noise_level, noise)
    predicted, _ = unet.apply(
      {"params": params["unet"]}, x_noisy, noise_level, dropout_keys if context.train else None
    )
    loss_a, loss_b = jnp.split(losses.denoising_loss(x_start, predicted), 2)
    return Loss((loss_a + loss_b) / 2, {"mse_a": loss_a, "mse_b": loss_b})

  def draw(params: Params, images: Images, keys: Array) -> dict[str, Array]:
    """Clean, noisy and denoised at several steps; of every second pair the other image."""
    from_a = jnp.arange(len(keys))[:, None, None, None] % 2 == 0
    clean = jnp.where(from_a, images["a"], images["b"])
    noise = gaussian.normal_per_example(keys, clean.shape[1:])
    columns = {"clean": clean}
    for t in (t for t in _SHOWN_STEPS if t <= schedule.num_timesteps):
      level = jnp.full(len(keys), schedule.noise_levels[t])
      noisy = gaussian.q_sample(clean, level, noise)
      denoised, _ = unet.apply({"params": params["unet"]}, noisy, level)
      columns |= {f"noisy, t = {t}": noisy, f"denoised, t = {t}": denoised}
    return columns

  return Stage(
    init=lambda key: {"unet": init_unet(key, unet)},
    updates=(Update(loss, ("unet",)),),
    draw=draw,
  )


def fusion(config: Any) -> Stage:
  """Stage II: the head fuses the frozen UNet's features."""
  # The frozen UNet has no backward pass for which anything could be recomputed.
  unet = build_unet(config.unet.to_dict(), config.compute_dtype)
  timesteps, source = tuple(config.features.timesteps), config.features.source
  head = build_fusion_head(
    config.fusion_head.to_dict(), config.unet.to_dict(), len(timesteps), config.compute_dtype
  )
  schedule = make_schedule(**config.features.schedule)
  weights = config.loss.to_dict()
  fusion_loss = parts.find("loss.fn", weights.pop("fn"), LOSSES)
  if fusion_loss is losses.fusion_loss:
    fusion_loss = functools.partial(fusion_loss, **weights)

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    sources = batch["a"], batch["b"]
    noisy = features.noise_sources(
      schedule, timesteps, *sources, context.keys, noise=config.features.noise
    )
    extracted = jax.lax.stop_gradient(
      features.extract_features(unet, params["unet"], *noisy, source=source)
    )
    fused = head.apply({"params": params["fusion_head"]}, *extracted, sources)
    return Loss(*fusion_loss(fused, *sources))

  return Stage(
    init=lambda key: {"fusion_head": init_head(key, head)},
    updates=(Update(loss, ("fusion_head",)),),
    frozen={"unet": "start"},
  )
