"""Bake: adapters into the weights of a checkpoint, and out again."""
