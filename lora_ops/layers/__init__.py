"""What the change of one weight can be: one frozen dataclass a kind, all with the same face.

Every kind gives its ``delta`` (out, in, *kernel), ``rank``, ``scale`` and ``dtype``.
"""

from __future__ import annotations

from typing import TypeAlias

from .full import FullLayer
from .lora import LoraLayer

Layer: TypeAlias = LoraLayer | FullLayer

__all__ = ["FullLayer", "Layer", "LoraLayer"]
