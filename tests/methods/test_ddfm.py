"""DDFM: what its goldens and the contract do not show."""

import json

import jax
import numpy as np
import pytest
from golden_weights import GOLDEN_DIR

from dmfnet_jax.errors import UserError
from dmfnet_jax.interop.torch import to_torch_layout, torch_name
from dmfnet_jax.methods import ddfm
from dmfnet_jax.methods.ddfm import priors, published
from dmfnet_jax.methods.ddfm.guided import GuidedUNet
from dmfnet_jax.methods.method import Compute
from dmfnet_jax.weights import load_params
from dmfnet_jax.weights.convert import convert


def published_shapes(part):
  return json.loads((GOLDEN_DIR / "ddfm_state_dict.json").read_text())[part]


def test_every_published_parameter_has_its_place():
  """All 566, by name and shape; a kernel of 1 is a dense layer's here."""
  picture = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  step = jax.ShapeDtypeStruct((1,), np.float32)
  made = jax.eval_shape(GuidedUNet().init, jax.random.key(0), picture, step)["params"]
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(made):
    name = torch_name("/".join(entry.key for entry in path), published.LAYERS)
    found[name] = list(to_torch_layout(np.broadcast_to(0, leaf.shape)).shape)
  expected = published_shapes("prior")
  assert found == {k: v[:2] if len(v) == 3 else v for k, v in expected.items()}
  assert sum(leaf.size for leaf in jax.tree.leaves(made)) == 552_814_086
  blank = {key: np.broadcast_to(np.float32(0), shape) for key, shape in expected.items()}
  assert GuidedUNet(**published.network_of(blank)) == GuidedUNet()


def test_what_does_not_fit_is_named():
  state = {k: np.zeros(v, np.float32) for k, v in published_shapes("prior_tiny").items()}
  params, _ = published.from_torch({"prior": state}, head_width=32)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_422_278
  wrong = {k: v for k, v in state.items() if k != "out.2.bias"} | {"more": np.zeros(2)}
  for parts, message in (
    ({}, "give prior=256x256_diffusion_uncond.pt, or prior=MODEL with a UNet"),
    ({"prior": {"more": np.zeros(2)}}, "not a prior of guided-diffusion: it has no input_blocks"),
    ({"prior": wrong}, r"1 missing \(out.2.bias\); 1 unexpected \(more\)"),
  ):
    with pytest.raises(UserError, match=message):
      published.from_torch(parts)


def test_a_model_with_a_unet_becomes_the_prior(tmp_path):
  out = tmp_path / "ddfm.safetensors"
  with pytest.raises(UserError, match=r"config.sampling.steps=2001 must be in 1..2000"):
    convert("ddfm", {"prior": "small"}, out, {"sampling.steps": "2001"})
  with pytest.raises(UserError, match=r"config.em.rule is one of 'code', 'paper', not 'x'"):
    convert("ddfm", {"prior": "small"}, out, {"em.rule": "x"})
  assert not out.exists()
  convert("ddfm", {"prior": "small"}, out, {"sampling.steps": "7"})
  params, config = load_params(out)
  small, of_small = load_params("small")
  assert config["sampling"] == {"steps": 7, "eta": 0.0}
  assert config["prior"] == {"kind": "unet", **of_small["unet"]}
  assert jax.tree.all(jax.tree.map(np.array_equal, params, {"prior": small["unet"]}))
  with pytest.raises(UserError, match="is the UNet of a dmfnet model, and this is one of ddfm"):
    convert("ddfm", {"prior": out}, tmp_path / "again.safetensors")


def test_steps_are_spread_over_the_whole_schedule():
  assert priors.kept_steps(1000, 100).tolist()[:3] == [0, 10, 20]
  assert priors.kept_steps(2000, 4).tolist() == [0, 666, 1333, 1999]
  assert priors.kept_steps(2000, 1).tolist() == [0]
  for count in (0, 11):
    with pytest.raises(UserError, match=rf"config.sampling.steps={count} must be in 1\.\.10"):
      priors.kept_steps(10, count)


def fuse_with_stub(monkeypatch, compute, a, b, **options):
  """Fuses with a prior that needs no network, in five steps."""
  rng = np.random.default_rng(0)
  alpha_bar = np.append(np.linspace(0.01, 0.99, 5), 1.0)

  def predict(params, x, k):
    return x + np.float32(rng.normal())

  prior = priors.Prior(1, None, alpha_bar, alpha_bar[:-1], predict)
  monkeypatch.setattr(priors, "build", lambda config, dtype: prior)
  config = {section: dict(fields) for section, fields in ddfm.defaults(1).items()}
  config["em"] |= options
  fuse = ddfm.fuse(config, compute)
  keys = jax.random.split(jax.random.key(0), len(a))
  return fuse({"prior": {}}, {"a": a, "b": b}, keys)["fused"]


@pytest.mark.parametrize("first", ["a", "b"])
@pytest.mark.parametrize("rule", ["code", "paper"])
def test_the_result_is_a_mixture_of_the_sources(monkeypatch, rule, first):
  """Whatever the prior says: it holds no structure that neither source has."""
  rng = np.random.default_rng(1)
  a, b = (rng.uniform(-1, 1, (2, 8, 12, 1)).astype(np.float32) for _ in range(2))
  options = {"rule": rule, "first": first, "luma_range": "full"}
  fused = fuse_with_stub(monkeypatch, Compute(), a, b, **options)
  slack = 2 * ddfm.defaults(1)["em"]["rho"]
  assert (np.minimum(a, b) - slack <= fused).all()
  assert (fused <= np.maximum(a, b) + slack).all()
  assert 0.05 < np.abs(fused - a).mean()
  assert 0.05 < np.abs(fused - b).mean()


def test_each_pass_is_told_of(monkeypatch):
  """Of a pair that takes minutes one sees more than that it began."""
  told = []
  compute = Compute(on_step=lambda done, count: told.append((int(done), int(count))))
  picture = np.zeros((1, 8, 8, 1), np.float32)
  fuse_with_stub(monkeypatch, compute, picture, picture)
  jax.effects_barrier()
  assert sorted(told) == [(n, 5) for n in range(1, 6)]
