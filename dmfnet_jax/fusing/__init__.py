"""The fuse and evaluate commands: what belongs together, streaming, resuming."""
