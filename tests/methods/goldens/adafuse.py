"""AdaFuse's goldens: one level, the whole network, the substitute loss. Arrays are NCHW."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from golden_check import GRADIENT, Computed
from golden_weights import GOLDEN_DIR, nchw, nhwc

from dmfnet_jax.configs import adafuse as recipe
from dmfnet_jax.interop import torch as torch_names
from dmfnet_jax.methods.adafuse import objectives, published, stages
from dmfnet_jax.methods.adafuse.networks import Encoder, SpatialFrequencyFusion, build
from dmfnet_jax.methods.method import Context, variables
from dmfnet_jax.nn import layers

INPUTS = ("ssf_small/x", "ssf_small/y", "loss/a", "loss/b", "loss/fused", "img1", "img2")


def shapes(variant):
  """Names and shapes of "ssf_small", "separate_encoders" or "shared_encoder", its first one."""
  stored = json.loads((GOLDEN_DIR / "adafuse_state_dict.json").read_text())
  if variant != "shared_encoder":
    return stored[variant]
  return {
    key.replace("encoder1.", "encoder."): shape
    for key, shape in stored["separate_encoders"].items()
    if not key.startswith("encoder2.")
  }


def weight(draw, key, shape):
  """The rule's exceptions: constants, and running variances above 1."""
  if key.endswith(".filt"):
    taps = np.array([1, 3, 3, 1], np.float32) / 8
    return np.broadcast_to(np.outer(taps, taps), shape)
  if key.endswith("running_var"):
    return 1 + np.abs(draw(key, shape))
  return draw(key, shape)


def compute(arrays, draw):
  """See `golden_check`."""
  found = {name: Computed(arrays[name], 0.0) for name in INPUTS if name in arrays}
  if "ssf_small/x" in arrays:
    found |= of_one_level(arrays, draw)
  if "loss/a" in arrays:
    found |= of_loss(arrays)
  if "img2" in arrays:
    found |= of_network(arrays, draw)
  elif "img1" in arrays:
    found |= of_encoder(arrays, draw)
  return found


def of_one_level(arrays, draw):
  """A patch of 4, tokens of 32 in 4 heads, 2 blocks."""
  state = {key: draw(key, shape) for key, shape in published.used(shapes("ssf_small")).items()}
  module = SpatialFrequencyFusion(dim=32, heads=4, patch=4, depth=2)
  x, y = nhwc(arrays["ssf_small/x"]), nhwc(arrays["ssf_small/y"])
  made = jax.eval_shape(lambda: module.lazy_init(jax.random.key(0), x, y))["params"]
  flat = {path: p.shape for path, p in traverse_util.flatten_dict(made, sep="/").items()}
  params = torch_names.from_state_dict(
    state, flat, published.spatial_frequency("", ""), "ssf_small"
  )
  features, inside = jax.jit(lambda *args: module.apply(*args, mutable="intermediates"))(
    {"params": params}, x, y
  )
  spatial = inside["intermediates"]["spatial"]
  # The program shifts the batch, too, and back: what it keeps of picture 0 is picture 2's.
  return {
    "ssf_small/x_spectrum": Computed(nchw(features["x_spectrum"])[2:]),
    "ssf_small/frequency": Computed(nchw(features["frequency"])[2:]),
    "ssf_small/frequency_back": Computed(nchw(features["frequency_back"])[:1]),
    "ssf_small/spatial": Computed(nchw(features["spatial"])[:1]),
    "ssf_small/output": Computed(nchw(features["fused"])),
    "ssf_small/spatial_embedding1": Computed(spatial["embedding1"][0][:1]),
    "ssf_small/spatial_tokens1": Computed(spatial["tokens1"][0][:1]),
    "ssf_small/spatial_q1": Computed(spatial["query1"][0][:1].transpose(0, 2, 1, 3)),
  }


def of_loss(arrays):
  a, b, fused = (nhwc(arrays[f"loss/{name}"]) for name in ("a", "b", "fused"))
  weights = recipe.get_config("size=paper").loss
  context = Context(jax.random.split(jax.random.key(0), len(a)), True, jnp.float32(0))

  @jax.jit
  @jax.grad
  def gradient(fused):
    return jnp.mean(stages.fusion_loss(fused, a, b, weights, context)[0])

  total, terms = stages.fusion_loss(fused, a, b, weights, context)
  of_batch = lambda squares: jnp.sum(squares)  # noqa: E731
  tensor = objectives.structure_tensor(np.concatenate([a, b], axis=-1))
  return {
    "loss/content": Computed(jnp.mean(terms["content"])),
    "loss/structure": Computed(objectives.structure(fused, a, b, of_batch)),
    "loss/structure_tensor_sources": Computed(nchw(tensor)[:1]),
    "loss/log_structure": Computed(jnp.mean(terms["structure"])),
    "loss/ssim_a": Computed(jnp.mean(terms["ssim_a"])),
    "loss/ssim_b": Computed(jnp.mean(terms["ssim_b"])),
    "loss/total": Computed(jnp.mean(total)[None]),
    "loss/grad": Computed(nchw(gradient(fused)), GRADIENT),
  }


def some(feature):
  """Every 16th channel, every 4th row and column."""
  return Computed(nchw(feature)[:, ::16, ::4, ::4])


def of_encoder(arrays, draw):
  """The first source's, by itself: the whole network's weights take 2 GB."""
  network = recipe.get_config("size=paper").network
  encoder = Encoder(network.stem, network.widths)
  image = nhwc(arrays["img1"])
  made = jax.eval_shape(lambda: encoder.lazy_init(jax.random.key(0), image, False, None))
  keys = {
    key.removeprefix("encoder1."): weight(draw, key, shape)
    for key, shape in shapes("separate_encoders").items()
    if key.startswith("encoder1.") and not key.endswith("filt")
  }
  layers = published.encoder("", "")
  loaded = torch_names.variables_from_state_dict(keys, made, layers, "encoder1")
  levels = jax.jit(lambda loaded: encoder.apply(loaded, image, False, None))(loaded)
  return {f"encoder1/{k}": some(level) for k, level in enumerate(levels, 1)}


def of_network(arrays, draw):
  variant = str(arrays["variant"])
  state = {key: weight(draw, key, shape) for key, shape in published.used(shapes(variant)).items()}
  params, config = published.from_torch({"model": state})
  network = build(config["network"], "float32")
  run = jax.jit(lambda params, *pictures: network.apply(variables(params, "fuser"), *pictures))
  outputs = run(params, nhwc(arrays["img1"]), nhwc(arrays["img2"]))
  kind = "shared_encoder" if config["network"]["shared_encoder"] else "separate_encoders"
  found = {
    "variant": Computed(kind, 0.0),
    "up4": some(outputs["up"][0]),
    "fused": Computed(nchw(outputs["fused"])),
  }
  for k in range(1, 5):
    found[f"encoder1/{k}"] = some(outputs["encoder1"][k - 1])
    found[f"fusion/{k}"] = some(outputs["fusion"][k - 1])
  scaled = (layers.stretch(2 * outputs["fused"] - 1) + 1) / 2 * 255
  found["fused_255_corner"] = Computed(nchw(scaled)[..., 40:72, 40:72])
  return found
