"""Training recipes, one file per method. Installed as `dmfnet_jax.configs`."""
