"""From noised sources to the fused picture: what the published program computes."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import TOLERANCE, nchw, nhwc, relative_error

from dmfnet_jax import losses
from dmfnet_jax.inference.model import Model
from dmfnet_jax.interop.torch import to_state_dict
from dmfnet_jax.methods.dmfnet import torch as torch_weights
from dmfnet_jax.methods.dmfnet.fusion_head import FusionHead
from dmfnet_jax.weights.files import complete

FEATURES = {
  "timesteps": (5, 10, 20),
  "source": "decoder",
  "schedule": {"name": "linear", "num_timesteps": 2000, "start": 1e-6, "end": 1e-2},
}


@pytest.fixture(scope="module")
def paper_model():
  """The paper's sizes, which are the modules' defaults, with the goldens' weights."""
  unet = {"width": 128, "multipliers": (1, 1, 1, 1, 2)}
  config = {"method": "dmfnet", "unet": unet, "fusion_head": {}, "features": FEATURES}
  return Model(golden_weights.reference_params(), complete(config))


def test_paper_size_has_the_published_parameter_count():
  features = [
    jnp.zeros((3, 1, 4 * 2**level, 4 * 2**level, width))
    for level, width in enumerate((256, 128, 128, 128, 128))
  ]
  variables = jax.eval_shape(FusionHead().init, jax.random.key(0), features, features)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 3_026_640


@pytest.fixture(scope="module")
def golden():
  """noisy_a, noisy_b [3, 1, 1, H, W], the noise levels [3] and the fused image, NCHW."""
  arrays = golden_weights.load("fusion")

  def stack(name):
    return np.stack([arrays[f"{name}_{t}"] for t in arrays["timesteps"]])

  return stack("noisy_mri"), stack("noisy_other"), stack("noise_level"), arrays["fused"]


def test_fused_image_meets_golden(paper_model, golden):
  noisy_a, noisy_b, levels, expected = golden
  fused = paper_model.fuse_noisy(nhwc(noisy_a), nhwc(noisy_b), levels)
  assert fused.dtype == jnp.float32
  assert relative_error(nchw(fused), expected) < TOLERANCE


def test_torch_reference_meets_golden(golden):
  """The oracle of the tests below and of the benchmarks computes what was published."""
  torch = pytest.importorskip("torch")
  import torch_reference

  unet, head = torch_reference.UNet(), torch_reference.FusionHead()
  unet_state, head_state = golden_weights.reference_state_dicts()
  prefix = "denoise_fn."
  inside = {k.removeprefix(prefix): v for k, v in unet_state.items() if k.startswith(prefix)}
  unet.load_state_dict({k: torch.from_numpy(v) for k, v in inside.items()})
  head.load_state_dict({k: torch.from_numpy(v) for k, v in head_state.items()})
  noisy_a, noisy_b, levels, expected = golden
  fused = torch_reference.fuse_as_published(
    unet, head, *(torch.from_numpy(x) for x in (noisy_a, noisy_b, levels))
  )
  assert relative_error(fused, expected) < TOLERANCE


def _drawn_head(widths, num_timesteps):
  """The same drawn weights in a torch and in a flax head."""
  torch = pytest.importorskip("torch")
  import torch_reference

  reference = torch_reference.FusionHead(widths, num_timesteps)
  drawn = golden_weights.draw_all({k: v.shape for k, v in reference.state_dict().items()})
  reference.load_state_dict({k: torch.from_numpy(v) for k, v in drawn.items()})
  return reference, torch_weights.fusion_head_params_from_torch(drawn)


# Other widths, depths, timesteps and batches; non-square. (Below 4 pixels at the coarsest level
# there is no reference: its 7x7 convolution cannot reflect further.)
HEADS = {
  "two timesteps": ((32, 16, 8), 2, (3, 4, 6)),
  "one timestep": ((16, 8, 8), 1, (2, 5, 4)),
  "four timesteps": ((24, 16), 4, (1, 7, 9)),
}


