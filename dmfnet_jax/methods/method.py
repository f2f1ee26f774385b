"""The contract of a fusion method: a record of pure functions, as optax's transformations are.

The trunk (training, inference, the command line) knows a method through this record alone. What it
hands over is float32: images [B, *space, C] in [-1, 1], vectors [B, C] as they are. A method turns
ranges inside itself.

Parameters are a dict from a network's name to its pytree. The running statistics of batch norms,
where a method has any, stand in the same dict under `STATS`, again by network.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Array = jax.Array
Config = Mapping[str, Any]  # sections and fields; a `ConfigDict` in training, JSON's dict elsewhere
Params = dict[str, Any]
Images = dict[str, Array]

STATS = "stats"
MADE = "made"
"""The output of a method that makes a picture that is missing, where others' is "fused"."""
WINDOW = "window"
"""Beside the sources of a tile, where it lies in its picture: int32 [B, 4], first row and column,
and the height and width to which the whole picture is padded; of a block of a volume [B, 6]. Noise
belongs to the picture: `diffusion.window` draws the tile's part of it."""


class Field(NamedTuple):
  """One input, output or further field of a batch.

  Attributes:
    name: what batches and error messages call it.
    channels: of the picture, or the length of a vector.
    gives_colour: where the picture is coloured, its luma is fused and the result takes its chroma.
    is_vector: numbers [B, channels] that belong to the example, and no picture.
    classes: of an output that holds probabilities, what each one is of.
    columns: of a source that comes from a table, its columns and what each may say, in the order of
      the vector, which is 1 where that is said and else 0.
  """

  name: str
  channels: int = 1
  gives_colour: bool = False
  is_vector: bool = False
  classes: tuple[str, ...] = ()
  columns: tuple[tuple[str, tuple[str, ...]], ...] = ()

  @property
  def drops_colour(self) -> bool:
    """Whether of a coloured picture the luma alone is of use."""
    return self.channels == 1 and not self.gives_colour


class Context(NamedTuple):
  """What a loss may know besides parameters and batch.

  Attributes:
    keys: [B] PRNG keys, one an example: noise belongs to the example and not to the batch.
    train: False in evaluation: no dropout, batch norms use their running statistics.
    progress: share of the run that is done, float32 [] in [0, 1].
    axis: the axis over which devices share a batch in training, for statistics of all of it.
  """

  keys: Array
  train: bool
  progress: Array
  axis: str | None = None


class Loss(NamedTuple):
  """What a loss returns.

  Attributes:
    value: [B], what is minimised: the trunk takes the mean.
    terms: [B] each, to be logged.
    stats: new running statistics by network, the same on all devices; empty without batch norms.
  """

  value: Array
  terms: dict[str, Array]
  stats: Params = {}  # noqa: RUF012 (never written to)


LossFn = Callable[[Params, Images, Context], Loss]


class Update(NamedTuple):
  """One gradient step. Several in a train step: a generator's and a discriminator's.

  Each sees the parameters as they were before the step, and the statistics that the update before
  it has left.

  Attributes:
    loss: of all networks' parameters, the batch and the context.
    networks: those that it moves. Each has an optimizer of its own, clipped by its own norm.
  """

  loss: LossFn
  networks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
  """One training run of a method.

  Attributes:
    init: a key to the parameters of the networks that are trained (and their `STATS`).
    updates: what a step does. The evaluation, and the choice of the best checkpoint, look at the
      first one's loss.
    frozen: networks that stay as they are, by the config field that names where they come from:
      "start" (a workdir or model file of an earlier stage), or a field for a file from elsewhere.
    continued: networks of `start` that are trained on, with their optimizers' states.
    targets: further fields of its batches, such as a mask or the contrast to be made, by the names
      that datasets have. One that is named as a source stands in that source's place, such as `b`
      with its colours.
    stored: what datasets call fields of the batches, where they call them otherwise, such as
      {"a": "t1"}.
    substitute: a key to networks of `frozen` at random, for those whose config field is empty.
    draw: sample pictures of a stage that does not fuse yet, or that has more to show: parameters,
      sources and targets, and keys to columns [B, H, W, 1 or 3] by their titles.
  """

  init: Callable[[Array], Params]
  updates: tuple[Update, ...]
  frozen: Mapping[str, str] = field(default_factory=dict)
  continued: tuple[str, ...] = ()
  targets: tuple[Field, ...] = ()
  stored: Mapping[str, str] = field(default_factory=dict)
  substitute: Callable[[Array], Params] | None = None
  draw: Callable[[Params, Images, Array], dict[str, Array]] | None = None


class Compute(NamedTuple):
  """How to compute what is asked for; it changes the rounding only.

  Attributes:
    dtype: of the networks' arithmetic, "float32" or "bfloat16".
    parts_per_step: how many of the method's `parts` run as one batch.
    mesh: devices that share the work on each example; None for one device.
    on_step: told, on the host, how many of so many passes are done; None tells nobody.
  """

  dtype: str = "float32"
  parts_per_step: int = 1
  mesh: Mesh | None = None
  on_step: Callable[[Any, int], None] | None = None

  def divide(self, x: Array, axis: int) -> Array:
    """Divides an array's axis over the devices; a hint, which changes no value.

    What follows is computed where its inputs lie: the parts of a step, or the rows of a picture.
    """
    if self.mesh is None or x.shape[axis] % self.mesh.size:
      return x
    spec = [None] * x.ndim
    spec[axis] = self.mesh.axis_names[0]
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*spec)))

  def tell(self, done: Array, count: int) -> None:
    """Tells `on_step` from within a program that takes many passes one after another."""
    if self.on_step is not None:
      jax.debug.callback(self.on_step, done, count)


