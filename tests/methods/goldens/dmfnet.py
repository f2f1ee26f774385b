"""DM-FNet's goldens: five files, each told by what is in it. Arrays are NCHW."""

import jax
import jax.numpy as jnp
import numpy as np
from golden_check import GRADIENT, Computed
from golden_weights import nchw, nhwc, reference_shapes

from dmfnet_jax import losses
from dmfnet_jax.diffusion import gaussian, schedule
from dmfnet_jax.methods.dmfnet import METHOD
from dmfnet_jax.methods.dmfnet import torch as published
from dmfnet_jax.methods.method import Compute
from dmfnet_jax.weights.files import complete

BETAS = 1e-10  # float64; the cosine's small ones are what is left of 1 - 0.99998


def draw_model(draw):
  """Parameters and config of the paper's networks with drawn weights."""
  states = {
    part: {key: draw(key, shape) for key, shape in keys.items()}
    for part, keys in reference_shapes().items()
  }
  params, config = published.from_torch(states)
  return params, complete({"method": "dmfnet", **config})


def denoiser(params, config):
  from dmfnet_jax.methods.dmfnet.networks import build_unet

  unet = build_unet(config["unet"])
  return lambda x, level: unet.apply({"params": params["unet"]}, x, level)


def compute(arrays, draw):
  """See `golden_check`."""
  for mark, computed in (
    ("linear_2000", of_schedules),
    ("posterior_mean_0", of_sampler),
    ("noise_level", of_unet),
    ("fused", of_fusion),
    ("fused_0", of_losses),
  ):
    if mark in arrays:
      return computed(arrays, draw)
  raise SystemExit("none of the files of this method")


def inputs(arrays, *names):
  return {name: Computed(arrays[name], 0.0) for name in names}


def of_schedules(arrays, draw):
  del draw
  found = {}
  for key in arrays:
    name, _, steps = key.rpartition("_")
    betas = schedule.make_betas(name, int(steps))
    # Each beta by itself: the smallest matter as much as the largest.
    found[key] = Computed(betas, BETAS * float(np.min(arrays[key]) / np.max(arrays[key])))
  return found


def of_unet(arrays, draw):
  params, config = draw_model(draw)
  run = jax.jit(denoiser(params, config))
  output, features = run(nhwc(arrays["x"]), arrays["noise_level"][:, 0])
  found = inputs(arrays, "x", "noise_level") | {"output": Computed(nchw(output))}
  for key in (key for key in arrays if "_feature_" in key):
    kind, _, index = key.split("_")
    expected = arrays[key]  # of the first images, and of every n-th channel
    feature = nchw(features[kind][int(index)])[: len(expected)]
    found[key] = Computed(feature[:, :: feature.shape[1] // expected.shape[1]])
  return found


def of_fusion(arrays, draw):
  params, config = draw_model(draw)
  steps = [int(t) for t in arrays["timesteps"]]
  found = inputs(arrays, "mri", "other", "timesteps")
  for t in steps:
    found |= inputs(arrays, f"noise_level_{t}", f"noise_mri_{t}", f"noise_other_{t}")
    level = np.full(len(arrays["mri"]), arrays[f"noise_level_{t}"], np.float32)
    for source in ("mri", "other"):
      noisy = gaussian.q_sample(nhwc(arrays[source]), level, nhwc(arrays[f"noise_{source}_{t}"]))
      found[f"noisy_{source}_{t}"] = Computed(nchw(noisy), 1e-6)
  noisy = [
    np.stack([nhwc(arrays[f"noisy_{source}_{t}"]) for t in steps]) for source in ("mri", "other")
  ]
  levels = np.array([arrays[f"noise_level_{t}"] for t in steps], np.float32)
  fuse_noisy = jax.jit(METHOD.extras["fuse_noisy"](config, Compute("float32", 1)))
  found["fused"] = Computed(nchw(fuse_noisy(params, *noisy, levels)))
  return found


def of_losses(arrays, draw):
  del draw
  found = {}
  for case in sorted(key.removeprefix("fused_") for key in arrays if key.startswith("fused_")):
    found |= inputs(arrays, *(f"{name}_{case}" for name in ("mri", "other", "fused")))
    fused, a, b = (nhwc(arrays[f"{name}_{case}"]) for name in ("fused", "mri", "other"))

    def mean_loss(fused, a=a, b=b):
      loss, terms = losses.fusion_loss(fused, a, b)
      return jnp.mean(loss), jax.tree.map(jnp.mean, terms)

    (_, terms), gradient = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(fused)
    structure = 0.5 * (1 - terms["ssim"])
    found |= {
      f"intensity_{case}": Computed(1.5 * terms["intensity"]),
      f"ssim_{case}": Computed(structure),
      f"gradient_plus_ssim_{case}": Computed(terms["gradient"] + structure),
      f"grad_wrt_fused_{case}": Computed(nchw(gradient), GRADIENT),
    }
  return found


def of_sampler(arrays, draw):
  params, config = draw_model(draw)
  run = denoiser(params, config)
  linear = schedule.make_schedule("linear", 2000)
  x_start, x_t = nhwc(arrays["x0"]), nhwc(arrays["x_t"])
  found = inputs(arrays, "x0", "x_t")

  @jax.jit
  def reverse_step(i):
    return gaussian.p_mean_log_variance(linear, lambda x, level: run(x, level)[0], x_t, i)[0]

  for key in arrays:
    name, _, step = key.rpartition("_")
    if name == "p_mean":
      found[key] = Computed(nchw(reverse_step(int(step))))
    elif name == "posterior_mean":
      mean, log_variance = gaussian.q_posterior(linear, x_start, x_t, int(step))
      found[key] = Computed(nchw(mean))
      found[f"posterior_log_variance_{step}"] = Computed(np.reshape(log_variance, 1), 1e-6)
  return found
