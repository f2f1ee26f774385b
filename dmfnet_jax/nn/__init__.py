"""Layers that methods share."""
