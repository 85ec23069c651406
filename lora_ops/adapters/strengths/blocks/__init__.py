"""Blocks of diffusion models: which block a layer lies in, and the lists that users have for them."""

from __future__ import annotations

from .located import Block, Blocks, flat, locate
from .order import ordered
from .schemes import ALL_BLOCKS, BANDS, LABELLED, PRESETS, SCHEMES, Scheme

__all__ = [
    "ALL_BLOCKS",
    "BANDS",
    "LABELLED",
    "PRESETS",
    "SCHEMES",
    "Block",
    "Blocks",
    "Scheme",
    "flat",
    "locate",
    "ordered",
]
