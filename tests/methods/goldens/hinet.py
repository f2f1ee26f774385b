"""Hi-Net's goldens: features, losses, gradients, a step and the metrics. Arrays are NCHW."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from golden_check import GRADIENT, VALUE, Computed
from golden_weights import GOLDEN_DIR, nchw, nhwc

from dmfnet_jax.configs import hinet as recipe
from dmfnet_jax.methods.hinet import METHOD, patches, published, stages
from dmfnet_jax.methods.hinet.networks import build
from dmfnet_jax.methods.method import STATS, Context, variables
from dmfnet_jax.metrics import compare_volumes
from dmfnet_jax.training import setup, steps
from dmfnet_jax.training.state import (
  Optimizers,
  create_train_state,
  make_learning_rate,
  optimizer_of,
)

# Which module here is which there, where features of it are stored.
MODULES = {
  "down_1_0": "encode1_a",
  "down_2_1": "encode2_b",
  "down_3_0": "encode3_a",
  "down_fu_1": "fuse1",
  "down_fu_2.layer1": "fuse2/mix",
  "down_fu_2": "fuse2",
  "down_fu_3": "fuse3",
  "down_fu_4": "fuse4",
  "deconv_1_0": "decode1",
  "deconv_2_0": "decode2",
  "deconv_3_0": "decode3",
  "deconv_4_0": "decode4",
  "deconv_5_0": "decode5",
  "deconv_6_1": "a/level0",
}
PARTS = ("generator", "discriminator")
INPUTS = ("x1", "x2", "x3", "lr_factor_epochs", "metric_seed")
# Where only some rows or columns of a weight are stored.
SLICES = {"deconv_4_0.layer2.0.weight": np.s_[:4], "model.11.weight": np.s_[:, :64]}


def draw_params(draw):
  def weight(key, shape):
    z = draw(key, shape)  # 0.1 z where it is a statistic
    return 1 + np.abs(z) if key.endswith("running_var") else z

  shapes = json.loads((GOLDEN_DIR / "hinet_state_dict.json").read_text())
  states = {part: {k: weight(k, s) for k, s in shapes[part].items()} for part in PARTS}
  return published.from_torch(states)[0]


@functools.partial(jax.jit, static_argnames="train")
def run(params, a, b, *, train):
  """All networks on a pair of slices, with what they leave and every module's result."""
  networks = build(32, "float32", train)
  options = {"mutable": ["batch_stats", "intermediates"], "capture_intermediates": True}
  found, of_generator = networks["generator"].apply(variables(params, "generator"), a, b, **options)
  rebuilt, of_decoders = networks["decoders"].apply(
    variables(params, "decoders"), found["a"], found["b"], **options
  )
  features = of_generator["intermediates"] | of_decoders["intermediates"]
  return found["made"], rebuilt, features, of_generator["batch_stats"]


@functools.partial(jax.jit, static_argnames="train")
def judge(params, x, *, train):
  network = build(32, "float32", train)["discriminator"]
  return network.apply(variables(params, "discriminator"), x, mutable=["batch_stats"])[0]


def of_networks(params, a, b, target):
  """Both modes' results, and features."""
  made, rebuilt, _, _ = run(params, a, b, train=False)
  found = {
    "eval_output": nchw(made)[:1],
    "eval_output1": nchw(rebuilt[0])[:1],
    "eval_output2": nchw(rebuilt[1])[:1],
    "eval_disc_x3": nchw(judge(params, target, train=False)),
  }
  made, rebuilt, features, stats = run(params, a, b, train=True)
  found |= {
    "train_output": nchw(made),
    "train_output1": nchw(rebuilt[0])[:1],
    "train_output2": nchw(rebuilt[1])[:1],
    "train_disc_fake": nchw(judge(params, made, train=True)),
    "train_running_mean_down_fu_1.layer1.1": stats["fuse1"]["mix"]["norm1"]["mean"],
    "train_running_var_down_fu_1.layer1.1": stats["fuse1"]["mix"]["norm1"]["var"],
  }
  for name, path in MODULES.items():
    node = features
    for word in path.split("/"):
      node = node[word]
    found[f"train_feat_{name}"] = nchw(node["__call__"][0])[:1]
  return made, found


def losses_of(metrics):
  """The losses by the program's names."""
  true, made = (metrics[f"discriminator_{kind}"] for kind in ("true", "made"))
  return {
    "loss_gan": metrics["adversarial"],
    "loss_l1_target": metrics["target"],
    "loss_l1_1": metrics["rebuilt_a"],
    "loss_l1_2": metrics["rebuilt_b"],
    "loss_G": metrics["loss"],
    "loss_D_real": true,
    "loss_D_fake": made,
    "loss_D": (true + made) / 2,
  }


