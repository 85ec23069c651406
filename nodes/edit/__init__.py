"""Adapters into other adapters, and into checkpoints."""
