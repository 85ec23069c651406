"""Merge: checkpoints into one, by a recipe of methods."""
