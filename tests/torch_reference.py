"""DM-FNet once more, in eager PyTorch (NCHW): what the parity tests and benchmarks compare with.

Written from the description of the published program, with its parameter names, so that a
published checkpoint loads with `load_state_dict`. It shares no code with `dmfnet_jax`: an error
would have to be made twice, in two frameworks, to go unnoticed. It is plain on purpose (and slow
where the published program is slow: see `fuse_as_published`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoiseLevelEncoding(nn.Module):
  """Sines and cosines of the continuous noise level: [B] -> [B, width]."""

  def __init__(self, width: int):
    super().__init__()
    self.half = width // 2

  def forward(self, noise_level: Tensor) -> Tensor:
    steps = torch.arange(self.half, dtype=noise_level.dtype) / self.half
    angles = noise_level.reshape(-1, 1) * torch.exp(-math.log(1e4) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class NormSwishConv(nn.Module):
  """GroupNorm, swish, dropout, 3x3 convolution; parameters at `block.0` and `block.3`."""

  def __init__(self, width_in: int, width_out: int, groups: int, dropout: float = 0.0):
    super().__init__()
    self.block = nn.Sequential(
      nn.GroupNorm(groups, width_in),
      nn.SiLU(),
      nn.Dropout(dropout),
      nn.Conv2d(width_in, width_out, 3, padding=1),
    )

  def forward(self, x: Tensor) -> Tensor:
    return self.block(x)


class NoiseShift(nn.Module):
  """Adds a projection of the noise embedding to every pixel."""

  def __init__(self, width_embedding: int, width: int):
    super().__init__()
    self.noise_func = nn.Sequential(nn.Linear(width_embedding, width))

  def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
    return x + self.noise_func(embedding)[:, :, None, None]


class ResBlock(nn.Module):
  def __init__(self, width_in: int, width_out: int, width_embedding: int, groups: int, dropout):
    super().__init__()
    self.noise_func = NoiseShift(width_embedding, width_out)
    self.block1 = NormSwishConv(width_in, width_out, groups)
    self.block2 = NormSwishConv(width_out, width_out, groups, dropout)
    self.res_conv = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

  def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
    hidden = self.noise_func(self.block1(x), embedding)
    return self.block2(hidden) + self.res_conv(x)


class SelfAttention(nn.Module):
  """One head over all pixels."""

  def __init__(self, width: int, groups: int):
    super().__init__()
    self.norm = nn.GroupNorm(groups, width)
    self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
    self.out = nn.Conv2d(width, width, 1)

  def forward(self, x: Tensor) -> Tensor:
    batch, width, height, breadth = x.shape
    q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
    weights = (q.transpose(1, 2) @ k / math.sqrt(width)).softmax(dim=-1)
    mixed = (v @ weights.transpose(1, 2)).view(batch, width, height, breadth)
    return x + self.out(mixed)


class UNetBlock(nn.Module):
  """A residual block and, where the level attends, self-attention after it."""

  def __init__(self, width_in, width_out, width_embedding, groups, dropout, attend: bool):
    super().__init__()
    self.res_block = ResBlock(width_in, width_out, width_embedding, groups, dropout)
    self.attn = SelfAttention(width_out, groups) if attend else nn.Identity()

  def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
    return self.attn(self.res_block(x, embedding))


class Downsample(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

  def forward(self, x: Tensor) -> Tensor:
    return self.conv(x)


class Upsample(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.conv = nn.Conv2d(width, width, 3, padding=1)

  def forward(self, x: Tensor) -> Tensor:
    return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class UNet(nn.Module):
  """The Stage I network; a published checkpoint has it under the prefix `denoise_fn.`."""

  def __init__(
    self,
    width: int = 128,
    multipliers: Sequence[int] = (1, 1, 1, 1, 2),
    num_res_blocks: int = 2,
    norm_groups: int = 32,
    dropout: float = 0.2,
    attention_levels: Sequence[int] = (),
  ):
    super().__init__()
    widths = [width * m for m in multipliers]
    last = len(widths) - 1

    def block(width_in: int, width_out: int, attend: bool) -> UNetBlock:
      return UNetBlock(width_in, width_out, width, norm_groups, dropout, attend)

    self.noise_level_mlp = nn.Sequential(
      NoiseLevelEncoding(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
    )
    self.init_conv = nn.Conv2d(1, width, 3, padding=1)
    skips, current = [width], width
    downs: list[nn.Module] = []
    for level, level_width in enumerate(widths):
      for _ in range(num_res_blocks):
        downs.append(block(current, level_width, level in attention_levels))
        current = level_width
        skips.append(current)
      if level < last:
        downs.append(Downsample(current))
        skips.append(current)
    self.downs = nn.ModuleList(downs)
    self.mid = nn.ModuleList([block(current, current, True), block(current, current, False)])
    ups: list[nn.Module] = []
    for level in range(last, -1, -1):
      for _ in range(num_res_blocks + 1):
        ups.append(block(current + skips.pop(), widths[level], level in attention_levels))
        current = widths[level]
      if level > 0:
        ups.append(Upsample(current))
    self.ups = nn.ModuleList(ups)
    self.final_conv = NormSwishConv(current, 1, norm_groups)

  def forward(
    self, x: Tensor, noise_level: Tensor, num_decoder_blocks: int | None = None
  ) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """x [B, 1, H, W], noise_level [B] -> (x_start [B, 1, H, W], encoder and decoder features).

    With `num_decoder_blocks` the rest of the decoder is left out, and there is no x_start.
    """
    embedding = self.noise_level_mlp(noise_level)
    x = self.init_conv(x)
    encoder = [x]
    for layer in self.downs:
      x = layer(x) if isinstance(layer, Downsample) else layer(x, embedding)
      encoder.append(x)
    for layer in self.mid:
      x = layer(x, embedding)
    skips, decoder = list(encoder), []
    for layer in self.ups:
      if isinstance(layer, Upsample):
        x = layer(x)
      else:
        x = layer(torch.cat([x, skips.pop()], dim=1), embedding)
        decoder.append(x)
      if len(decoder) == num_decoder_blocks:
        return x, {"encoder": encoder, "decoder": decoder[::-1]}
    return self.final_conv(x), {"encoder": encoder, "decoder": decoder[::-1]}


def one_then_three(width_in: int, width_out: int) -> nn.Sequential:
  """1x1 convolution, ReLU, 3x3 convolution, ReLU: the fusion head's only building block."""
  return nn.Sequential(
    nn.Conv2d(width_in, width_out, 1),
    nn.ReLU(),
    nn.Conv2d(width_out, width_out, 3, padding=1),
    nn.ReLU(),
  )