@dataclass(frozen=True, kw_only=True)
class Method:
  """A method.

  Attributes:
    defaults: a stage's number to the method's own sections of its config, each field commented
      there; old model files and checkpoints take from here what they lack.
    model: the sections that a model file carries. A later stage takes from its `start` those that
      it does not have itself.
    fuse: a model config and a `Compute` to the function of (parameters, sources, keys [B]) that
      gives the outputs by name. Pictures have sides of multiples of `stride`.
    networks: what fusing needs, and what a model file holds.
    stages: a stage's number to the function of its config; none for a method without training.
    sources: the inputs, in the order of the command line: anatomical or infrared first.
    outputs: what `fuse` gives. The first is the fused picture, where there is one.
    after_crop: a model config to a function of the outputs of examples of one size, once they are
      cut to it: for what must not see the padding, such as a picture's own range. None where the
      config asks for nothing of the kind.
    scale: of a model config, the outputs' sides over the sources' (super-resolution).
    size: of a model config, the one size [*space] that it takes: pictures are stretched to it, and
      may be of different sizes; None: as they are.
    left_out: of a model config, columns of vectors that it does not look at.
    space: 2, or 3 for whole volumes.
    is_random: whether `fuse` draws noise from its keys.
    exact_size: a picture is padded to `stride` and no further. Otherwise to one of a few sizes, so
      that mixed sizes share programs.
    in_tiles: what overlapping tiles of a large picture give: "same" as the whole picture but for
      rounding; "close", where norms, attention or statistics see a tile in place of the picture;
      "no", where it is not to be had. Noise must be that of a tile's `WINDOW`. None: "no" where
      `fuse` draws noise, and otherwise "close".
    stride: of a model config.
    tile_step: of a model config, what tiles begin at multiples of; None: the stride.
    parts: how many pieces of the work can be taken one by one where memory is short.
    memory: (config, padded size, examples, parts_per_step, bytes a value) to about the bytes that
      the activations take; None where nobody has measured it.
    check: refuses a training config that cannot work, by a `UserError` that names the field.
    from_torch: converts published weights: a state dict by part to (parameters, model config).
    torch_parts: the parts that `from_torch` wants, each with what it is.
    from_model: makes a model of one of another method: its parameters and model config to
      (parameters, model config). A `UserError` where it has not what is needed.
    extras: further functions of a model by name, made as `fuse` is.
  """

  defaults: Callable[[int], dict[str, Any]]
  model: tuple[str, ...]
  fuse: Callable[[Config, Compute], Callable[[Params, Images, Array], Images]]
  networks: tuple[str, ...]
  stages: Mapping[int, Callable[[Config], Stage]] = field(default_factory=dict)
  sources: tuple[Field, ...] = (Field("a"), Field("b", gives_colour=True))
  outputs: tuple[Field, ...] = (Field("fused"),)
  after_crop: Callable[[Config], Callable[[Images], Images] | None] = lambda config: None
  scale: Callable[[Config], int] = lambda config: 1
  size: Callable[[Config], tuple[int, ...] | None] = lambda config: None
  left_out: Callable[[Config], tuple[str, ...]] = lambda config: ()
  space: int = 2
  is_random: bool = False
  exact_size: bool = False
  in_tiles: str | None = None
  stride: Callable[[Config], int] = lambda config: 1
  tile_step: Callable[[Config], int] | None = None
  parts: Callable[[Config], int] = lambda config: 1
  memory: Callable[[Config, tuple[int, ...], int, int, int], int] | None = None
  check: Callable[[Config], None] = lambda config: None
  from_torch: Callable[..., tuple[Params, dict[str, Any]]] | None = None
  torch_parts: Mapping[str, str] = field(default_factory=dict)
  from_model: Callable[[Params, Config], tuple[Params, dict[str, Any]]] | None = None
  extras: Mapping[str, Callable[[Config, Compute], Callable[..., Any]]] = field(
    default_factory=dict
  )

  @property
  def is_synthesis(self) -> bool:
    """Whether it makes a picture that is missing, and does not fuse those that there are."""
    return self.outputs[0].name == MADE

  @property
  def is_classification(self) -> bool:
    """Whether it tells probabilities of classes, and makes no picture."""
    return bool(self.outputs[0].classes)


def batch_fields(method: Method, stage: Stage) -> tuple[Field, ...]:
  """The fields of a stage's batches: the method's sources, and the stage's targets."""
  fields = {field.name: field for field in (*method.sources, *stage.targets)}
  return tuple(fields.values())


def join(*trees: Params) -> Params:
  """Puts networks of several dicts, and their statistics, into one."""
  joined: Params = {}
  stats: Params = {}
  for tree in trees:
    joined |= {name: params for name, params in tree.items() if name != STATS}
    stats |= tree.get(STATS, {})
  return joined | ({STATS: stats} if stats else {})


def select(params: Params, networks: Any) -> Params:
  """Takes networks, and their statistics, out of a dict; those that it lacks are left out."""
  chosen = {name: params[name] for name in networks if name in params}
  stats = {name: s for name, s in params.get(STATS, {}).items() if name in chosen}
  return chosen | ({STATS: stats} if stats else {})


def variables(params: Params, network: str) -> dict[str, Any]:
  """A network's variables as `flax.linen` takes them: parameters and batch statistics."""
  found = {"params": params[network]}
  if network in params.get(STATS, {}):
    found["batch_stats"] = params[STATS][network]
  return found
