"""Fusing pictures: features, the compiled batched engine, models, files and their evaluation."""
