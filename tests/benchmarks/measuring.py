"""What the benchmarks share: the machine's name, medians of interleaved runs, drawn models."""

import datetime
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import tiny

from dmfnet_jax.methods.dmfnet import torch as torch_weights
from dmfnet_jax.methods.dmfnet.networks import build_fusion_head, build_unet
from dmfnet_jax.weights.files import complete

SCHEDULE = {"name": "linear", "num_timesteps": 2000, "start": 1e-6, "end": 1e-2}
FEATURES = {"timesteps": [5, 10, 20], "source": "decoder", "schedule": SCHEDULE}
MULTIPLIERS = (1, 1, 1, 1, 2)
LEVELS = np.array([0.999, 0.998, 0.996], np.float32)  # of the three timesteps, ascending


def machine() -> str:
  """One line: the processor, the device, JAX and the date."""
  return (
    f"machine: {processor()}; jax {jax.__version__} on {jax.devices()[0].device_kind}; "
    f"{datetime.date.today().isoformat()}"
  )


def processor() -> str:
  """What the operating system calls the processor."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:  # not Linux
    lines = []
  names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
  return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


def interleaved_medians(
  functions: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
  """Median wall time of each function in seconds.

  Each is called once beforehand; then they take turns, so that what else the machine does meets all
  of them alike.
  """
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  for function in functions.values():
    function()
  for _ in range(repeats):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in seconds.items()}


def arithmetic(function: Callable[..., Any], *inputs: Any) -> float:
  """Floating-point operations of a function, from its description: nothing is compiled.

  Of the description for the CPU: an accelerator's may have no such count. A loop's body counts
  once.
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    compilable = function if hasattr(function, "lower") else jax.jit(function)
    return compilable.lower(*shapes).cost_analysis()["flops"]


def paper_model(width: int) -> tuple[tuple[Any, Any] | None, Any, dict[str, Any]]:
  """The paper's model at a width: PyTorch's networks, or None without torch; params; config."""
  if importlib.util.find_spec("torch") is None:
    config = model_config(width)
    return None, drawn_params(config), config
  networks = torch_networks(width)
  return networks, *as_jax(*networks)


def torch_networks(width: int) -> tuple[Any, Any]:
  """The torch re-statement's UNet and head at a width (the paper: 128), with drawn weights."""
  import torch  # an extra: the other benchmarks run without
  import torch_reference

  widths = [width * m for m in reversed(MULTIPLIERS)]
  networks = (
    torch_reference.UNet(width=width, multipliers=MULTIPLIERS),
    torch_reference.FusionHead(widths=widths),
  )
  for network in networks:
    drawn = golden_weights.draw_all({k: v.shape for k, v in network.state_dict().items()})
    network.load_state_dict({k: torch.from_numpy(v) for k, v in drawn.items()})
    network.eval()
  return networks


def as_jax(unet: Any, head: Any) -> tuple[dict[str, Any], dict[str, Any]]:
  """The parameters and the config of the same model here."""
  states = [{k: v.numpy() for k, v in network.state_dict().items()} for network in (unet, head)]
  params = {
    "unet": torch_weights.unet_params_from_torch(states[0]),
    "fusion_head": torch_weights.fusion_head_params_from_torch(states[1]),
  }
  return params, model_config(len(states[0]["init_conv.bias"]))


def model_config(width: int) -> dict[str, Any]:
  """The paper's model at a width."""
  unet = {"width": width, "multipliers": list(MULTIPLIERS), "num_res_blocks": 2}
  unet |= {"norm_groups": 32, "dropout": 0.2, "attention_levels": []}
  head = {"attention": "triple", "multi_scale_reach": 2}
  sections = {"unet": unet, "fusion_head": head, "features": FEATURES}
  return complete({"method": "dmfnet", **sections})


def drawn_params(config: dict[str, Any], seed: int = 0) -> Any:
  """Random parameters of a model, without running an initialiser."""
  unet = build_unet(config["unet"])
  timesteps = len(config["features"]["timesteps"])
  head = build_fusion_head(config["fusion_head"], config["unet"], timesteps)

  def shapes() -> Any:
    image, level = jnp.zeros((1, 16, 16, 1)), jnp.zeros(1)
    variables = unet.init(jax.random.key(0), image, level)
    features = unet.apply(variables, image, level, method="fusion_features")
    stacked = [jnp.stack([f] * timesteps) for f in features]
    return {
      "unet": variables["params"],
      "fusion_head": head.init(jax.random.key(0), stacked, stacked)["params"],
    }

  return tiny.draw_like(jax.eval_shape(shapes), seed)


def pictures(count: int, size: int, seed: int = 0) -> np.ndarray:
  """Uniform random pictures [count, size, size] in [-1, 1]."""
  return np.random.default_rng(seed).uniform(-1, 1, (count, size, size)).astype(np.float32)