def of_losses(params, batch, made):
  """The losses of both updates, and the first one's gradient by what was made."""
  updates = METHOD.stages[1](recipe.paper(1)).updates
  context = Context(jax.random.split(jax.random.key(0), len(made)), True, jnp.float32(0))

  @jax.jit
  def losses(params, batch):
    first, second = (update.loss(params, batch, context) for update in updates)
    return jax.tree.map(jnp.mean, {"loss": first.value, **first.terms, **second.terms})

  def of_output(made):
    adversarial = jnp.mean(stages.distance_to(1.0, judge(params, made, train=True)))
    return adversarial + 100 * jnp.mean(stages.mean_absolute(made - batch[stages.TARGET]))

  found = losses_of(losses(params, batch))
  return found | {"grad_output": nchw(jax.grad(of_output)(made))[:1]}


def of_step(params, batch):
  """One step of both updates as the trunk takes it: losses, gradients, and what it leaves."""
  config = recipe.paper(1)
  stage = METHOD.stages[1](config)
  optimizers = Optimizers(config, setup.trained_networks(stage))
  step = steps.make_train_step(stage, optimizers, seed=0, num_train_steps=config.num_train_steps)
  lead = functools.partial(jax.tree.map, lambda x: jnp.asarray(x)[None])
  state = create_train_state(params, optimizers)
  batch = batch | {"index": np.arange(len(batch["a"]), dtype=np.int32)}
  after, metrics = jax.pmap(step, axis_name=steps.AXIS, devices=jax.devices()[:1])(
    lead(state), lead(batch)
  )
  after, metrics = (jax.tree.map(lambda x: np.asarray(x)[0], tree) for tree in (after, metrics))
  # Of the first step Adam's moment is the gradient's share.
  gradients = {
    name: jax.tree.map(lambda x: x / (1 - config.optimizer.b1), optax.tree.get(of_network, "mu"))
    for name, of_network in after.opt_state.items()
  }
  found = losses_of(metrics)
  for kind, tree in (("grad", gradients), ("step1", {**after.params, STATS: after.stats})):
    for part in PARTS:
      for key, value in published.to_torch(tree, part).items():
        found[f"{kind}:{part}:{key}"] = value[SLICES.get(key, np.s_[:])]
  return found


def of_metrics(seed):
  """The published evaluation, of slices that are nearly true."""
  rng = np.random.default_rng(int(seed))
  made, other = (2 * rng.random((32, 128, 128), np.float32) - 1 for _ in range(2))
  size = tuple(s.stop - s.start for s in patches.WINDOW)

  def volume(x):
    joined = np.asarray(patches.join(jnp.asarray(x).reshape(-1, 4, 128, 128, 1), *size))[..., 0]
    return (joined - joined.min()) / (joined.max() - joined.min())

  values = compare_volumes(volume(0.6 * made + 0.4 * other), volume(made))
  names = {"MSE": "NMSE", "SSIM": "SSIM", "PSNR": "PSNR"}
  return {f"metric_{theirs}": values[ours] for theirs, ours in names.items()}


def of_patches():
  """Where the patches of a slice lie, and the first value of each."""
  rng = np.random.default_rng(21)
  rng.bit_generator.advance(19_122)  # what was drawn before
  found = patches.cut(jnp.asarray(rng.random((1, 160, 180, 1)), jnp.float32))[0, :, 0, 0, 0]
  return {
    "patch_corner_values": np.stack([found, found]),  # of both inputs, which were one picture
    "patch_locations": [[rows.start, columns.start] for rows, columns in patches.places(160, 180)],
  }


def compute(arrays, draw):
  """See `golden_check`. A file without steps is spared one, which takes long to compile."""
  params = draw_params(draw)
  a, b, target = (nhwc(arrays[f"x{i}"]) for i in (1, 2, 3))
  made, found = of_networks(params, a, b, target)
  batch = {"a": a, "b": b, stages.TARGET: target}
  found |= of_losses(params, batch, made)
  if any(name.startswith("step1") for name in arrays):
    found |= of_step(params, batch)
  found |= of_metrics(arrays["metric_seed"]) | of_patches()
  config = recipe.paper(1)
  schedule = make_learning_rate(optimizer_of(config, "generator"), config.num_train_steps)
  epochs = arrays["lr_factor_epochs"] * (config.num_train_steps // 400)
  found["lr_factor"] = np.array([schedule(int(step)) for step in epochs]) / 1e-3
  computed = {name: Computed(arrays[name], 0.0) for name in INPUTS}
  for name in arrays.keys() & found.keys():
    value = found[name]
    if name.startswith("train_feat"):
      value = value[:, : arrays[name].shape[1]]  # its first channels
    computed[name] = Computed(value, GRADIENT if name.startswith("grad") else VALUE)
  return computed
