"""Layers of volumes against SciPy and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dmfnet_jax.nn import volumes

torch = pytest.importorskip("torch")


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_torch(x):
  """Volumes to NCDHW."""
  return torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)


def of_torch(x):
  return np.moveaxis(x.detach().numpy(), 1, -1)


def close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("size", [(5, 6, 9), (1, 2, 3)])
@pytest.mark.parametrize(("side", "group"), [(3, 1), (7, 2)])
def test_a_grouped_convolution_and_its_gradients_are_torchs(size, side, group):
  """Also of volumes that are smaller than the kernel."""
  x, kernel = draw(2, *size, 4 * group), draw(side, side, side, group, 4, seed=1)
  given, weight = to_torch(x), torch.tensor(kernel.transpose(4, 3, 0, 1, 2).copy())
  weight.requires_grad_()
  expected = torch.nn.functional.conv3d(given, weight, padding=side // 2, groups=4)
  cotangent = draw(*expected.shape, seed=2)
  (expected * torch.tensor(cotangent)).sum().backward()

  y, gradients = jax.jit(
    lambda x, k, g: (volumes.grouped_conv(x, k), jax.vjp(volumes.grouped_conv, x, k)[1](g))
  )(x, kernel, np.moveaxis(cotangent, 1, -1))
  close(y, of_torch(expected))
  close(gradients[0], of_torch(given.grad))
  close(gradients[1], weight.grad.numpy().transpose(2, 3, 4, 1, 0))


def test_shapes_that_do_not_belong_together_are_refused():
  with pytest.raises(ValueError, match="do not fit"):
    volumes.grouped_conv(jnp.zeros((1, 4, 4, 4, 3)), jnp.zeros((3, 3, 3, 1, 4)))


def test_a_convolution_to_few_channels_and_its_gradients_are_torchs():
  x, kernel = draw(2, 4, 5, 6, 7), draw(3, 3, 3, 7, 2, seed=1)
  given, weight = to_torch(x), torch.tensor(kernel.transpose(4, 3, 0, 1, 2).copy())
  weight.requires_grad_()
  expected = torch.nn.functional.conv3d(given, weight, padding=1)
  cotangent = draw(*expected.shape, seed=2)
  (expected * torch.tensor(cotangent)).sum().backward()
  y, pull = jax.vjp(volumes.narrow_conv, x, kernel)
  of_x, of_kernel = pull(np.moveaxis(cotangent, 1, -1))
  close(y, of_torch(expected))
  close(of_x, of_torch(given.grad))
  close(of_kernel, weight.grad.numpy().transpose(2, 3, 4, 1, 0))


@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_of_patches_are_torchs(transposed):
  x = draw(2, 4, 8, 4, 3)
  module = volumes.PatchConvTranspose(5, 2) if transposed else volumes.PatchConv(5, 4)
  params = module.init(jax.random.key(0), x)["params"]
  kernel = torch.tensor(np.asarray(params["kernel"]).transpose(4, 3, 0, 1, 2).copy())
  convolve = torch.nn.functional.conv_transpose3d if transposed else torch.nn.functional.conv3d
  expected = convolve(
    to_torch(x), kernel, torch.tensor(np.asarray(params["bias"])), 2 if transposed else 4
  )
  close(module.apply({"params": params}, x), of_torch(expected))


def test_sampling_is_torchs_beyond_the_borders_too():
  x = draw(2, 3, 4, 5, 6)
  places = np.random.default_rng(1).uniform(-1.6, 1.6, (2, 3, 2, 7, 3)).astype(np.float32)
  places[0, 0, 0, 0] = (-1, 1, 0)  # corners, and a voxel's middle
  given, at = to_torch(x), torch.tensor(places[..., ::-1].copy(), requires_grad=True)
  expected = torch.nn.functional.grid_sample(given, at, align_corners=True)
  cotangent = draw(*expected.shape, seed=2)
  (expected * torch.tensor(cotangent)).sum().backward()
  y, pull = jax.vjp(volumes.sample, x, places)
  of_x, of_places = pull(np.moveaxis(cotangent, 1, -1))
  close(y, of_torch(expected))
  close(of_x, of_torch(given.grad))
  close(of_places, at.grad.numpy()[..., ::-1])


@pytest.mark.parametrize("size", [(3, 4, 1), (2, 8, 5)])
def test_resizing_has_aligned_corners(size):
  x = draw(1, 4, 4, 2, 3)
  sides = [
    np.linspace(0, old - 1, new) if new > 1 else [0.0]
    for old, new in zip((4, 4, 2), size, strict=True)
  ]
  places = np.stack(np.meshgrid(*sides, indexing="ij"))
  expected = np.stack(
    [ndimage.map_coordinates(x[0, ..., c], places, order=1) for c in range(3)], axis=-1
  )
  close(volumes.resize_aligned(x, size)[0], expected)
