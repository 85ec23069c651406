"""lorakit: LoRA adapters from model differences, and everything done to them afterwards.

This folder is both the pip package ``lorakit`` and a ComfyUI node pack; importing it loads no torch.
"""

from __future__ import annotations

__version__ = "0.1.0"
