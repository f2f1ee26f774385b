"""CDDFuse's goldens: features, losses, gradients and steps of drawn weights. Arrays are NCHW."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from golden_check import GRADIENT, Computed
from golden_weights import GOLDEN_DIR, nchw, nhwc

from dmfnet_jax import losses
from dmfnet_jax.configs import cddfuse as recipe
from dmfnet_jax.methods.cddfuse import METHOD, objectives, published, stages
from dmfnet_jax.methods.cddfuse.networks import build
from dmfnet_jax.methods.method import Context
from dmfnet_jax.nn import layers
from dmfnet_jax.training.state import Optimizers

# The page's own bounds: kinks and an exponential lie between the encoder and the losses; a map of
# differences of squares; steps are compared with how far they went.
ENCODER_GRADIENT, DIFFERENCE_OF_SQUARES, STEP = 5e-3, 2e-4, 1e-2


def weight(draw, key, shape):
  """The rule's exceptions: temperatures near 2, and an exponent that does not overflow."""
  z = draw(key, shape)
  if key.endswith(("temperature", "scale")):
    # `draw` has divided what has several axes by the root of its inputs, here 1.
    return 2 + 0.5 * z
  return 0.2 * z if key.endswith("theta_rho.bottleneckBlock.5.weight") else z


def draw_params(draw):
  shapes = json.loads((GOLDEN_DIR / "cddfuse_state_dict.json").read_text())
  states = {
    part: {key: weight(draw, key, shape) for key, shape in keys.items()}
    for part, keys in shapes.items()
  }
  return published.from_torch({"mif": states})[0]


def with_statistics(name, feature, channels):
  """Some channels, and the mean and deviation of all."""
  feature = nchw(feature)
  return {
    name: Computed(feature[:, channels]),
    f"{name}_mean": Computed(feature.mean((2, 3))),
    f"{name}_std": Computed(feature.std((2, 3))),
  }


def stage_config(stage, **fusion):
  config = recipe.paper(stage)
  config.fusion.update(skip="visible", visible="a", **fusion)
  return config


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(stage, params, batch):
  """Loss and its terms, and the gradients, of a stage."""
  (update,) = METHOD.stages[stage](stage_config(stage)).updates
  context = Context(jax.random.split(jax.random.key(0), len(batch["a"])), True, jnp.float32(0))

  def mean_loss(moved):
    loss = update.loss({**params, **moved}, batch, context)
    return jnp.mean(loss.value), jax.tree.map(jnp.mean, loss.terms)

  moved = {name: params[name] for name in update.networks}
  return jax.value_and_grad(mean_loss, has_aux=True)(moved)


def gradients_of(stage, gradients, wanted):
  found = {}
  states = published.to_torch(gradients)
  for part, state in states.items():
    bound = ENCODER_GRADIENT if part == published.PARTS["encoder"] else GRADIENT
    norm = np.sqrt(sum((np.float64(value) ** 2).sum() for value in state.values()))
    found[f"stage{stage}_gradnorm_{part}"] = Computed(norm, bound)
    for key, value in state.items():
      found[f"stage{stage}_grad:{part}:{key}"] = Computed(value, bound)
  return {key: value for key, value in found.items() if key in wanted}


def run_steps(params, batch):
  """Two steps of each stage at one rate; moments carry over. The losses, and the parameters."""
  seen, moments = [], {}
  for stage in (1, 2):
    config = stage_config(stage)
    config.optimizer.update(decay="constant")
    with config.unlocked():
      config.optimizer.networks = {}
    (update,) = METHOD.stages[stage](config).updates
    optimizers = Optimizers(config, update.networks)
    state = optimizers.init(params) | moments
    update_of = jax.jit(optimizers.update)
    for _ in range(2):
      (total, _), gradients = loss_and_gradient(stage, params, batch)
      seen.append(total)
      moved, state = update_of(gradients, state, params)
      params = {**params, **moved}
    moments = state
  return np.array(seen), params


