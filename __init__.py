"""lorakit: LoRA adapters from model differences, and everything done to them afterwards.

This folder is both the pip package ``lorakit`` and a ComfyUI node pack; importing it loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .nodes.extension import LorakitExtension


# Where ComfyUI finds the help pages of the nodes.
WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> LorakitExtension:
    """What ComfyUI calls to get the nodes."""
    from .nodes.extension import LorakitExtension

    return LorakitExtension()
