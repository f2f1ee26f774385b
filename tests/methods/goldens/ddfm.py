"""DDFM's goldens: EM steps, the schedule, sampling with a stub prior, and a small UNet; NCHW."""

import functools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from golden_check import Computed
from golden_weights import GOLDEN_DIR, nchw, nhwc

from dmfnet_jax.diffusion import gaussian
from dmfnet_jax.methods import ddfm
from dmfnet_jax.methods.ddfm import em, priors, published
from dmfnet_jax.methods.ddfm.guided import GuidedUNet
from dmfnet_jax.nn import layers

OPTIONS = ddfm.defaults(1)["em"]
TINY = {
  "kind": "guided",
  "width": 32,
  "multipliers": (1, 2, 2),
  "num_res_blocks": 1,
  "attention_downsampling": (2, 4),
  "head_width": 32,
}
CONFIG = {"prior": TINY, "schedule": published.SCHEDULE, "sampling": {"steps": 100, "eta": 0.0}}


def of_em(arrays, first, second):
  """Calls on one luma that stays, and a chain that is fed its own results."""
  f = nhwc(arrays["em/f"])
  found = {"em/f": Computed(arrays["em/f"], 0.0)}
  for name, k in zip(("em/otf_k1", "em/otf_k2"), em.otf(*f.shape[1:3]), strict=True):
    found[name] = Computed(np.stack([k.real, k.imag]))
  call = jax.jit(lambda f, state: em.step(f, first, second, state, OPTIONS))
  state = em.begin(f)
  for i in range(1, 6):
    fused, state, inner = call(f, state)
    quantities = inner | {"F1": state.f1, "F2": state.f2, "fused": fused}
    for name, value in quantities.items():
      found[f"em/{i}/{name}"] = Computed(nchw(value))
    for name in ("tau_a", "tau_b"):
      found[f"em/{i}/{name}"] = Computed(getattr(state, name).reshape(()))
  options = OPTIONS | {"lambda": 0.3, "rho": 0.2}
  call = jax.jit(lambda f, state: em.step(f, first, second, state, options))
  fused, state = f, em.begin(f)
  for i in range(1, 4):
    fused, state, _ = call(fused, state)
    chain = f"em/chained_lamb0.3_rho0.2/{i}"
    found |= {
      f"{chain}/fused": Computed(nchw(fused)),
      f"{chain}/tau_a": Computed(state.tau_a.reshape(())),
      f"{chain}/tau_b": Computed(state.tau_b.reshape(())),
    }
  return found


def stub(x, k=None):
  """The stub prior: each channel smoothed by 1 2 1 both ways, with circular borders."""
  del k
  for axis in (1, 2):
    x = (jnp.roll(x, 1, axis) + 2 * x + jnp.roll(x, -1, axis)) / 4
  return x


class Sampling:
  """The reverse process step by step; steps are numbered as the program numbers them, 99 to 0."""

  def __init__(self, first, second, eta=0.0):
    self.alpha_bar = priors.build(CONFIG).alpha_bar
    self.rectify = lambda x, state: ddfm.rectify_luma(x, first, second, state, OPTIONS)
    self.run = jax.jit(self._run)
    self.eta = eta

  def _run(self, x, state, signal, spread):
    keys = jax.random.split(jax.random.key(0), 1)
    return gaussian.ddim_steps(
      stub, x, signal, spread, eta=self.eta, keys=keys, rectify=self.rectify, state=state
    )

  def step(self, k, x, state):
    return self.steps(k, k, x, state)

  def steps(self, k, last, x, state):
    window = self.alpha_bar[99 - k : 101 - last]
    return self.run(x, state, np.sqrt(window), np.sqrt(1 - window))


def of_sample(arrays, first, second):
  """All hundred steps of a coloured prior."""
  found = {"sample/x_T": Computed(arrays["sample/x_T"], 0.0)}
  sampling = Sampling(first, second)
  x, state = nhwc(arrays["sample/x_T"]), em.begin(first)
  for k in range(99, -1, -1):
    prior = jnp.clip(stub(x), -1, 1)
    if k >= 98:
      rectified, _ = sampling.rectify(prior, state)
      found |= {
        f"sample/{k}/x0_prior": Computed(nchw(prior)),
        f"sample/{k}/luma": Computed(nchw(luma(prior))),
        f"sample/{k}/luma_rectified": Computed(nchw(luma(rectified))),
        f"sample/{k}/x0_rectified": Computed(nchw(rectified)),
      }
    x, state = sampling.step(k, x, state)
    found |= {
      f"sample/{k}/x_next": Computed(nchw(x)),
      f"sample/{k}/tau": Computed(np.array([state.tau_a.item(), state.tau_b.item()])),
    }
  whole, _ = sampling.steps(99, 0, nhwc(arrays["sample/x_T"]), em.begin(first))
  output = (layers.stretch(priors.luma(whole)) + 1) / 2
  found["sample/output"] = Computed(255 * np.asarray(output)[0, ..., 0])
  return found


