"""What the two stages of CoCoNet train, and how they are judged."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax.methods.coconet import objectives
from dmfnet_jax.methods.coconet.networks import BOTTOM, STRIDE, TOP, Fuser, Vgg, pad
from dmfnet_jax.methods.method import (
  STATS,
  Array,
  Config,
  Context,
  Field,
  Images,
  Loss,
  Params,
  Stage,
  Update,
  variables,
)

VGG_FILE = "vgg_file"
# VGG's levels by network: fusing needs the lower ones, the contrastive loss all.
VGG_LEVELS = {"vgg": BOTTOM, "vgg_top": TOP}
RANGES = {"signed": lambda x: x, "bytes": lambda x: 127.5 * x + 127.5}


def order(images: Images) -> tuple[Array, Array]:
  """The sources as the paper has them: the visible picture, the infrared one (or the MRI)."""
  return images["b"], images["a"]


def vgg_features(
  width: int, params: Params, image: Array, *, dtype: Any, early_pool: bool = False
) -> dict[str, Array]:
  """VGG's features of a picture, as far up as `params` goes."""
  features: dict[str, Array] = {}
  for name, levels in VGG_LEVELS.items():
    if name in params:
      network = Vgg(levels, 2 * width, early_pool, dtype)
      features |= network.apply({"params": params[name]}, image)
      image = list(features.values())[-1]
  return features


def fuse_padded(
  config: Config,
  params: Params,
  first: Array,
  second: Array,
  *,
  dtype: Any,
  statistics: str,
  axis: str | None = None,
  remat: bool = False,
) -> tuple[dict[str, Array], Params]:
  """Fuses pictures in [-1, 1] with sides of multiples of 16.

  Returns:
    `Fuser`'s features, and the running statistics, new where `statistics` is "batch".
  """
  width = config["network"]["width"]
  first, second = (RANGES[config["fusion"]["input_range"]](x) for x in (first, second))
  both = jnp.concatenate([first, second])
  found = vgg_features(width, {"vgg": params["vgg"]}, both, dtype=dtype, early_pool=True)
  ends = [jax.lax.stop_gradient(found[name]) for name in ("conv1_2", "conv2_2", "conv3_4")]
  skips = [list(x) for x in zip(*(jnp.split(end, 2) for end in ends), strict=True)]
  network = Fuser(width, statistics, axis, dtype, remat)
  found, changed = network.apply(
    variables(params, "fuser"), first, second, *skips, mutable=["batch_stats"]
  )
  return found, changed["batch_stats"]


def fuse_any(config: Config, params: Params, images: Images, *, dtype: Any) -> Array:
  """Fuses pictures of any size, [B, H, W, 1] in (-1, 1)."""
  (first, inside), (second, _) = (pad(image) for image in order(images))
  statistics = config["fusion"]["statistics"]
  found, _ = fuse_padded(config, params, first, second, dtype=dtype, statistics=statistics)
  return found["fused"][:, *inside]


def make_fuse(config: Any, params: Params, batch: Images, context: Context) -> tuple[Array, Params]:
  """The result in a loss, and new statistics: in training the batch's count, as published."""
  statistics = "batch" if context.train else config.fusion.statistics
  found, stats = fuse_padded(
    config,
    params,
    *order(batch),
    dtype=config.compute_dtype,
    statistics=statistics,
    axis=context.axis,
    remat=config.remat,
  )
  return found["fused"], {"fuser": stats} if context.train else {}


def main_loss(config: Any, fused: Array, batch: Images, context: Context) -> Any:
  """The loss of both stages; in training with the batch's SSIM, as published."""
  chosen = {k: v for k, v in config.loss.items() if k in ("ssim_sharpness", "mse_sharpness")}
  return objectives.main_loss(
    fused,
    *order(batch),
    ssim_weight=config.loss.ssim,
    cumulative=config.loss.entropy == "cumulative",
    mean=_mean_over(context) if context.train else None,
    **chosen,
  )


def _mean_over(context: Context) -> objectives.Mean:
  def mean(x: Array) -> Array:
    value = jnp.mean(x)
    return value if context.axis is None else jax.lax.pmean(value, context.axis)

  return mean


def pretraining(config: Any) -> Stage:
  """Stage 1: the fuser learns from the sources' SSIM and squared error."""

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    fused, stats = make_fuse(config, params, batch, context)
    value, terms = main_loss(config, fused, batch, context)
    return Loss(value, terms, stats)

  return Stage(
    init=functools.partial(init, config),
    updates=(Update(loss, ("fuser",)),),
    frozen={"vgg": VGG_FILE},
    substitute=functools.partial(draw_vgg, config, "vgg"),
  )


