"""Recipes that change one part of `small_*`."""