class TimestepFusion(nn.Module):
  def __init__(self, width: int, num_timesteps: int):
    super().__init__()
    self.block = one_then_three(width * num_timesteps, width)

  def forward(self, features: Sequence[Tensor]) -> Tensor:
    return self.block(torch.cat(list(features), dim=1))


class SpatialAttention(nn.Module):
  def __init__(self):
    super().__init__()
    self.sa = nn.Conv2d(2, 1, 7, padding=3, padding_mode="reflect")

  def forward(self, x: Tensor) -> Tensor:
    return self.sa(torch.stack([x.mean(dim=1), x.amax(dim=1)], dim=1))


class ChannelAttention(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.ca = nn.Sequential(
      nn.Conv2d(width, width // 8, 1), nn.ReLU(), nn.Conv2d(width // 8, width, 1)
    )

  def forward(self, x: Tensor) -> Tensor:
    return self.ca(x.mean(dim=(2, 3), keepdim=True))


class PixelAttention(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.pa2 = nn.Conv2d(2 * width, width, 3, padding=1, padding_mode="reflect", groups=width)

  def forward(self, x: Tensor, pattern: Tensor) -> Tensor:
    interleaved = torch.stack([x, pattern], dim=2).flatten(1, 2)
    return torch.sigmoid(self.pa2(interleaved))


class TripleAttention(nn.Module):
  """Weighs the two sources' features against each other."""

  def __init__(self, width: int):
    super().__init__()
    self.sa = SpatialAttention()
    self.ca = ChannelAttention(width)
    self.pa = PixelAttention(width)

  def forward(self, a: Tensor, b: Tensor) -> Tensor:
    total = a + b
    weight = total * self.pa(total, self.sa(total) + self.ca(total))
    return weight * a + (1 - weight) * b + a + b


def up(x: Tensor) -> Tensor:
  return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class FusionLevel(nn.Module):
  """Attention and multi-scale fusion of one level."""

  def __init__(self, width: int, width_next: int, width_before: int | None):
    super().__init__()
    self.att = TripleAttention(width)
    self.block = one_then_three(width, width_next)
    self.block1 = None if width_before is None else one_then_three(width_before, width)

  def forward(self, a: Tensor, b: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    fused = self.att(a, b)
    if outputs:
      fused = fused + up(outputs[-1])
    if self.block1 is not None:
      fused = fused + up(self.block1(up(outputs[-2])))
    return self.block(fused)


class HeadConv(nn.Module):
  def __init__(self, width_in: int, width_out: int):
    super().__init__()
    self.conv = nn.Conv2d(width_in, width_out, 3, padding=1)

  def forward(self, x: Tensor) -> Tensor:
    return self.conv(x)


class FusionHead(nn.Module):
  """The Stage II head.

  Args:
    widths: the levels' widths, coarse to fine.
    num_timesteps: how many timesteps' features each level takes; with one there is no
      timestep fusion (and `decoder.{2i}` has no parameters).
    head_width: width between the two last convolutions; half the finest width by default.
    blend: F = w A + (1 - w) B + r, cut to [-1, 1], of dmfnet_jax's released models, which the
      published program does not have; needs the sources.
  """

  def __init__(
    self,
    widths: Sequence[int] = (256, 128, 128, 128, 128),
    num_timesteps: int = 3,
    head_width: int | None = None,
    blend: bool = False,
  ):
    super().__init__()
    following = [*widths[1:], widths[-1]]
    head_width = widths[-1] // 2 if head_width is None else head_width
    decoder: list[nn.Module] = []
    for i, width in enumerate(widths):
      decoder.append(TimestepFusion(width, num_timesteps) if num_timesteps > 1 else nn.Identity())
      decoder.append(FusionLevel(width, following[i], widths[i - 1] if i >= 2 else None))
    self.decoder = nn.ModuleList(decoder)
    self.rgb_decode2 = HeadConv(widths[-1], head_width)
    self.rgb_decode1 = HeadConv(head_width, 2 if blend else 1)
    self.num_timesteps = num_timesteps

  def forward(
    self,
    features_a: Sequence[Tensor],
    features_b: Sequence[Tensor],
    sources: tuple[Tensor, Tensor] | None = None,
  ) -> Tensor:
    """Both coarse to fine, each [T, B, c, h, w] -> fused [B, 1, H, W] in (-1, 1)."""
    outputs: list[Tensor] = []
    for i, (a, b) in enumerate(zip(features_a, features_b, strict=True)):
      if self.num_timesteps > 1:
        a, b = self.decoder[2 * i](a), self.decoder[2 * i](b)
      else:
        a, b = a[0], b[0]
      outputs.append(self.decoder[2 * i + 1](a, b, outputs))
    last = self.rgb_decode1(F.leaky_relu(self.rgb_decode2(outputs[-1]), 0.2))
    if sources is None:
      return torch.tanh(last)
    gate, rest = last.chunk(2, dim=1)
    weight = gate.sigmoid()
    return (weight * sources[0] + (1 - weight) * sources[1] + rest).clamp(-1, 1)


FUSION_BLOCKS = (14, 11, 8, 5, 2)


@torch.no_grad()
def fuse_as_published(
  unet: UNet,
  head: FusionHead,
  noisy_a: Tensor,
  noisy_b: Tensor,
  noise_levels: Tensor,
  blocks: Sequence[int] = FUSION_BLOCKS,
) -> Tensor:
  """Fuses the way the published program does: eagerly, one UNet pass per timestep and image.

  Every pass runs the whole decoder and output convolution, though the head needs neither the
  last two up-blocks nor the predicted image. `noisy_*` [T, B, 1, H, W], noise_levels [T]
  -> [B, 1, H, W].
  """
  unet.eval()
  head.eval()

  def features(noisy: Tensor) -> list[Tensor]:
    passes = []
    for x, level in zip(noisy, noise_levels, strict=True):
      _, named = unet(x, level.expand(len(x)))
      passes.append([named["decoder"][i] for i in blocks])
    return [torch.stack(per_level) for per_level in zip(*passes, strict=True)]

  return head(features(noisy_a), features(noisy_b))


@torch.no_grad()
def fuse_as_needed(
  unet: UNet,
  head: FusionHead,
  noisy_a: Tensor,
  noisy_b: Tensor,
  noise_levels: Tensor,
  sources: tuple[Tensor, Tensor] | None = None,
  passes_per_step: int | None = None,
) -> Tensor:
  """`fuse_as_published`, without what the head does not look at, several passes at a time.

  noisy_* [T, B, 1, H, W], noise_levels [T] -> [B, 1, H, W]. `sources` are for a head that blends.
  """
  timesteps, batch = noisy_a.shape[:2]
  images = torch.cat([noisy_a, noisy_b]).flatten(0, 1)
  levels = noise_levels.repeat_interleave(batch).repeat(2)
  step = (passes_per_step or 2 * timesteps) * batch
  chunks = []
  for x, level in zip(images.split(step), levels.split(step), strict=True):
    decoder = unet(x, level, FUSION_BLOCKS[0] - 1)[1]["decoder"]
    chunks.append([decoder[len(decoder) - 1 - 3 * i] for i in range(len(FUSION_BLOCKS))])
  features = [
    torch.cat(passes).unflatten(0, (2 * timesteps, batch)) for passes in zip(*chunks, strict=True)
  ]
  return head([f[:timesteps] for f in features], [f[timesteps:] for f in features], sources)


def q_sample(x_start: Tensor, noise_level: Tensor, noise: Tensor) -> Tensor:
  """`noise_level` [B] -> x_noisy, shaped like x_start [B, 1, H, W]."""
  level = noise_level.reshape(-1, 1, 1, 1)
  return level * x_start + (1 - level**2).sqrt() * noise


def posterior(betas: Tensor, x_start: Tensor, x_t: Tensor, step: int) -> tuple[Tensor, Tensor]:
  """Mean and log-variance of q(x_{step-1} | x_step, x_start); `betas` [T] float64, step 0-based."""
  alpha_bar = (1 - betas).cumprod(0)
  bar = alpha_bar[step]
  bar_before = alpha_bar[step - 1] if step > 0 else torch.ones_like(bar)
  beta = betas[step]
  mean = (beta * bar_before.sqrt() / (1 - bar)).float() * x_start + (
    (1 - bar_before) * (1 - beta).sqrt() / (1 - bar)
  ).float() * x_t
  variance = beta * (1 - bar_before) / (1 - bar)
  return mean, variance.clamp(min=1e-20).log().float()


def _per_channel_filter(x: Tensor, kernel: Tensor) -> Tensor:
  return F.conv2d(x, kernel.to(x)[None, None], padding=kernel.shape[-1] // 2)


def sobel_magnitude(x: Tensor) -> Tensor:
  kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
  return _per_channel_filter(x, kernel).abs() + _per_channel_filter(x, kernel.T).abs()


def structure_similarity(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
  """S: the structure term of SSIM, at each pixel against the source that varies more there."""
  offsets = torch.arange(11, dtype=fused.dtype) - 5
  gauss = torch.exp(-(offsets**2) / (2 * 1.5**2))
  window = torch.outer(gauss, gauss) / gauss.sum() ** 2

  def mean(x: Tensor) -> Tensor:
    return _per_channel_filter(x, window)

  def variance(x: Tensor) -> Tensor:
    return mean(x * x) - mean(x) ** 2

  def similarity(x: Tensor) -> Tensor:
    covariance = mean(fused * x) - mean(fused) * mean(x)
    return (2 * covariance + 0.03**2) / (variance(fused) + variance(x) + 0.03**2)

  return torch.where(variance(a) >= variance(b), similarity(a), similarity(b)).mean()


def fusion_loss_terms(fused: Tensor, a: Tensor, b: Tensor) -> dict[str, Tensor]:
  """[B, 1, H, W] each -> the unweighted terms and their weighted sum `loss`."""
  intensity = (fused - torch.maximum(a, b)).abs().mean()
  wanted = torch.maximum(sobel_magnitude(a), sobel_magnitude(b))
  gradient = (sobel_magnitude(fused) - wanted).abs().mean()
  similarity = structure_similarity(fused, a, b)
  return {
    "intensity": intensity,
    "gradient": gradient,
    "structure": similarity,
    "loss": 1.5 * intensity + gradient + 0.5 * (1 - similarity),
  }