def finetuning(config: Any) -> Stage:
  """Stage 2: under the mask the result should be like A and unlike B, elsewhere the reverse."""
  from_dataset = config.loss.mask == "saliency"

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    visible, infrared = order(batch)
    fused, stats = make_fuse(config, params, batch, context)
    value, terms = main_loss(config, fused, batch, context)
    mask = batch["saliency"] / 2 + 0.5 if from_dataset else objectives.salient(infrared)
    mean = _mean_over(context) if context.train else None
    count = config.loss.negatives if context.train else 0
    lent, lent_infrared = (
      [image, *borrow(image, count, context.axis)] for image in (visible, infrared)
    )
    terms["contrast_infrared"], terms["contrast_visible"] = contrasts(
      config, params, fused, mask, lent, lent_infrared, mean
    )
    contrast = terms["contrast_infrared"] + terms["contrast_visible"]
    terms = {name: jnp.broadcast_to(term, value.shape) for name, term in terms.items()}
    return Loss(value + config.loss.contrast * contrast, terms, stats)

  return Stage(
    init=functools.partial(init, config),
    updates=(Update(loss, ("fuser",)),),
    frozen={"vgg": "start", "vgg_top": VGG_FILE},
    substitute=functools.partial(draw_vgg, config, "vgg_top"),
    continued=("fuser",),
    targets=(Field("saliency"),) if from_dataset else (),
  )


def contrasts(
  config: Any,
  params: Params,
  fused: Array,
  mask: Array,
  visible: Sequence[Array],
  infrared: Sequence[Array],
  mean: objectives.Mean | None = None,
) -> tuple[Array, Array]:
  """Both contrastive terms: under the mask the infrared picture is the positive, else the visible.

  Args:
    config: the run's.
    params: both networks of VGG.
    fused: [B, H, W, 1].
    mask: [B, H, W, 1] in [0, 1].
    visible: the example's own picture, and those of other examples.
    infrared: the same.
    mean: see `objectives.contrast`.
  """
  size, names = len(fused), ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")

  def features(images: Sequence[Array]) -> list[list[Array]]:
    """Of many pictures in one pass: VGG would take long to compile for each."""
    found = vgg_features(
      config.network.width,
      {name: params[name] for name in VGG_LEVELS},
      jnp.concatenate(images),
      dtype=config.compute_dtype,
    )
    split = [jnp.split(found[name], len(found[name]) // size) for name in names]
    return [list(levels) for levels in zip(*split, strict=True)]

  rest = 1 - mask
  anchors = features([fused * mask, fused * rest])
  under = [infrared[0], *visible], [visible[0], *infrared]  # a positive and its negatives
  others = [x * m for images, m in zip(under, (mask, rest), strict=True) for x in images]
  of_others = [[jax.lax.stop_gradient(level) for level in x] for x in features(others)]
  count = len(under[0])
  of_infrared, of_visible = (
    objectives.contrast(anchor, positive, negatives, mean)
    for anchor, (positive, *negatives) in zip(
      anchors, (of_others[:count], of_others[count:]), strict=True
    )
  )
  return of_infrared, of_visible


def borrow(images: Array, count: int, axis: str | None) -> list[Array]:
  """Pictures of other examples of the batch, of all devices, for each example `count` of them.

  The published program keeps two thirds of a batch for that alone. Here every example is fused, and
  takes those a third of the batch and two thirds of it behind it.
  """
  size = len(images)
  whole, here = images, jnp.zeros((), jnp.int32)
  if axis is not None:
    whole = jax.lax.all_gather(images, axis, tiled=True)
    here = jax.lax.axis_index(axis) * size
  # A batch that is too small lends an example its own again.
  steps = [max(1, len(whole) * (i + 1) // (count + 1)) for i in range(count)]
  places = here + jnp.arange(size)
  return [whole[(places + step) % len(whole)] for step in steps]


def init(config: Any, key: Array) -> Params:
  """Initialises the fuser as PyTorch does by default; no forward pass is compiled."""
  width = config.network.width
  image = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 1), jnp.float32)
  skips = [
    jax.ShapeDtypeStruct((1, STRIDE // n, STRIDE // n, n * width), jnp.float32) for n in (2, 4, 8)
  ]
  made = Fuser(width, dtype=config.compute_dtype).lazy_init(key, image, image, skips, skips)
  return {"fuser": made["params"], STATS: {"fuser": made["batch_stats"]}}


def draw_vgg(config: Any, name: str, key: Array) -> Params:
  """Random orthogonal weights of the convolutions, in place of those trained on ImageNet."""
  width, levels = 2 * config.network.width, VGG_LEVELS[name]
  channels = 1 if 0 in levels else 4 * width
  image = jax.ShapeDtypeStruct((1, 16, 16, channels), jnp.float32)
  network = Vgg(levels, width, dtype=config.compute_dtype)
  return {name: network.lazy_init(jax.random.fold_in(key, len(name)), image)["params"]}
