"""TFS-Diff's goldens: network, loss, gradients, schedule, a short chain, resizing; NCHW."""

import functools
import json
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from golden_check import GRADIENT, Computed
from golden_weights import GOLDEN_DIR, nchw

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.diffusion.schedule import make_schedule
from dmfnet_jax.interop.torch import to_torch_layout, torch_name
from dmfnet_jax.io.pictures import from_float, to_float
from dmfnet_jax.methods import tfsdiff
from dmfnet_jax.methods.tfsdiff import networks, objectives, published, resampling, sampling

# Where the network's features are, and how many channels of each are there.
FEATURES = {
  "feat_stem": ("init_conv", 2),
  "feat_down1": ("downs_0", 2),
  "feat_down13_attn": ("downs_12", 32),
  "feat_mid0": ("mid_0", 32),
  "feat_mid1": ("mid_1", 32),
  "feat_up0": ("ups_0", 32),
  "feat_up3_upsample": ("ups_3", 16),
  "feat_up_last": ("ups_18", 2),
}


def first(x, channels):
  """Some channels of the first picture."""
  return nchw(np.asarray(x)[:1, ..., :channels])


def of_network(arrays, params, network):
  """One call in training's way, without dropout, and what it is trained on."""
  condition, target, noise = (
    to_float(arrays["cond_u8"]),
    to_float(arrays["hr_u8"]),
    np.moveaxis(arrays["noise"], 1, -1),
  )
  level = arrays["noise_level"][:, 0]
  x_noisy = gaussian.q_sample(target, level, noise)

  @jax.jit
  def call(params):
    run = functools.partial(network.apply, mutable=["intermediates"], capture_intermediates=True)
    return run({"params": params}, condition, x_noisy, level)

  output, seen = call(params)
  seen = seen["intermediates"]
  found = {
    "output": Computed(nchw(output)),
    "embedding": Computed(seen["unet"]["noise_level_mlp"]["__call__"][0]),
    "se_gate": Computed(jax.nn.sigmoid(seen["gate"]["dense2"]["__call__"][0])),
  }
  for name, (layer, channels) in FEATURES.items():
    value = seen["unet"][layer]["__call__"][0]
    found[name] = Computed(first(value, channels))

  def total(output):
    value, terms = objectives.noise_loss(target, noise, output, batch_size=len(target))
    return jnp.mean(value), terms

  value, terms = total(output)
  found |= {
    "loss_l1_sum": Computed(terms["l1"].sum() * target[0].size),
    "loss_ssim": Computed(terms["dissimilarity"].mean()),
    "loss_total": Computed(value),
  }
  of_output = jax.grad(lambda x: total(x)[0])(output)
  of_similarity = jax.grad(lambda x: jnp.mean(objectives.dissimilarity(target, x)))(output)
  found["grad_output"] = Computed(first(of_output, 3), GRADIENT)
  found["ssim_grad_output"] = Computed(first(of_similarity, 1), GRADIENT)
  if any(name.startswith("grad:") for name in arrays):
    of_weights = jax.jit(
      jax.grad(lambda p: total(network.apply({"params": p}, condition, x_noisy, level))[0])
    )(params)
    for path, gradient in traverse_util.flatten_dict(of_weights, sep="/").items():
      name = f"grad:denoise_fn.{torch_name(path, published.LAYERS)}"
      if name in arrays:
        found[name] = Computed(to_torch_layout(np.asarray(gradient)), GRADIENT)
  return found


def of_schedule(arrays):
  """The float32 tables of the 4000 published steps, at some of them."""
  schedule = make_schedule(**tfsdiff.defaults(1)["schedule"])
  steps = arrays["sched_index"]
  clean = gaussian.clean_from_noise(np.cumprod(1 - np.linspace(1e-6, 1e-2, 4000)))
  at = jnp.asarray(steps), jnp.ones((len(steps), 1, 1, 1)), jnp.zeros((len(steps), 1, 1, 1))
  k, one, zero = at
  tables = {
    "sqrt_alphas_cumprod_prev": schedule.noise_levels[np.append(steps, 4000)],
    "posterior_mean_coef1": schedule.posterior_mean_x_start[steps],
    "posterior_mean_coef2": schedule.posterior_mean_x_t[steps],
    "posterior_log_variance_clipped": schedule.posterior_log_variance[steps],
    "sqrt_recip_alphas_cumprod": clean(one, zero, k).ravel(),
    "sqrt_recipm1_alphas_cumprod": -clean(zero, one, k).ravel(),
  }
  return {f"sched_{name}_T4000": Computed(value) for name, value in tables.items()}


def of_chain(arrays, params, config):
  """The whole of a chain with few steps, and what it is after each: with the program's noise."""
  noises = [np.moveaxis(noise, 1, -1) for noise in arrays["chain_noise"]]
  steps, start, end = arrays["chain_T_start_end"]
  schedule = {"name": "linear", "num_timesteps": int(steps), "start": start, "end": end}
  config = config | {"schedule": schedule, "sampling": {"steps": int(steps), "eta": 1.0}}
  condition = to_float(arrays["chain_cond_u8"])
  images = []

  def loop(first, last, body, carried):
    """As `fori_loop`, but one after the other, so that each draws another noise."""
    for k in range(first, last):
      carried = body(jnp.int32(k), carried)
      images.append(np.moveaxis(np.asarray(carried[0]), -1, 1))
    return carried

  network = types.SimpleNamespace(apply=jax.jit(networks.build(config["unet"]).apply))
  with (
    mock.patch.object(sampling, "build", return_value=network),
    # The program draws none in the last step, and here nothing comes of it.
    mock.patch.object(gaussian, "normal_per_example", side_effect=[*noises, noises[0]]),
    mock.patch.object(jax.lax, "fori_loop", loop),
  ):
    sample = sampling.make_sampler(config)
    sampled = sample(params, condition, jax.random.split(jax.random.key(0), 1))
  np.testing.assert_array_equal(np.moveaxis(np.asarray(sampled), -1, 1), images[-1].clip(-1, 1))
  return {"chain_images": Computed(np.stack(images))}


def of_resizing(arrays):
  """A picture made coarse, and enlarged again."""
  coarse = resampling.coarsen(to_float(arrays["prep_hr_u8"])[None], 2)
  enlarged = resampling.enlarge(coarse, 2)
  return {
    "prep_lr_u8": Computed(from_float(coarse)[0], 0.0),
    "prep_sr_u8": Computed(from_float(enlarged)[0], 0.0),
  }


GIVEN = (
  *("cond_u8", "hr_u8", "noise", "noise_level", "sched_index", "chain_T_start_end"),
  *("chain_cond_u8", "chain_noise", "prep_hr_u8"),
)


def compute(arrays, draw):
  """See `golden_check`."""
  shapes = json.loads((GOLDEN_DIR / "tfsdiff_state_dict.json").read_text())["unet_128_256"]
  state = {key: draw(key, shape) for key, shape in shapes.items()}
  params, config = published.from_torch({"unet": state})
  expected = tfsdiff.defaults(1)["unet"]
  if any(expected[name] != value for name, value in config["unet"].items()):
    raise SystemExit(f"another network was found: {config['unet']}")
  network = networks.build(config["unet"])
  found = {name: Computed(arrays[name], 0.0) for name in GIVEN if name in arrays}
  found |= {
    **of_network(arrays, params["unet"], network),
    **of_schedule(arrays),
    **of_chain(arrays, params["unet"], config),
    **of_resizing(arrays),
  }
  return {name: value for name, value in found.items() if name in arrays}
