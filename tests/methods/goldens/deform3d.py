"""DC2Fusion's goldens: a block, features, maps, the loss and gradients. Volumes are NCDHW."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from golden_check import GRADIENT, Computed
from golden_weights import GOLDEN_DIR

from dmfnet_jax.configs import deform3d as recipe
from dmfnet_jax.methods.deform3d import METHOD, objectives, published, stages
from dmfnet_jax.methods.deform3d.networks import Block, build
from dmfnet_jax.methods.method import variables

INPUTS = ("mri", "pet", "block_x", "block_xa", "loss_fused")
# The program's decoder counts from the coarsest of its four levels.
CHAINS = {f"layers.{n}": ("encoder", n) for n in (0, 1, 3)} | {
  f"up_layers.{n}": ("decoder", 3 - n) for n in (0, 2)
}


def ncdhw(x):
  return np.moveaxis(np.asarray(x), -1, 1)


def ndhwc(x):
  return np.moveaxis(np.asarray(x), 1, -1)


def weight(draw, key, shape):
  """The rule's exception: running variances above 1."""
  z = draw(key, shape)
  return 1 + np.abs(z) if key.endswith("running_var") else z


def draw_params(draw):
  shapes = json.loads((GOLDEN_DIR / "deform3d_state_dict.json").read_text())["model_48"]
  state = {key: weight(draw, key, shape) for key, shape in shapes.items()}
  return published.from_torch({"model": state})


def of_volumes(params, config, a, b):
  """The output, and features by the way."""
  module = build(config["network"])
  capture = {"mutable": ["intermediates"], "capture_intermediates": True}
  of_fuser = variables(params, "fuser")
  maps, seen = jax.jit(lambda *args: module.apply(*args, **capture))(of_fuser, a, b)
  seen = seen["intermediates"]

  def result(name, call=0):
    return jnp.asarray(seen[name]["__call__"][call])

  outputs = {"maps": maps, "shown": stages.is_shown(a, b)}
  fused = METHOD.after_crop(config)(outputs)["fused"]
  found = {
    "output": Computed(ncdhw((fused + 1) / 2)),
    "maps": Computed(ncdhw(maps)),
    "feat_patch_embed": Computed(ncdhw(result("embed"))[0, :4]),
    "feat_reverse_patch_embedding": Computed(ncdhw(result("unembed"))[0, :1, ::2, ::2, ::2]),
  }
  for name, (way, level) in CHAINS.items():
    after = [f"expand_{level}"] if way == "decoder" else [f"merge_{level}"]
    x, y = seen[f"{way}_{level}"][0]
    features = [x, y] + [result(name) for name in after if name in seen]
    for j, feature in enumerate(features):
      found[f"feat_{name}_{j}"] = Computed(feature[0, ..., :4])
  return found


def of_block(params, arrays, heads):
  """`swin.layers.1.blocks.1`, of odd sides."""
  name = "encoder_1_block_1"
  of_one = {kind: tree[name] for kind, tree in variables(params, "fuser").items()}
  module = Block(heads[1])

  @jax.jit
  def run(x, other):
    return module.apply(of_one, x, other, 0.0, None, False, None, mutable=["intermediates"])

  out, seen = run(arrays["block_x"], arrays["block_xa"])
  seen = {key: value[0] for key, value in seen["intermediates"].items()}
  return {
    "block_out": Computed(out[:1]),
    "block_offset_raw": Computed(ncdhw(seen["offset_raw"])[:1]),
    "block_sampled_first_channels": Computed(ncdhw(seen["sampled"])[:1, :4]),
    "block_dw": Computed(ncdhw(seen["mixed"])[:1, :4]),
    "block_channel": Computed(seen["of_channels"][:, 0, 0, 0]),
  }


def of_loss(arrays, a, b):
  """The loss of a given volume, its terms and its gradient."""
  fused = ndhwc(arrays["loss_fused"])

  @jax.jit
  def judge(fused):
    value, terms = objectives.fusion_loss(fused, a, b, **recipe.paper(1).loss)
    return value[0], terms

  (total, terms), gradient = jax.value_and_grad(judge, has_aux=True)(fused)
  weights = recipe.paper(1).loss
  # The terms nearly cancel, and the program's SSIM is rounded by 6e-6: over their sizes' sum.
  size = sum(weights[f"weight_{n[-1]}"] * abs(float(term[0])) for n, term in terms.items())
  found = {
    "loss_total": Computed(total, scale=size),
    "grad_fused": Computed(ncdhw(gradient), GRADIENT),
  }
  for ours, theirs in (("a", "mri"), ("b", "pet")):
    for kind in ("lncc", "ssim", "l1"):
      found[f"loss_{kind}_{theirs}"] = Computed(terms[f"{kind}_{ours}"][0])
  return found


def of_gradients(params, network, a, b):
  """Of the mean of the maps' absolute values."""
  module, of_fuser = build(network), variables(params, "fuser")

  @jax.jit
  @jax.grad
  def gradient(parameters):
    return jnp.mean(jnp.abs(module.apply({**of_fuser, "params": parameters}, a, b)))

  state = published.to_torch({"fuser": gradient(of_fuser["params"])}, len(network["depths"]))
  return {f"gradmaps:{key}": Computed(value, GRADIENT) for key, value in state.items()}


def compute(arrays, draw):
  """See `golden_check`."""
  found = {name: Computed(arrays[name], 0.0) for name in INPUTS if name in arrays}
  a, b = ndhwc(arrays["mri"]), ndhwc(arrays["pet"])
  found |= of_loss(arrays, a, b)
  params, sections = draw_params(draw)
  config = METHOD.defaults(1) | sections
  if "block_x" in arrays:
    found |= of_block(params, arrays, config["network"]["heads"])
  if "maps" in arrays:
    found |= of_volumes(params, config, a, b)
  if any(name.startswith("gradmaps:") for name in arrays):
    found |= of_gradients(params, config["network"], a, b)
  return {name: value for name, value in found.items() if name in arrays}
