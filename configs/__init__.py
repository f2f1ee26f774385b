"""Training recipes, one a file. Installed as `dmfnet_jax.configs`."""
