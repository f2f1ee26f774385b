"""Weights: model files, released models, and what a training workdir holds."""

from dmfnet_jax.weights.find import load_params

__all__ = ["load_params"]
