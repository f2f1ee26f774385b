"""What TFormer trains: backbone and classifier together, on both pictures and the facts."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy.ndimage import map_coordinates

from dmfnet_jax.io import seven_point
from dmfnet_jax.methods.method import (
  STATS,
  Array,
  Context,
  Field,
  Images,
  Loss,
  Params,
  Stage,
  Update,
  variables,
)
from dmfnet_jax.methods.tformer.networks import BACKBONE, CLASSIFIER, STAGES, Classifier
from dmfnet_jax.nn.swin import Swin

PATCH = 4
SOURCES = (
  Field("clinical", channels=3),
  Field("dermoscopic", channels=3),
  Field(
    "facts",
    len(sum((k for _, k in seven_point.FACTS), ())),
    is_vector=True,
    columns=seven_point.FACTS,
  ),
)
OUTPUTS = tuple(
  Field(name, len(classes), is_vector=True, classes=tuple(classes))
  for name, classes in seven_point.CRITERIA.items()
)
TARGET = Field("classes", len(OUTPUTS), is_vector=True)


def side_of(config: Any) -> int:
  """The sides of the pictures: at the coarsest grid a window is all there is."""
  return PATCH * config["network"]["window"] * 2 ** (STAGES - 1)


def left_out(config: Any) -> tuple[str, ...]:
  """The columns that the model does not look at; see `Method.left_out`."""
  return () if config["facts"]["leaking"] else seven_point.LEAKING


def build(config: Any, dtype: Any = jnp.float32, remat: bool = False) -> dict[str, Any]:
  """The networks by name, of the config's `network`."""
  network = config["network"]
  return {
    BACKBONE: Swin(
      network["width"],
      tuple(network["depths"]),
      tuple(network["heads"]),
      network["window"],
      network["drop_path"],
      dtype,
      remat,
    ),
    CLASSIFIER: Classifier(
      tuple((field.name, field.channels) for field in OUTPUTS),
      tuple(network["fusion_heads"]),
      network["window"],
      network["features"],
      dtype,
      remat,
    ),
  }


def judge(
  networks: Mapping[str, Any],
  config: Any,
  params: Params,
  images: Images,
  keys: Array | None = None,
  train: bool = False,
  axis: str | None = None,
) -> tuple[dict[str, Array], Params]:
  """The heads' logits of an example, and the classifier's statistics as they are then.

  Args:
    networks: see `build`.
    config: the model config.
    params: of both networks.
    images: the sources; pictures in [0, 1].
    keys: [B] for dropped paths and dropout; None drops nothing.
    train: see `Classifier`, as for the next one.
    axis: the same.
  """
  fields = [field.name for field in SOURCES[:2]]
  of_classifier, both = None, None
  if keys is not None:
    of_classifier, *of_pictures = jax.vmap(functools.partial(jax.random.split, num=3), out_axes=1)(
      keys
    )
    both = jnp.concatenate(of_pictures)
  # Blue first: the published program reads them so.
  pictures = jnp.concatenate([images[name] for name in fields])[..., ::-1]
  features = networks[BACKBONE].apply(variables(params, BACKBONE), pictures, both)
  clinical, dermoscopic = zip(*(jnp.split(x, 2) for x in features), strict=True)
  logits, changed = networks[CLASSIFIER].apply(
    variables(params, CLASSIFIER),
    clinical,
    dermoscopic,
    images["facts"] * kept(config)[None],
    of_classifier,
    train,
    axis,
    mutable=["batch_stats"],
  )
  return logits, changed["batch_stats"]


def kept(config: Any) -> Array:
  """1 for each of the facts that the model looks at, else 0; float32 [facts]."""
  out = left_out(config)
  return jnp.array([name not in out for name, known in seven_point.FACTS for _ in known], float)


def training(config: Any) -> Stage:
  """The one stage; the backbone may begin as `start` has it, from another program's file."""
  networks = build(config, config.compute_dtype, config.remat)

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    pictures = [(batch[field.name] + 1) / 2 for field in SOURCES[:2]]
    keys = None
    if context.train:
      of_augmentation, keys = jax.vmap(jax.random.split, out_axes=1)(context.keys)
      pictures = list(augment(of_augmentation, *pictures, **config.augment))
    images = batch | {f.name: x for f, x in zip(SOURCES[:2], pictures, strict=True)}
    logits, stats = judge(networks, config, params, images, keys, context.train, context.axis)
    value, terms = cross_entropies(logits, batch[TARGET.name])
    if context.train:
      value = value + l2(params, config.loss.decay)
    return Loss(value, terms, {CLASSIFIER: stats})

  return Stage(
    init=functools.partial(init, config),
    updates=(Update(loss, (BACKBONE, CLASSIFIER)),),
    continued=(BACKBONE,),
    targets=(TARGET,),
    draw=lambda params, images, keys: {f.name: images[f.name] for f in SOURCES[:2]},
  )


