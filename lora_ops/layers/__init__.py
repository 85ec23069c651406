"""What the change of one weight can be: one frozen dataclass a kind, all with the same face.

Every kind gives its ``delta`` (out, in, *kernel), ``shape``, ``rank``, ``scale``, ``dtype`` and its
``tensors`` by role.
"""

from __future__ import annotations

from typing import TypeAlias

from .full import FullLayer
from .lora import LoraLayer, low_rank

Layer: TypeAlias = LoraLayer | FullLayer

__all__ = ["FullLayer", "Layer", "LoraLayer", "low_rank"]
