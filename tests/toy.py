"""A method of one network of three numbers, as a user's own would be: it compiles in no time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dmfnet_jax.methods.method import Loss, Method, Stage, Update

PARAMS = {"w": np.array([0.5, -1.0], np.float32), "c": np.array(0.1, np.float32)}
NAME = "toy:METHOD"

TRACED = []  # whether each loss that was traced so far is one of training
# What `WATCHED` calls by the name "step", on the host, with the number of every train step before
# its loss is known; the answer is added to the loss.
WATCHERS = {"step": lambda step: 0.0}


def predict(params, images, keys):
  """[B, H, W, 1]: the first source and noise, weighed."""
  noise = jax.vmap(jax.random.normal)(keys)[:, None, None, None]
  return params["toy"]["w"][0] * images["a"] + params["toy"]["w"][1] * noise + params["toy"]["c"]


def loss(params, batch, context):
  """The mean square of what is missing to the second source."""
  TRACED.append(context.train)
  value = jnp.mean((predict(params, batch, context.keys) - batch["b"]) ** 2, axis=(1, 2, 3))
  return Loss(value, {"twice": 2 * value})


def stage(config):
  """Trains the three numbers."""
  return Stage(
    init=lambda key: {"toy": jax.tree.map(jnp.asarray, PARAMS)},
    updates=(Update(loss, ("toy",)),),
    draw=lambda params, images, keys: {"a": images["a"]},
  )


METHOD = Method(
  defaults=lambda stage: {"toy": {"width": 8}},
  model=("toy",),
  stages={1: stage},
  networks=("toy",),
  fuse=lambda config, compute: lambda *args: {"fused": jnp.clip(predict(*args), -1, 1)},
  is_random=True,
)


def watched_stage(config):
  """The same, but for what `WATCHERS` add."""

  def watched(params, batch, context):
    computed = loss(params, batch, context)
    if not context.train:
      return computed
    added = jax.pure_callback(
      lambda progress: np.float32(WATCHERS["step"](round(progress * config.num_train_steps) + 1)),
      jax.ShapeDtypeStruct((), jnp.float32),
      context.progress,
    )
    return computed._replace(value=computed.value + added)

  return dataclasses.replace(stage(config), updates=(Update(watched, ("toy",)),))


WATCHED = dataclasses.replace(METHOD, stages={1: watched_stage})