def compute(arrays, draw):
  """See `golden_check`."""
  params = draw_params(draw)
  visible, infrared = nhwc(arrays["vis"]), nhwc(arrays["ir"])
  channels = arrays["channels"]
  networks = build(recipe.paper(1).network.to_dict(), "float32")
  batch = {"a": 2 * visible - 1, "b": 2 * infrared - 1}
  found = {name: Computed(arrays[name], 0.0) for name in ("vis", "ir", "channels", "cc_a", "cc_b")}

  @jax.jit
  def encode(params, image):
    return networks["encoder"].apply(
      {"params": params["encoder"]}, image, mutable="intermediates", capture_intermediates=False
    )

  (of_visible, inside), (of_infrared, _) = (encode(params, x) for x in (visible, infrared))
  (attended,) = inside["intermediates"]["blocks_0"]["attended"]
  found["vis_block0_attn_out"] = Computed(nchw(attended)[:, channels])
  for name, feature in (
    ("vis_embed", of_visible["embed"]),
    ("vis_block0", of_visible["block0"]),
    ("vis_shallow", of_visible["shallow"]),
    ("vis_base", of_visible["base"]),
    ("vis_detail", of_visible["detail"]),
    ("ir_base", of_infrared["base"]),
    ("ir_detail", of_infrared["detail"]),
  ):
    found |= with_statistics(name, feature, channels)

  decode = jax.jit(lambda *args: stages.decode(networks, *args))
  visible_again, reduced = decode(params, of_visible["base"], of_visible["detail"], visible)
  infrared_again, _ = decode(params, of_infrared["base"], of_infrared["detail"], infrared)
  found |= with_statistics("vis_reduced", reduced, channels)
  found |= {"vis_hat": Computed(nchw(visible_again)), "ir_hat": Computed(nchw(infrared_again))}
  base, detail = stages.merge(networks, params, of_visible, of_infrared)
  found |= with_statistics("fused_base", base, channels)
  found |= with_statistics("fused_detail", detail, channels)

  # Stage I.
  (total, terms), gradients = loss_and_gradient(1, params, batch)
  for theirs, ours in (("vis", "visible"), ("ir", "infrared")):
    found[f"stage1_ssim_{theirs}"] = Computed(terms[f"ssim_{ours}"])
    found[f"stage1_mse_{theirs}"] = Computed(terms[f"mse_{ours}"])
  for kind in ("base", "detail"):
    value = objectives.correlation(of_visible[kind], of_infrared[kind])
    found[f"stage1_cc_{kind}"] = Computed(value.mean())
  found |= {
    "stage1_gradient": Computed(terms["gradient"]),
    "stage1_decomp": Computed(terms["decomposition"]),
    "stage1_total": Computed(total),
    **gradients_of(1, gradients, arrays),
  }

  def of_rebuilt(rebuilt):
    ssim, mse = objectives.reconstruction(visible, rebuilt)
    return jnp.mean(5 * ssim + mse + 5 * objectives.gradient_loss(visible, rebuilt))

  value, gradient = jax.jit(jax.value_and_grad(of_rebuilt))(nhwc(arrays["vis_hat"]))
  found["stage1_recon_loss_vis"] = Computed(value)
  found["stage1_recon_grad_wrt_vis_hat"] = Computed(nchw(gradient), GRADIENT)
  found["ssim_loss_map_vis"] = Computed(
    nchw(objectives.ssim_map(visible, nhwc(arrays["vis_hat"]))), DIFFERENCE_OF_SQUARES
  )
  count = len(arrays["sobel_vis"])
  found["sobel_vis"] = Computed(nchw(losses.spatial_gradient(visible[:count]))[:, None])
  count = len(arrays["sobel_abs_vis"])
  found["sobel_abs_vis"] = Computed(nchw(losses.sobel_gradient(visible[:count])))

  # Stage II.
  (total, terms), gradients = loss_and_gradient(2, params, batch)
  fused, _ = decode(params, base, detail, visible)

  def of_fused(fused):
    intensity, gradient = objectives.fusion(fused, visible, infrared)
    return jnp.mean(intensity + 10 * gradient)

  found |= {
    "stage2_fused": Computed(nchw(fused)),
    "stage2_intensity": Computed(terms["intensity"]),
    "stage2_gradient": Computed(terms["gradient"]),
    "stage2_fusion": Computed(terms["intensity"] + 10 * terms["gradient"]),
    "stage2_decomp": Computed(terms["decomposition"]),
    "stage2_total": Computed(total),
    "stage2_grad_wrt_fused": Computed(nchw(jax.grad(of_fused)(fused)), GRADIENT),
    **gradients_of(2, gradients, arrays),
  }

  # Correlation by itself.
  a, b = nhwc(arrays["cc_a"]), nhwc(arrays["cc_b"])
  value, gradient = jax.value_and_grad(lambda a: jnp.mean(objectives.correlation(a, b)))(a)
  found["cc_value"] = Computed(value)
  found["cc_grad_wrt_a"] = Computed(nchw(gradient), GRADIENT)

  # Steps, compared with how far the weights went.
  seen, after = run_steps(params, batch)
  found["steps_losses"] = Computed(seen)
  before, after = published.to_torch(params), published.to_torch(after)
  for key in (key for key in arrays if key.startswith("steps_after:")):
    _, part, name = key.split(":")
    # By the norm: Adam steps as far by a small gradient, mostly rounding, as by a large one.
    change = np.linalg.norm(arrays[key] - before[part][name])
    found[key] = Computed(after[part][name], STEP, scale=float(change), by_norm=True)

  # Inference.
  for name, skip in (("infrared", "visible"), ("medical_sum", "sum"), ("medical_none", "none")):
    count = len(arrays[f"fused_{name}"])
    picture, _ = decode(
      params,
      base[:count],
      detail[:count],
      stages.choose_skip(skip, visible[:count], infrared[:count]),
    )
    found[f"fused_{name}"] = Computed(nchw(picture))
    found[f"fused_{name}_stretched"] = Computed(nchw((layers.stretch(2 * picture - 1) + 1) / 2))
  return found
