"""Rows of layers that several published programs share: they took each other's code.

`here` and `there` stand before the names of the layer, with the separators that they need.
"""

from dmfnet_jax.interop.torch import Layers


def batch_norm(here: str, there: str) -> Layers:
  """A batch norm, whose running statistics have rows of their own."""
  return (
    (rf"{here}/mean", f"{there}.running_mean"),
    (rf"{here}/var", f"{there}.running_var"),
    (here, there),
  )


def base_block(here: str, there: str) -> Layers:
  """A block of channel attention and an MLP, of the layers of `nn.restormer`."""
  return (
    (rf"{here}norm(?P<n>[12])/body", f"{there}norm{{n}}.body"),
    (rf"{here}attention/temperature", f"{there}attn.scale"),
    (rf"{here}(?P<layer>qkv[12])", f"{there}attn.{{layer}}"),
    (rf"{here}attention_out", f"{there}attn.proj"),
    (rf"{here}mlp/(?P<layer>\w+)", f"{there}mlp.{{layer}}"),
  )


def coupling(here: str, there: str) -> Layers:
  """A coupling node of `nn.coupling`."""
  bottleneck = rf"{here}(?P<part>phi|rho|eta)/"
  inside = f"{there}theta_{{part}}.bottleneckBlock."
  return (
    (rf"{here}mix", f"{there}shffleconv"),  # (sic)
    (rf"{bottleneck}conv1", f"{inside}0"),
    (rf"{bottleneck}depthwise", f"{inside}3"),
    (rf"{bottleneck}conv2", f"{inside}5"),
  )
