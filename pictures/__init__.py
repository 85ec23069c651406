"""Pictures of adapters and checkpoints, for the nodes and the command line: numbers, then shapes, then pixels."""

from __future__ import annotations

from .adapters import comparison_picture, inspection_picture
from .checkpoints import checkpoints_picture

__all__ = ["checkpoints_picture", "comparison_picture", "inspection_picture"]
