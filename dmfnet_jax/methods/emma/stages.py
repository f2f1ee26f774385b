"""What the two stages of EMMA train, and how they are judged."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dmfnet_jax.methods.emma import objectives
from dmfnet_jax.methods.emma.networks import build_fuser, build_sensing
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
  join,
  variables,
)

SENSING = ("sense_a", "sense_b")  # each guesses the source of its letter

# Simple fusions that stand for other methods' pictures where there are none.
_MADE_HERE: dict[str, Callable[[Array, Array], Array]] = {
  "mean": lambda a, b: (a + b) / 2,
  "maximum": jnp.maximum,
}


def order(config: Config, a: Any, b: Any) -> tuple[Any, Any]:
  """What belongs to the sources as the fuser takes it: the infrared one's first."""
  return (b, a) if config["fusion"]["visible"] == "a" else (a, b)


def sensing(config: Any) -> Stage:
  """The pseudo-sensing networks: of pictures fused otherwise, guess what each sensor saw."""
  network = build_sensing(config.sensing, config.compute_dtype, config.remat)

  def fused_pictures(images: Images) -> list[Array]:
    """Pictures in [0, 1] to sense from, by the config's `inputs`."""
    given = {name: (image + 1) / 2 for name, image in images.items() if name != "index"}
    return [
      _MADE_HERE[name](given["a"], given["b"]) if name in _MADE_HERE else given[name]
      for name in config.inputs
    ]

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    fused = jnp.concatenate(inputs := fused_pictures(batch))
    modes = context.train, context.axis
    terms, stats = {}, {}
    for source, name in zip("ab", SENSING, strict=True):
      sensed, changed = network.apply(
        variables(params, name), fused, *modes, mutable=["batch_stats"]
      )
      missing = sensed.reshape(len(inputs), *batch[source].shape) - (batch[source][None] + 1) / 2
      terms[f"mse_{source}"] = jnp.mean(missing**2, axis=(0, 2, 3, 4))
      stats[name] = changed["batch_stats"]
    # The networks share nothing: each moves by its own term.
    return Loss(terms["mse_a"] + terms["mse_b"], terms, stats)

  def draw(params: Params, images: Images, keys: Array) -> dict[str, Array]:
    del keys
    fused = _MADE_HERE["mean"](*((images[name] + 1) / 2 for name in "ab"))
    columns = {"fused": 2 * fused - 1}
    for source, name in zip("ab", SENSING, strict=True):
      sensed = network.apply(variables(params, name), fused)
      columns |= {source.upper(): images[source], f"{source.upper()} sensed": 2 * sensed - 1}
    return columns

  return Stage(
    init=lambda key: init_sensing(config, key),
    updates=(Update(loss, SENSING),),
    targets=tuple(Field(name) for name in config.inputs if name not in _MADE_HERE),
    draw=draw,
  )


def fusion(config: Any) -> Stage:
  """The fuser: what both sensors see of its picture is the sources, and moving it changes nothing.

  The sensing networks stay as they are; the gradient passes through them.
  """
  fuser = build_fuser(config.fuser, config.compute_dtype, config.remat)
  # Without a backward pass of their own weights there is still one of what they see.
  sense = build_sensing(config.sensing, config.compute_dtype, config.remat)
  moves = config.transforms

  def loss(params: Params, batch: Images, context: Context) -> Loss:
    a, b = ((batch[name] + 1) / 2 for name in "ab")

    def fuse(a: Array, b: Array) -> Array:
      return fuser.apply({"params": params["fuser"]}, *order(config, a, b))

    def sense_both(fused: Array) -> Sequence[Array]:
      return [sense.apply(variables(params, name), fused) for name in SENSING]

    shifts = objectives.draw_shifts(context.keys, (a.shape[1], a.shape[2]), moves.shifts)

    def move(fused: Array) -> Array:
      return objectives.transform(fused, *shifts, moves.rotations, moves.flips)

    return equivariant(fuse, sense_both, move, fuse(a, b), a, b, weight=config.loss.equivariance)

  return Stage(
    init=lambda key: init_fuser(config, key),
    updates=(Update(loss, ("fuser",)),),
    frozen=dict.fromkeys(SENSING, "start"),
  )


def equivariant(
  fuse: Callable[[Array, Array], Array],
  sense: Callable[[Array], Sequence[Array]],
  move: Callable[[Array], Array],
  fused: Array,
  a: Array,
  b: Array,
  *,
  weight: float,
) -> Loss:
  """EMMA's loss (arXiv 2305.11443, section 3).

  Args:
    fuse: A and B to the fused picture.
    sense: a fused picture to what the sensors would see of it, A's and B's.
    move: [B, H, W, 1] to its transformed pictures [T, B, H, W, 1].
    fused: [B, H, W, 1] in [0, 1].
    a: the sources, like `fused`.
    b: see a.
    weight: of the equivariance.
  """
  terms = {}
  for name, source, sensed in zip("ab", (a, b), sense(fused), strict=True):
    terms[f"{name}_intensity"], terms[f"{name}_gradient"] = objectives.distance(sensed, source)
  moved = move(fused)
  transforms, count, *shape = moved.shape
  moved = moved.reshape(-1, *shape)
  again = fuse(*sense(moved))
  # Fused again, a moved picture is what it was.
  intensity, gradient = (
    jnp.mean(x.reshape(transforms, count), axis=0) for x in objectives.distance(moved, again)
  )
  terms |= {"equivariance_intensity": intensity, "equivariance_gradient": gradient}
  of_sources = sum(terms[f"{name}_{kind}"] for name in "ab" for kind in ("intensity", "gradient"))
  return Loss(of_sources + weight * (intensity + gradient), terms)


def init_fuser(config: Any, key: Array) -> Params:
  """Initialises the fuser as PyTorch does by default; no forward pass is compiled."""
  side = 2 ** len(config.fuser["widths"])
  picture = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
  return {"fuser": build_fuser(config.fuser).lazy_init(key, picture, picture)["params"]}


def init_sensing(config: Any, key: Array) -> Params:
  """Initialises both sensing networks, see `init_fuser`."""
  side = 2 ** (config.sensing["levels"] - 1)
  picture = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
  network = build_sensing(config.sensing)
  found: list[Params] = []
  for i, name in enumerate(SENSING):
    made = network.lazy_init(jax.random.fold_in(key, i), picture)
    found.append({name: made["params"], STATS: {name: made["batch_stats"]}})
  return join(*found)
