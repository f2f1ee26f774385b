"""EMMA's goldens: features, losses, gradients and a step of each stage. Arrays are NCHW."""

import functools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from golden_check import GRADIENT, Computed
from golden_weights import GOLDEN_DIR, nchw, nhwc

from dmfnet_jax import losses
from dmfnet_jax.configs import emma as recipe
from dmfnet_jax.methods.emma import METHOD, fuse_tiled, objectives, published, stages
from dmfnet_jax.methods.emma.networks import build_fuser, build_sensing
from dmfnet_jax.methods.method import Context, join, variables
from dmfnet_jax.nn import layers
from dmfnet_jax.training.state import Optimizers

# The page's own bounds: ReLUs, maxima and absolute values lie between. Steps are compared with how
# far they went.
FUSION_GRADIENT, SENSING_GRADIENT, STEP = 2e-3, 5e-3, 1e-2

PREFIXES = {"EMMA": "", "Ai": "Ai.", "Av": "Av."}
PARTS = {"EMMA": "fuser", "Ai": "sense_infrared", "Av": "sense_visible"}
# Which module here is which there, where features of it are stored.
FUSER_MODULES = {
  "I_en_1": "infrared_1",
  "I_en_1.embed": "infrared_1/embed",
  "I_en_1.GlobalFeature": "infrared_1/global",
  "I_en_1.LocalFeature": "infrared_1/local",
  "I_down1": "infrared_down_1",
  "I_en_4": "infrared_4",
  "V_en_1": "visible_1",
  "V_en_2": "visible_2",
  "f_1": "fuse_1",
  "f_4": "fuse_4",
  "de_4": "decode_4",
  "up4": "up_4",
  "de_1": "decode_1",
}
SENSING_MODULES = {"Ai.down1": "down_1", "Ai.down5": "down_5", "Ai.up_sample5": "double_5"}
WITH_RELU = ("up4", "Ai.up_sample5")  # one module there
SLICED = ("up3.0.weight", "V_down2.weight")


def weight(draw, key, shape):
  """The rule's exceptions: temperatures near 2, variances near a half."""
  z = draw(key, shape)
  if key.endswith("scale"):
    return 2 + 0.5 * z  # `draw` has divided by the root of its inputs, here 1
  return 0.5 * (1 + z) if key.endswith("running_var") else z


def draw_params(draw):
  shapes = json.loads((GOLDEN_DIR / "emma_state_dict.json").read_text())
  states = {
    PARTS[part]: {
      key: weight(draw, PREFIXES[part] + key, shape)
      for key, shape in keys.items()
      if not key.endswith("num_batches_tracked")
    }
    for part, keys in shapes.items()
  }
  return published.from_torch(states)[0]


def features(modules, captured, arrays):
  """Some channels of each module's result, and the mean and deviation of all."""
  found = {}
  for name, path in ((n, p) for n, p in modules.items() if n in arrays):
    node = captured
    for word in path.split("/"):
      node = node[word]
    (feature,) = node["__call__"]
    feature = nchw(jax.nn.relu(feature) if name in WITH_RELU else feature)
    channels = arrays[f"{name}_channels"]
    found |= {
      name: Computed(feature[:, channels]),
      f"{name}_channels": Computed(channels, 0.0),
      f"{name}_mean": Computed(feature.mean((2, 3))),
      f"{name}_std": Computed(feature.std((2, 3))),
    }
  return found


def step_of(stage, params, batch, networks):
  """The loss, its terms and gradients, and the networks with their statistics after the step."""
  config = recipe.paper(stage)
  if stage == 1:
    config.inputs = ("fused",)
  else:
    with config.unlocked():
      config.sensing = recipe.paper(1).sensing
  (update,) = METHOD.stages[stage](config).updates
  count = len(batch["a"])
  context = Context(jax.random.split(jax.random.key(0), count), True, jnp.float32(0))

  @jax.jit
  def loss_and_gradient(params, batch):
    def mean_loss(moved):
      loss = update.loss({**params, **moved}, batch, context)
      return jnp.mean(loss.value), (jax.tree.map(jnp.mean, loss.terms), loss.stats)

    return jax.value_and_grad(mean_loss, has_aux=True)({n: params[n] for n in networks})

  (total, (terms, stats)), gradients = loss_and_gradient(params, batch)
  optimizers = Optimizers(config, networks)
  after, _ = jax.jit(optimizers.update)(gradients, optimizers.init(params), params)
  return total, terms, gradients, join(after, {"stats": stats})


