"""The extension that ComfyUI loads: the list of nodes, and what old nodes they can take over from."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .add_loras import AddLoras
from .apply_lora import ApplyLora
from .bake_lora import BakeLora
from .compare_loras import CompareLoras
from .convert_lora import ConvertLora
from .extract_and_save import ExtractAndSave
from .extract_from_files import ExtractFromFiles
from .extract_lora import ExtractLora
from .inspect_lora import InspectLora
from .load_lora import LoadLora
from .lora_stack import LoraToStack, StackToLora
from .resize_file import ResizeFile
from .resize_lora import ResizeLora
from .save_lora import SaveLora
from .scale_lora import ScaleLora

NODES: tuple[type[io.ComfyNode], ...] = (
    LoadLora,
    ApplyLora,
    ScaleLora,
    AddLoras,
    ResizeLora,
    ResizeFile,
    ExtractLora,
    ExtractFromFiles,
    ExtractAndSave,
    ConvertLora,
    SaveLora,
    BakeLora,
    InspectLora,
    CompareLoras,
    StackToLora,
    LoraToStack,
)


class LorakitExtension(ComfyExtension):
    """All nodes of lorakit."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes."""
        return list(NODES)
