"""Metadata of what lorakit writes: ss_* and modelspec.* for other programs, lorakit.* for the record.

No date and no path is written: the same inputs give the same bytes, and a shared file says nothing
about its maker's disk.
"""

from __future__ import annotations

from ...run.inputs import Input
from .baked import baked_metadata
from .common import HASH_KEYS, Operation, Result, Source, history, room_for
from .edited import edited_metadata
from .extraction import extraction_metadata, metadata_room
from .joined import joined_metadata

__all__ = [
    "HASH_KEYS",
    "Input",
    "Operation",
    "Result",
    "Source",
    "baked_metadata",
    "edited_metadata",
    "extraction_metadata",
    "history",
    "joined_metadata",
    "metadata_room",
    "room_for",
]
