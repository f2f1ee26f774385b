"""CoCoNet's goldens: features, losses and gradients of drawn weights. Arrays are NCHW."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from golden_check import GRADIENT, Computed
from golden_weights import GOLDEN_DIR, nchw, nhwc

from dmfnet_jax.configs import coconet as recipe
from dmfnet_jax.methods.coconet import objectives, published, stages
from dmfnet_jax.methods.coconet.networks import pad

# The page's own bound, of the difference's norm: absolute values and ties of maxima lie before.
KINKS = 1e-2
# Ours by the published layers' names.
FEATURES = {
  "conv1": "conv1_2",
  "conv3": "conv3_2",
  "conv4_1": "conv4_1",
  "cam256_unet": "cam3_own",
  "cam256_second": "cam3_second",
  "cam256_first": "cam3_first",
  "deconv4": "deconv4",
  "cam128_unet": "cam2_own",
  "cam128_second": "cam2_second",
  "conv7": "conv7_2",
  "conv8": "conv8_2",
}


def draw_params(draw):
  """The network's parameters, and the contrastive loss's VGG, whose weights are others."""
  shapes = json.loads((GOLDEN_DIR / "coconet_state_dict.json").read_text())

  def weight(key, shape):
    z = draw(key, shape)
    return 1 + np.abs(z) if key.endswith("running_var") else z

  network = {key: weight(key, shape) for key, shape in shapes["network"].items()}
  # "vgg.sliceN." stands before torchvision's number.
  vgg = {
    f"features.{key.split('.', 2)[2]}": weight(key, shape)
    for key, shape in shapes["contrastive_vgg"].items()
  }
  return published.from_torch({"network": network})[0], published.from_torch({"vgg": vgg})[0]


def some(feature):
  """Of the first picture, four channels from all over."""
  feature = nchw(feature)[:1]
  return feature[:, :: max(1, feature.shape[1] // 4)]


def compute(arrays, draw):
  """See `golden_check`."""
  params, vgg = draw_params(draw)
  config = recipe.paper(1)
  inputs = [key for key in arrays if key in ("vis", "ir", "loss/fused", "loss/mask")]
  inputs += [key for key in arrays if key.startswith(("loss/vis_", "loss/ir_"))]
  found = {key: Computed(arrays[key], 0.0) for key in inputs}

  fuse = functools.partial(stages.fuse_padded, config, dtype="float32", statistics="batch")
  fuse_running = functools.partial(fuse, statistics="running")
  visible, infrared = nhwc(arrays["vis"]), nhwc(arrays["ir"])
  _, inside = pad(visible)
  here = lambda fused: nchw(fused[:, *inside])  # noqa: E731
  padded = pad(visible)[0], pad(infrared)[0]
  features, stats = jax.jit(fuse)(params, *padded)
  found["fused_batch_stats"] = Computed(here(features["fused"]))
  for theirs, ours in FEATURES.items():
    found[f"feature/{theirs}"] = Computed(some(features[ours]))
  found["feature/latent"] = Computed(nchw(features["latent"])[:1])
  of_infrared = stages.vgg_features(
    32, {"vgg": params["vgg"]}, padded[1], dtype="float32", early_pool=True
  )
  for level, name in enumerate(("conv1_2", "conv2_2", "conv3_4"), 1):
    found[f"feature/vgg{level}_second"] = Computed(some(of_infrared[name]))
  for name, leaf in (("mean", "mean"), ("var", "var")):
    found[f"running_{name}_after/bn1_1"] = Computed(stats["block1_1"]["norm"][leaf])
  features, _ = jax.jit(fuse_running)(params, *padded)
  found["fused_running_stats"] = Computed(here(features["fused"]))
  in_bytes = [127.5 * x[:1] + 127.5 for x in padded]
  features, _ = jax.jit(fuse)(params, *in_bytes)
  found["fused_255_batch_stats"] = Computed(here(features["fused"]))

  # The losses, of pictures that no network has made.
  visible, infrared = (
    [nhwc(arrays[f"loss/{name}_{i}"]) for i in (1, 2, 3)] for name in ("vis", "ir")
  )
  sources = visible[0], infrared[0]
  fused, mask = nhwc(arrays["loss/fused"]), nhwc(arrays["loss/mask"])
  by_edges = objectives.weigh(*map(objectives.edges, sources), 0.5)
  entropies = [objectives.entropy(source, cumulative=True) for source in sources]
  by_entropy = objectives.weigh(*entropies, 0.75)
  for name, source, entropy in zip(("vis", "ir"), sources, entropies, strict=True):
    found[f"loss/grad_mean_{name}"] = Computed(objectives.edges(source))
    found[f"loss/entropy_{name}"] = Computed(entropy)
    found[f"loss/ssim_{name}"] = Computed(jnp.mean(objectives.ssim(source, fused)))
  found["loss/weight_ssim"] = Computed(jnp.stack(by_edges))
  found["loss/weight_mse"] = Computed(jnp.stack(by_entropy))

  def main(fused, first, second):
    value, terms = objectives.main_loss(fused, first, second, cumulative=True, mean=jnp.mean)
    return jnp.mean(value), terms

  (total, terms), gradient = jax.jit(jax.value_and_grad(main, has_aux=True))(fused, *sources)
  found |= {
    "loss/ssim_loss": Computed(jnp.mean(terms["ssim"])),
    "loss/mse_loss": Computed(jnp.mean(terms["mse"])),
    "loss/main_total": Computed(total),
    "loss/grad_main": Computed(nchw(gradient), GRADIENT),
  }

  @jax.jit
  def contrast(fused, *args):
    terms = stages.contrasts(config, vgg, fused, *args, mean=jnp.mean)
    return sum(terms), terms

  (contrasts, (of_infrared, of_visible)), gradient = jax.value_and_grad(contrast, has_aux=True)(
    fused, mask, visible, infrared
  )
  found |= {
    "loss/contrast_ir": Computed(of_infrared),
    "loss/contrast_vis": Computed(of_visible),
    "loss/finetune_total": Computed(total + contrasts),
    "loss/grad_contrast": Computed(nchw(gradient), KINKS, by_norm=True),
  }
  of_visible = stages.vgg_features(32, vgg, sources[0] * mask, dtype="float32")
  for level in range(1, 6):
    found[f"loss/vgg_relu{level}_1"] = Computed(some(of_visible[f"conv{level}_1"]))

  # The main loss through the network.
  @jax.jit
  def through(moved, params, first, second):
    params, inside = {**params, "fuser": moved}, pad(first)[1]
    fused = fuse(params, pad(first)[0], pad(second)[0])[0]["fused"][:, *inside]
    return main(fused, first, second)[0], fused

  (total, fused), gradient = jax.value_and_grad(through, has_aux=True)(
    params["fuser"], params, *sources
  )
  found |= {"train/fused": Computed(nchw(fused)), "train/main_total": Computed(total)}
  for key, value in published.to_torch({"fuser": gradient}).items():
    kinked = key == "conv1_1.weight"
    found[f"train/grad/{key}"] = Computed(value, KINKS if kinked else GRADIENT, by_norm=kinked)
  return found
