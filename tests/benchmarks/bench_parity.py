"""Prints how far this program is from the published one, on the arrays in `tests/golden`.

  python tests/benchmarks/bench_parity.py

Each figure is the largest absolute difference over the largest absolute value, float32. The tests
hold the same comparisons to 1e-4.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import golden_weights  # noqa: E402
import measuring  # noqa: E402
from golden_weights import nchw, nhwc, relative_error  # noqa: E402

from dmfnet_jax import losses  # noqa: E402
from dmfnet_jax.inference.model import Model  # noqa: E402
from dmfnet_jax.methods.dmfnet.unet import UNet  # noqa: E402


def unet_errors() -> dict[str, float]:
  """The UNet's output and every feature that the goldens hold."""
  golden = golden_weights.load("unet")
  variables = {"params": golden_weights.reference_params()["unet"]}
  output, features = jax.jit(UNet().apply)(
    variables, nhwc(golden["x"]), golden["noise_level"][:, 0]
  )
  errors = {"UNet output": relative_error(nchw(output), golden["output"])}
  for name, expected in golden.items():
    kind, _, index = name.partition("_feature_")
    if index:
      feature = nchw(features[kind][int(index)])[:1]
      every = feature.shape[1] // expected.shape[1]  # the goldens hold every n-th channel
      errors[f"UNet {kind} feature {index}"] = relative_error(feature[:, ::every], expected)
  return errors


def fusion_errors() -> dict[str, float]:
  """The fused picture."""
  golden = golden_weights.load("fusion")
  model = Model(golden_weights.reference_params(), measuring.model_config(128))
  inputs = [
    np.stack([golden[f"{name}_{t}"] for t in golden["timesteps"]])
    for name in ("noisy_mri", "noisy_other", "noise_level")
  ]
  fused = model.fuse_noisy(nhwc(inputs[0]), nhwc(inputs[1]), inputs[2])
  return {"fused picture": relative_error(nchw(fused), golden["fused"])}


def loss_errors() -> dict[str, float]:
  """Stage II's loss and its gradient, the worst of three cases."""
  golden = golden_weights.load("losses")
  errors = {"loss": 0.0, "gradient of the loss": 0.0}
  for case in range(3):
    fused, a, b = (nhwc(golden[f"{name}_{case}"]) for name in ("fused", "mri", "other"))
    loss, gradient = jax.value_and_grad(lambda f, a, b: jnp.mean(losses.fusion_loss(f, a, b)[0]))(
      fused, a, b
    )
    expected = golden[f"intensity_{case}"] + golden[f"gradient_plus_ssim_{case}"]
    found = {
      "loss": relative_error(loss, expected),
      "gradient of the loss": relative_error(nchw(gradient), golden[f"grad_wrt_fused_{case}"]),
    }
    errors = {name: max(error, found[name]) for name, error in errors.items()}
  return errors


def main() -> None:
  """Prints the table."""
  print(f"jax {jax.__version__} on {jax.devices()[0]}, float32")
  for name, error in (unet_errors() | fusion_errors() | loss_errors()).items():
    print(f"{name:28} {error:.1e}")


if __name__ == "__main__":
  main()
