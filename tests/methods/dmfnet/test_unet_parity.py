"""The UNet computes what the published program computes."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import TOLERANCE, nchw, nhwc, relative_error

from dmfnet_jax.interop.torch import to_state_dict
from dmfnet_jax.methods.dmfnet import torch as torch_weights
from dmfnet_jax.methods.dmfnet.unet import UNet

FUSION_BLOCKS = (14, 11, 8, 5, 2)
# What the paper's size leaves untouched: other widths, depths and groups, attended levels, wide
# jumps between levels, non-square images, other batches.
OTHER_SIZES = {
  "shallow": (dict(width=16, multipliers=(1, 4), num_res_blocks=1, norm_groups=8), (3, 6, 10)),
  "attended": (
    dict(width=8, multipliers=(1, 3, 2), num_res_blocks=2, norm_groups=4, attention_levels=(0, 2)),
    (2, 12, 20),
  ),
}


@pytest.fixture(scope="module")
def golden():
  return golden_weights.load("unet")


@pytest.fixture(scope="module")
def computed(golden):
  variables = {"params": golden_weights.reference_params()["unet"]}
  return jax.jit(UNet().apply)(variables, nhwc(golden["x"]), golden["noise_level"][:, 0])


def test_paper_size_has_the_published_parameter_count():
  variables = jax.eval_shape(
    UNet().init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)), jnp.zeros(1)
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 20_670_081


def test_output_meets_golden(golden, computed):
  assert relative_error(nchw(computed[0]), golden["output"]) < TOLERANCE


@pytest.mark.parametrize("index", FUSION_BLOCKS)
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_features_meet_golden(golden, computed, kind, index):
  feature = nchw(computed[1][kind][index])[:1]
  expected = golden[f"{kind}_feature_{index}"]  # of the first image, and of every n-th channel
  every = feature.shape[1] // expected.shape[1]
  assert relative_error(feature[:, ::every], expected) < TOLERANCE


def test_fifteen_features_each_way(computed):
  assert [len(computed[1][kind]) for kind in ("encoder", "decoder")] == [15, 15]


def _both(name):
  """The same drawn weights in a torch and in a flax UNet, and inputs for them (NCHW)."""
  torch = pytest.importorskip("torch")
  import torch_reference

  config, (batch, height, width) = OTHER_SIZES[name]
  reference = torch_reference.UNet(**config).eval()
  drawn = golden_weights.draw_all({k: v.shape for k, v in reference.state_dict().items()})
  reference.load_state_dict({k: torch.from_numpy(v) for k, v in drawn.items()})
  params = torch_weights.unet_params_from_torch(drawn, norm_groups=config["norm_groups"])
  rng = np.random.default_rng(0)
  x = rng.standard_normal((batch, 1, height, width)).astype(np.float32)
  noise_level = rng.uniform(size=batch).astype(np.float32)
  return reference, UNet(**config), params, x, noise_level


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_other_sizes_meet_torch(name):
  reference, unet, params, x, noise_level = _both(name)
  import torch

  with torch.no_grad():
    expected, expected_features = reference(torch.from_numpy(x), torch.from_numpy(noise_level))
  x_start, features = jax.jit(unet.apply)({"params": params}, nhwc(x), noise_level)
  assert relative_error(nchw(x_start), expected) < TOLERANCE
  for kind in ("encoder", "decoder"):
    for ours, theirs in zip(features[kind], expected_features[kind], strict=True):
      assert relative_error(nchw(ours), theirs) < TOLERANCE


def test_fusion_features_meet_torch():
  """Each level's first up-block, or last down-block, though the pass stops early."""
  reference, unet, params, x, noise_level = _both("shallow")
  import torch

  with torch.no_grad():
    _, expected = reference(torch.from_numpy(x), torch.from_numpy(noise_level))

  @jax.jit
  def fusion_features(params, x, noise_level):
    return {
      source: unet.apply({"params": params}, x, noise_level, source, method="fusion_features")
      for source in ("encoder", "decoder")
    }

  # Encoder: stem, block, downsample, block. Decoder, last first: two blocks a level.
  wanted = {"encoder": (3, 1), "decoder": (3, 1)}
  for source, features in fusion_features(params, nhwc(x), noise_level).items():
    for feature, index in zip(features, wanted[source], strict=True):
      assert relative_error(nchw(feature), expected[source][index]) < TOLERANCE


def test_gradients_meet_torch():
  reference, unet, params, x, noise_level = _both("shallow")
  import torch

  target = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
  predicted, _ = reference(torch.from_numpy(x), torch.from_numpy(noise_level))
  (predicted - torch.from_numpy(target)).square().mean().backward()
  expected = {key: value.grad for key, value in reference.named_parameters()}

  def loss(params, x, noise_level, target):
    x_start, _ = unet.apply({"params": params}, x, noise_level)
    return jnp.mean((x_start - target) ** 2)

  gradients = jax.jit(jax.grad(loss))(params, nhwc(x), noise_level, nhwc(target))
  gradients = to_state_dict(gradients, torch_weights.UNET_LAYERS)
  assert gradients.keys() == expected.keys()
  for key, gradient in gradients.items():
    assert relative_error(gradient, expected[key]) < TOLERANCE, key
