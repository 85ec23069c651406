"""ComfyUI's interface for nodes, in the version that these are written for; no other file names it."""

from __future__ import annotations

try:
    from comfy_api.v0_0_2 import ComfyExtension, io, ui
except ImportError:  # a host that has left this version behind: what it calls the latest may do
    from comfy_api.latest import ComfyExtension, io, ui

__all__ = ["ComfyExtension", "io", "ui"]