def cross_entropies(logits: Mapping[str, Array], classes: Array) -> tuple[Array, dict[str, Array]]:
  """The mean of the heads' cross entropies, [B].

  Args:
    logits: [B, classes] by head, in the order of `OUTPUTS`.
    classes: [B, heads], the classes' numbers.

  Returns:
    The mean, and as terms each head's cross entropy, and the share of heads that are right.
  """
  truth = classes.astype(jnp.int32)
  of_heads, right = {}, {}
  for i, field in enumerate(OUTPUTS):
    found = logits[field.name]
    of_heads[field.name] = optax.softmax_cross_entropy_with_integer_labels(found, truth[:, i])
    right[field.name] = (jnp.argmax(found, axis=-1) == truth[:, i]).astype(jnp.float32)
  mean = lambda x: jnp.mean(jnp.stack(list(x.values())), axis=0)  # noqa: E731
  terms = of_heads | {"accuracy": mean(right), "accuracy_diagnosis": right["diagnosis"]}
  return mean(of_heads), terms


def l2(params: Params, decay: float) -> Array:
  """What has torch's `weight_decay` as its gradient; of all parameters, biases too."""
  leaves = jax.tree.leaves({name: params[name] for name in (BACKBONE, CLASSIFIER)})
  return decay / 2 * sum((jnp.sum(jnp.square(x)) for x in leaves), jnp.float32(0))


def init(config: Any, key: Array) -> Params:
  """Initialises both networks; no forward pass is compiled."""
  network, side = config["network"], side_of(config)
  networks = build(config)
  picture = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  features = [
    jax.ShapeDtypeStruct((1, side // n, side // n, network["width"] * m), jnp.float32)
    for n, m in ((8, 2), (16, 4), (32, 8), (32, 8))
  ]
  facts = jax.ShapeDtypeStruct((1, SOURCES[2].channels), jnp.float32)
  of_backbone, of_classifier = jax.random.split(key)
  backbone = networks[BACKBONE].lazy_init(of_backbone, picture)
  classifier = networks[CLASSIFIER].lazy_init(of_classifier, features, features, facts)
  return {
    BACKBONE: backbone["params"],
    CLASSIFIER: classifier["params"],
    STATS: {CLASSIFIER: classifier["batch_stats"]},
  }


def augment(
  keys: Array,
  clinical: Array,
  dermoscopic: Array,
  *,
  chance: float,
  shift: float,
  scale: float,
  angle: float,
  contrast: float,
) -> tuple[Array, Array]:
  """Moves both pictures alike, and makes the clinical one brighter or darker, by chance.

  As published the dermoscopic picture is moved as a mask is, to its nearest pixels.

  Args:
    keys: [B] PRNG keys, one an example.
    clinical: [B, S, S, 3] in [0, 1].
    dermoscopic: the same.
    chance: of anything at all; each change then has a chance of a half.
    shift: the largest, in sides.
    scale: the largest part by which a picture grows or shrinks.
    angle: the largest, in degrees; quarters of a turn come besides.
    contrast: the largest change of the contrast, and of the brightness.
  """
  side = clinical.shape[1]
  middle = (side - 1) / 2
  axis = jnp.arange(side, dtype=jnp.float32) - middle
  grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"))

  def move(picture: Array, places: Array, order: int) -> Array:
    of_one = functools.partial(map_coordinates, order=order, mode="mirror")
    return jax.vmap(of_one, (-1, None), -1)(picture, list(places))

  def of_one(key: Array, clinical: Array, dermoscopic: Array) -> tuple[Array, Array]:
    of_chances, of_values, of_turns = jax.random.split(key, 3)
    drawn = jax.random.bernoulli(of_chances, 0.5, (5,))
    whether = jax.random.bernoulli(jax.random.fold_in(of_chances, 1), chance)
    drawn = (drawn & whether).astype(jnp.float32)
    values = jax.random.uniform(of_values, (6,), minval=-1.0, maxval=1.0)
    flips = 1 - 2 * drawn[:2]
    moved = drawn[2]
    turned = moved * values[0] * jnp.deg2rad(jnp.float32(angle))
    quarters = drawn[3] * jax.random.randint(of_turns, (), 0, 4).astype(jnp.float32)
    turned = turned + quarters * (jnp.pi / 2)
    cosine, sine = jnp.cos(turned), jnp.sin(turned)
    matrix = jnp.array([[cosine, -sine], [sine, cosine]]) / (1 + moved * scale * values[1])
    matrix = flips[:, None] * matrix
    offset = moved * shift * side * values[2:4] + middle
    places = jnp.einsum("ij,jhw->ihw", matrix, grid) + offset[:, None, None]
    gain, more = 1 + drawn[4] * contrast * values[4], drawn[4] * contrast * values[5]
    clinical = jnp.clip(move(clinical, places, 1) * gain + more, 0, 1)
    return clinical, move(dermoscopic, places, 0)

  return jax.vmap(of_one)(keys, clinical, dermoscopic)
