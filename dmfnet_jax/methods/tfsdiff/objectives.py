"""TFS-Diff's loss, as its published program computes it (SSIM by kornia 0.4.1)."""

import jax
import jax.numpy as jnp

from dmfnet_jax import losses

Array = jax.Array

_PER_IMAGE = (1, 2, 3)


def noise_loss(
  target: Array, noise: Array, predicted: Array, *, batch_size: int
) -> tuple[Array, dict[str, Array]]:
  """The distance of two noises, and a little of a similarity.

  The program takes the SSIM of the target picture and the predicted *noise*, and divides it by the
  number of all values of a batch. It hardly matters.

  Args:
    target: the fused picture to imitate, [B, H, W, 3] in [-1, 1].
    noise: that was added to it, of the same shape.
    predicted: the noise that the network sees in it.
    batch_size: of the whole batch, over all devices.

  Returns:
    The loss [B], whose mean over the batch is the program's, and its terms [B]: "l1", the mean
    absolute difference, and "dissimilarity", in [0, 1/2].
  """
  losses.check_same_shape(target, noise, predicted)
  l1 = jnp.mean(losses.absolute(noise - predicted), axis=_PER_IMAGE)
  apart = dissimilarity(target, predicted)
  values = target[0].size
  return l1 + apart / (batch_size * values), {"l1": l1, "dissimilarity": apart}


def dissimilarity(target: Array, predicted: Array) -> Array:
  """Mean of (1 - SSIM) / 2, [B]; at most 1/2 at each pixel, where it has no gradient then.

  The SSIM is one of [0, 1], though the pictures are in [-1, 1].
  """
  similarity = losses.ssim_map(target, predicted, border="reflect")
  return jnp.mean(jnp.clip(1 - similarity, 0, 1) / 2, axis=_PER_IMAGE)