def _features(widths, num_timesteps, size):
  """Random features of two sources, NCHW, coarse to fine."""
  batch, height, width = size
  rng = np.random.default_rng(0)
  return [
    [
      rng.standard_normal((num_timesteps, batch, c, height << i, width << i)).astype(np.float32)
      for i, c in enumerate(widths)
    ]
    for _ in range(2)
  ]


@pytest.mark.parametrize("name", HEADS)
def test_head_meets_torch(name):
  widths, num_timesteps, size = HEADS[name]
  reference, params = _drawn_head(widths, num_timesteps)
  import torch

  sources = _features(widths, num_timesteps, size)
  with torch.no_grad():
    expected = reference(*([torch.from_numpy(f) for f in features] for features in sources))
  fused = jax.jit(FusionHead(widths, num_timesteps).apply)(
    {"params": params}, *([nhwc(f) for f in features] for features in sources)
  )
  assert relative_error(nchw(fused), expected) < TOLERANCE


def test_head_gradients_meet_torch():
  """Through the loss, as Stage II trains; the levels are those that have every kind of layer."""
  widths, num_timesteps, size = HEADS["two timesteps"]
  reference, params = _drawn_head(widths, num_timesteps)
  import torch
  import torch_reference

  sources = _features(widths, num_timesteps, size)
  shape = (size[0], 1, *sources[0][-1].shape[-2:])
  a, b = np.random.default_rng(1).uniform(-1, 1, (2, *shape)).astype(np.float32)
  fused = reference(*([torch.from_numpy(f) for f in features] for features in sources))
  terms = torch_reference.fusion_loss_terms(fused, torch.from_numpy(a), torch.from_numpy(b))
  terms["loss"].backward()

  # Arguments, all of them: XLA would spend long on folding constants.
  def loss(params, sources, a, b):
    fused = FusionHead(widths, num_timesteps).apply({"params": params}, *sources)
    return jnp.mean(losses.fusion_loss(fused, a, b)[0])

  gradients = jax.jit(jax.grad(loss))(
    params, [[nhwc(f) for f in features] for features in sources], nhwc(a), nhwc(b)
  )
  gradients = to_state_dict(gradients, torch_weights.FUSION_HEAD_LAYERS)
  expected = {key: value.grad for key, value in reference.named_parameters()}
  assert gradients.keys() == expected.keys()
  for key, gradient in gradients.items():
    assert relative_error(gradient, expected[key]) < 10 * TOLERANCE, key


def test_whole_model_meets_the_published_loop():
  """A graph that batches passes and stops early = six eager passes through the whole UNet."""
  torch = pytest.importorskip("torch")
  import torch_reference

  unet_config = dict(width=16, multipliers=(1, 2), num_res_blocks=1, norm_groups=8)
  unet = torch_reference.UNet(**unet_config)
  drawn = golden_weights.draw_all({k: v.shape for k, v in unet.state_dict().items()})
  unet.load_state_dict({k: torch.from_numpy(v) for k, v in drawn.items()})
  head, head_params = _drawn_head((32, 16), 3)

  rng = np.random.default_rng(0)
  noisy_a, noisy_b = rng.uniform(-1, 1, (2, 3, 2, 1, 8, 12)).astype(np.float32)
  levels = np.array([0.99, 0.9, 0.5], np.float32)
  expected = torch_reference.fuse_as_published(
    unet, head, *(torch.from_numpy(x) for x in (noisy_a, noisy_b, levels)), blocks=(3, 1)
  )
  model = Model(
    {
      "unet": torch_weights.unet_params_from_torch(drawn, norm_groups=8),
      "fusion_head": head_params,
    },
    complete({"method": "dmfnet", "unet": unet_config, "fusion_head": {}, "features": FEATURES}),
    parts_per_step=2,
  )
  fused = model.fuse_noisy(nhwc(noisy_a), nhwc(noisy_b), levels)
  assert relative_error(nchw(fused), expected) < TOLERANCE