def norm(state):
  return np.sqrt(sum((np.float64(value) ** 2).sum() for value in state.values()))


def after_step(expected, before, after):
  return Computed(after, STEP, scale=float(np.abs(expected - before).max()))


def build():
  return build_fuser(recipe.paper(2).fuser), build_sensing(recipe.paper(1).sensing)


@jax.jit
def fuse(params, infrared, visible):
  return build()[0].apply(variables(params, "fuser"), infrared, visible)


@jax.jit
def sense(params, fused):
  return [build()[1].apply(variables(params, name), fused) for name in stages.SENSING]


@functools.partial(jax.jit, static_argnums=0)
def capture(network, of_network, *inputs):
  return network.apply(of_network, *inputs, mutable=["intermediates"], capture_intermediates=True)


def of_pair(arrays, params, infrared, visible):
  """The fused pictures, what the sensors would see of them, and features."""
  fuser, sensing = build()
  fused, seen = capture(fuser, variables(params, "fuser"), infrared, visible)
  found = features(FUSER_MODULES, seen["intermediates"], arrays)
  _, seen = capture(sensing, variables(params, "sense_a"), fused)
  found |= features(SENSING_MODULES, seen["intermediates"], arrays)
  sensed = sense(params, fused)
  return fused, found | {
    "fused": Computed(nchw(fused)),
    "sensed_ir": Computed(nchw(sensed[0])),
    "sensed_vis": Computed(nchw(sensed[1])),
  }


def of_fusion(arrays, params, infrared, visible, fused, shifts):
  """Stage 2: one step with the program's shifts."""
  batch = {"a": 2 * infrared - 1, "b": 2 * visible - 1}
  with mock.patch.object(objectives, "draw_shifts", return_value=shifts):
    total, terms, gradients, after = step_of(2, params, batch, ("fuser",))
  found = {"loss_total": Computed(total)}
  for theirs, ours in (("vis", "b"), ("ir", "a"), ("equivariant", "equivariance")):
    for kind in ("intensity", "gradient"):
      found[f"loss_{theirs}_{kind}"] = Computed(terms[f"{ours}_{kind}"])
    found[f"loss_{theirs}"] = Computed(terms[f"{ours}_intensity"] + terms[f"{ours}_gradient"])
  state = published.to_torch(gradients, "fuser")
  found["grad_norm"] = Computed(norm(state), GRADIENT)
  for key, value in state.items():
    value = value[::8, ::4] if key in SLICED else value
    found[f"grad:{key}"] = Computed(value, FUSION_GRADIENT)
  last = "last.0.weight"
  before, after = (published.to_torch(x, "fuser")[last] for x in (params, after))
  found[f"after_step:{last}"] = after_step(arrays[f"after_step:{last}"], before, after)

  def move(fused):
    return objectives.transform(fused, *shifts, (10, 130, 250), True)

  @jax.jit
  def gradients_of_pictures(params, fused, moved):
    def judge(fused, move):
      both = functools.partial(fuse, params), functools.partial(sense, params)
      loss = stages.equivariant(*both, move, fused, infrared, visible, weight=0.1)
      return jnp.mean(loss.value)

    of_moved = jax.grad(lambda moved: judge(fused, lambda _: moved))(moved)
    return jax.grad(judge)(fused, move), of_moved

  moved = move(fused)
  of_fused, of_moved = gradients_of_pictures(params, fused, moved)
  moved, of_moved = (np.reshape(x, (-1, *fused.shape[1:])) for x in (moved, of_moved))
  sensed = sense(params, moved)
  again = fuse(params, *sensed)
  found |= {
    "refused": Computed(nchw(again)[arrays["refused_index"]]),
    "grad_wrt_fused": Computed(nchw(of_fused), FUSION_GRADIENT),
    "grad_wrt_transformed_mean": Computed(of_moved.mean((1, 2, 3)), FUSION_GRADIENT),
    "grad_wrt_transformed_std": Computed(of_moved.std((1, 2, 3)), FUSION_GRADIENT),
  }
  for name, pictures in zip(("ir", "vis"), sensed, strict=True):
    found[f"sensed_{name}_of_transformed"] = Computed(nchw(pictures)[arrays["sensed_index"]])
  return found


