"""Pictures of adapters, for the nodes and the command line: numbers, then shapes, then pixels."""

from __future__ import annotations

from .adapters import comparison_picture, inspection_picture

__all__ = ["comparison_picture", "inspection_picture"]
