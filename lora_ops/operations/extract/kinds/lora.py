"""The change as a LoRA: its truncated singular value decomposition."""

from __future__ import annotations

from ....adapters.layers import low_rank
from .change import Change, Made


def make_lora(change: Change) -> Made:
    """Return the best LoRA of the rank that the rule gives (Eckart and Young, 1936)."""
    up, down = change.cut(change.delta).factors()
    return Made(low_rank(up, down, change.shape, alpha=float(down.shape[0])))