def of_sensing(arrays, params, infrared, visible):
  """Stage 1: one step; of the infrared picture's network there are numbers."""
  given = nhwc(arrays["stageA_in"])
  batch = {"a": 2 * infrared - 1, "b": 2 * visible - 1, "fused": 2 * given - 1}
  train = jax.jit(lambda *args: build()[1].apply(*args, True, mutable=["batch_stats"]))
  out, _ = train(variables(params, "sense_a"), given)
  _, terms, gradients, after = step_of(1, params, batch, stages.SENSING)
  found = {"stageA_out": Computed(nchw(out)), "stageA_loss": Computed(terms["mse_a"])}
  state = published.to_torch(gradients, "sense_a")
  found["stageA_grad_norm"] = Computed(norm(state), GRADIENT)
  for key, value in state.items():
    found[f"stageA_grad:{key}"] = Computed(value, SENSING_GRADIENT)
  before, after = (published.to_torch(x, "sense_a") for x in (params, after))
  for name in (name for name in arrays if name.startswith("stageA_after:")):
    key = name.partition(":")[2]
    value = after[key][::8] if key.startswith("down5") else after[key]
    is_statistic = "running" in key
    found[name] = Computed(value) if is_statistic else after_step(arrays[name], before[key], value)
  return found


def of_pictures(arrays, params, fused, shifts):
  """Transformations, gradients, and how a picture is made."""
  rotate_in = nhwc(arrays["rotate_in"])
  rotated = [objectives.rotate(rotate_in, degrees) for degrees in (10, 130, 250)]
  none = np.zeros((1, 0), np.int32)
  flipped = objectives.transform(rotate_in, none, none, (), True)[1:]
  moved = objectives.transform(fused, *shifts, (10, 130, 250), True)
  both = nhwc(arrays["tiled_ir"]), nhwc(arrays["tiled_vis"])
  tiled = fuse_tiled(functools.partial(fuse, params), *both)
  tiled, stretched = ((layers.stretch(2 * x - 1) + 1) / 2 for x in (tiled, fused[:1]))
  return {
    "rotate_out": Computed(nchw(np.concatenate(rotated))),
    "flip_out": Computed(nchw(flipped[:, 0])),
    "sobel_in": Computed(nchw(losses.spatial_gradient(rotate_in))[:, None]),
    "transformed": Computed(nchw(moved).reshape(-1, 1, *fused.shape[1:3])),
    "tiled_fused": Computed(255 * np.asarray(tiled)[0, ..., 0]),
    "stretched": Computed(nchw(stretched)),
  }


def compute(arrays, draw):
  """See `golden_check`. A file without Stage 2's loss is spared its ten pictures of each."""
  params = draw_params(draw)
  infrared, visible = nhwc(arrays["ir"]), nhwc(arrays["vis"])
  fused, found = of_pair(arrays, params, infrared, visible)
  shifts = [
    np.broadcast_to(arrays[f"shift_{axis}"].astype(np.int32), (len(fused), 3))
    for axis in ("rows", "cols")
  ]
  found |= of_pictures(arrays, params, fused, shifts)
  if "loss_total" in arrays:
    found |= of_fusion(arrays, params, infrared, visible, fused, shifts)
  if "stageA_loss" in arrays:
    found |= of_sensing(arrays, params, infrared, visible)
  for name in arrays:
    if name in ("ir", "vis", "tiled_ir", "tiled_vis", "stageA_in", "rotate_in") or name.endswith(
      ("_index", "shift_rows", "shift_cols")
    ):
      found[name] = Computed(arrays[name], 0.0)
  return {name: value for name, value in found.items() if name in arrays}