def luma(x):
  return priors.to_range(priors.luma(x), "video")


def of_grey(arrays, first, second):
  """Three steps of a grey prior, as of one whose three channels are equal."""
  found = {"grey/x_T": Computed(arrays["grey/x_T"], 0.0)}
  sampling = Sampling(first, second)
  x, state = nhwc(arrays["grey/x_T"]), em.begin(first)
  for k in (99, 98, 97):
    rectified, _ = sampling.rectify(jnp.clip(stub(x), -1, 1), state)
    x, state = sampling.step(k, x, state)
    found[f"grey/{k}/x0_rectified"] = Computed(nchw(rectified))
    found[f"grey/{k}/x_next"] = Computed(nchw(x))
  return found


def of_ancestral(arrays, first, second):
  """Two steps with given noise, from a step in between."""
  found = {"eta1/x_60": Computed(arrays["eta1/x_60"], 0.0)}
  x, state = nhwc(arrays["eta1/x_60"]), em.begin(first)
  for k in (k for k in (60, 59) if f"eta1/{k}/noise" in arrays):
    noise = nhwc(arrays[f"eta1/{k}/noise"])
    found[f"eta1/{k}/noise"] = Computed(arrays[f"eta1/{k}/noise"], 0.0)
    with mock.patch.object(gaussian, "normal_per_example", return_value=noise):
      x, state = Sampling(first, second, eta=1.0).step(k, x, state)
    found[f"eta1/{k}/x_next"] = Computed(nchw(x))
  return found


def of_unet(arrays, draw):
  """A small UNet of the published family."""
  shapes = json.loads((GOLDEN_DIR / "ddfm_state_dict.json").read_text())["prior_tiny"]
  state = {key: draw(key, shape) for key, shape in shapes.items()}
  params, config = published.from_torch({"prior": state}, head_width=TINY["head_width"])
  if config["prior"] != TINY:
    raise SystemExit(f"another network was found: {config['prior']}")
  unet = GuidedUNet(**{k: v for k, v in TINY.items() if k != "kind"})
  run = functools.partial(unet.apply, mutable=["intermediates"], capture_intermediates=True)
  x, t = nhwc(arrays["unet_tiny/x"]), arrays["unet_tiny/t"]
  output, seen = jax.jit(run)({"params": params["prior"]}, x, t)
  features = {
    "input_blocks.1": "input_1_0",
    "input_blocks.2": "input_2_0",
    "input_blocks.3": "input_3_1",
    "middle_block": "middle_2",
  }
  found = {f"unet_tiny/{name}": Computed(arrays[f"unet_tiny/{name}"], 0.0) for name in "xt"}
  for theirs, ours in features.items():
    (feature,) = seen["intermediates"][ours]["__call__"]
    found[f"unet_tiny/{theirs}"] = Computed(nchw(feature)[:, ::8])
  (embedding,) = seen["intermediates"]["time_embed_2"]["__call__"]
  return found | {
    "unet_tiny/output": Computed(nchw(output)),
    "unet_tiny/embedding": Computed(embedding),
  }


def compute(arrays, draw):
  """See `golden_check`."""
  sources = nhwc(arrays["I"]), nhwc(arrays["V"])
  prior = priors.build(CONFIG)
  found = {name: Computed(arrays[name], 0.0) for name in "IV"}
  found |= {
    "schedule/timesteps": Computed(prior.conditions[::-1]),
    "schedule/alpha_bar": Computed(prior.alpha_bar[:-1][::-1]),
    **of_em(arrays, *sources),
    **of_sample(arrays, *sources),
    **of_grey(arrays, *sources),
    **of_ancestral(arrays, *sources),
    **of_unet(arrays, draw),
  }
  return {name: value for name, value in found.items() if name in arrays}
