"""TFormer's goldens: features, logits, losses and gradients. Inputs are drawn, NCHW."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from golden_check import GRADIENT, VALUE, Computed
from golden_weights import GOLDEN_DIR, nhwc

from dmfnet_jax.methods.method import STATS, variables
from dmfnet_jax.methods.tformer import METHOD, published, stages
from dmfnet_jax.methods.tformer.networks import BACKBONE, CLASSIFIER, MetaBranch

HEADS = {
  "diag": "diagnosis",
  "pn": "pigment_network",
  "bwv": "blue_whitish_veil",
  "vs": "vascular_structures",
  "pig": "pigmentation",
  "str": "streaks",
  "dag": "dots_and_globules",
  "rs": "regression_structures",
}
LAST = ("stage3", "norm")  # where the program calls the dermoscopic picture's first
INPUTS = ("seed", "batch", "targets")
# Which module here is which there, where features of it are stored.
MODULES = {
  "patch_embed": (BACKBONE, "embed_norm"),
  "stage0_block1": (BACKBONE, "stage0", "block1"),
  **{f"stage{i}": (BACKBONE, f"stage{i}") for i in range(4)},
  "norm": (BACKBONE, "norm"),
  **{f"fusion_block{i}_{k}": (CLASSIFIER, f"fuse{i}", k) for i in range(4) for k in (0, 1)},
  "downsample_cli_0": (CLASSIFIER, "merge0_clinical"),
  "meta_subnet": (CLASSIFIER, "meta"),
  "fusion_head_cli": (CLASSIFIER, "pooled_clinical"),
  "fusion_head_der": (CLASSIFIER, "pooled_dermoscopic"),
  "fusion_meta": (CLASSIFIER, "post"),
}


def draw_params(draw):
  def weight(key, shape):
    z = draw(key, shape)  # 0.1 z where it is a statistic
    return 1 + np.abs(z) if key.endswith("running_var") else z

  shapes = json.loads((GOLDEN_DIR / "tformer_state_dict.json").read_text())["model"]
  state = {key: weight(key, shape) for key, shape in shapes.items()}
  return published.from_torch({"model": state})


def inputs(seed, batch):
  """Both pictures [B, 3, 224, 224] and the facts, as the golden's page draws them."""
  rng = np.random.default_rng(int(seed))
  clinical, dermoscopic = (rng.random((batch, 3, 224, 224), np.float32) for _ in range(2))
  facts = rng.integers(0, 2, (batch, 20)).astype(np.float32)
  ramp = np.arange(224, dtype=np.float32) / np.float32(223)
  return clinical * ramp[:, None], dermoscopic * ramp, facts


class Watched:
  """A network that keeps what its modules gave when it was applied."""

  def __init__(self, network):
    self._network = network

  def apply(self, *args, mutable=()):
    both = [*mutable, "intermediates"]
    result, changed = self._network.apply(*args, mutable=both, capture_intermediates=True)
    self.seen = changed["intermediates"]
    return (result, changed) if mutable else result


def features_of(seen, batch):
  """Every module's first result; of the last stage that is the dermoscopic picture's."""
  found = {}
  for name, (network, *path) in MODULES.items():
    x = seen[network]
    for word in path:
      x = x[word] if isinstance(word, str) else x["__call__"][0][word]
    x = np.asarray(x["__call__"][0] if isinstance(x, dict) else x)
    if name.startswith("fusion_head"):
      x = np.maximum(x, 0)  # there the ReLU is a part of the module
    if x.ndim == 4:  # of the backbone the clinical pictures, and then the dermoscopic ones
      tokens = x[batch if name in LAST else 0].reshape(-1, x.shape[-1])
      x = tokens[:: len(tokens) // 49, :24]
    found[f"feat_{name}"] = x
  return found


def compute(arrays, draw):
  """See `golden_check`. A file without gradients is spared them, which take long to compile."""
  params, model_config = draw_params(draw)
  config = METHOD.defaults(1) | model_config
  networks = stages.build(config)
  cli, der, facts = inputs(arrays["seed"], int(arrays["batch"]))
  found = {"meta": facts}
  for name, x in (("cli_check", cli), ("der_check", der)):
    found[name] = np.array([x.astype(np.float64).sum(), x[0, 1, 100, 50]])
  # There blue stands first; the method turns red, green and blue around.
  images = {"clinical": nhwc(cli)[..., ::-1], "dermoscopic": nhwc(der)[..., ::-1], "facts": facts}
  targets = arrays["targets"].T

  @jax.jit
  def judge(params):
    watched = {name: Watched(network) for name, network in networks.items()}
    logits, _ = stages.judge(watched, config, params, images)
    return logits, {name: network.seen for name, network in watched.items()}

  def loss(logits):
    value, terms = stages.cross_entropies(logits, targets)
    return jnp.mean(value), jax.tree.map(jnp.mean, terms)

  logits, seen = judge(params)
  found |= features_of(seen, len(facts))
  (total, means), of_logits = jax.value_and_grad(loss, has_aux=True)(logits)
  found |= {"loss_total": total, "grad_logits_diag": of_logits["diagnosis"]}
  for theirs, ours in HEADS.items():
    found[f"logits_{theirs}"], found[f"loss_{theirs}"] = logits[ours], means[ours]
  if any(name.startswith("grad:") for name in arrays):

    @jax.jit
    @jax.grad
    def gradient(trained):
      of_all = {**trained, STATS: params[STATS]}
      return loss(stages.judge(networks, config, of_all, images)[0])[0]

    gradients = gradient({name: params[name] for name in networks})
    found |= {f"grad:{key}": value for key, value in published.to_torch(gradients).items()}
  known = {kind: tree["meta"] for kind, tree in variables(params, CLASSIFIER).items()}
  branch = MetaBranch(config["network"]["features"])
  given = arrays["meta_train_input"]
  found["meta_train_output"], _ = branch.apply(known, given, train=True, mutable=["batch_stats"])
  computed = {name: Computed(arrays[name], 0.0) for name in (*INPUTS, "meta_train_input")}
  for name in arrays.keys() & found.keys():
    computed[name] = Computed(found[name], GRADIENT if name.startswith("grad") else VALUE)
  return computed
