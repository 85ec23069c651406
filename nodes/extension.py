"""The extension that ComfyUI loads: the list of nodes, and what old nodes they can take over from."""

from __future__ import annotations

from .apply.apply_lora import ApplyLora
from .apply.schedule_loras import ScheduleLoras
from .edit.add_loras import AddLoras
from .edit.bake_lora import BakeLora
from .edit.block_sweep import BlockSweep
from .edit.convert_lora import ConvertLora
from .edit.edit_metadata import EditMetadata
from .edit.resize_file import ResizeFile
from .edit.resize_lora import ResizeLora
from .edit.scale_lora import ScaleLora
from .extract.extract_and_save import ExtractAndSave
from .extract.extract_control import ExtractControlLora
from .extract.extract_from_files import ExtractFromFiles
from .extract.extract_lora import ExtractLora
from .extract.record_activations import RecordActivations
from .extract.save_activations import SaveActivations
from .files.load_lora import LoadLora
from .files.lora_loader import LoraLoader
from .files.lora_stack import LoraToStack, StackToLora
from .files.save_lora import SaveLora
from .files.save_model import SaveModel
from .host import model_files
from .host.api import ComfyExtension, io
from .look.compare_loras import CompareLoras
from .look.inspect_lora import InspectLora
from .look.lora_info import LoraInfo
from .merge.block_weights import BlockWeights
from .merge.merge_checkpoints import MergeCheckpoints
from .merge.merge_models import MergeModels
from .merge.merge_recipe import LoadMergeRecipe, MergeRecipe
from .merge.read_recipe import ReadRecipe
from .merge.swap_parts import SwapParts

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
    LoraLoader,
    MergeCheckpoints,
    MergeRecipe,
    LoadMergeRecipe,
    ReadRecipe,
    MergeModels,
    BlockWeights,
    SwapParts,
    LoraInfo,
    EditMetadata,
    BlockSweep,
    SaveModel,
    ExtractControlLora,
    RecordActivations,
    SaveActivations,
    ScheduleLoras,
)


class LorakitExtension(ComfyExtension):
    """All nodes of lorakit."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes."""
        model_files.name_activations()
        return list(NODES)
