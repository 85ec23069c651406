"""Pictures of adapters and checkpoints, for the nodes and the command line: numbers, then shapes, then pixels."""

from __future__ import annotations

from .adapters import comparison_picture, inspection_picture
from .checkpoints import checkpoints_picture
from .conflict import conflict_picture
from .weights import block_weights_picture

__all__ = [
    "block_weights_picture",
    "checkpoints_picture",
    "comparison_picture",
    "conflict_picture",
    "inspection_picture",
]
