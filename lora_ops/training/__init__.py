"""Adapters in live torch modules: put in, trained, switched, merged, and collected into files; and what goes into layers, recorded."""

from __future__ import annotations

from .control import disable, enable, merge_into, set_strength, unmerge
from .freeze import store_frozen
from .inject import collect, eject, inject
from .record import record
from .targets import PRESETS

__all__ = [
    "PRESETS",
    "collect",
    "disable",
    "eject",
    "enable",
    "inject",
    "merge_into",
    "record",
    "set_strength",
    "store_frozen",
    "unmerge",
]
