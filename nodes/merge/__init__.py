"""Nodes that merge checkpoints: files, loaded models, recipes."""
