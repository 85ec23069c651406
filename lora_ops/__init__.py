"""The core of lorakit: operations on tensors, files and names; knows neither click nor ComfyUI.

What is named here is the public Python interface: docs/api.md is made from it, and examples/ use it.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import SourceLoader

    from .adapters.adapter import Adapter
    from .adapters.edited import EditReport
    from .adapters.formats import decode
    from .adapters.layers import Convention, FullLayer, Layer, LoraLayer
    from .adapters.matching.group import Term
    from .adapters.metadata.described import Described, described, trigger_words
    from .adapters.metadata.sidecar import Sidecar, read_sidecar
    from .adapters.metadata.thumbnail import Thumbnail
    from .adapters.strengths.ingredient import Ingredient
    from .elements import Element
    from .errors import (
        ArgumentError,
        FormatError,
        LayerShapeError,
        LoraOpsError,
        MismatchError,
        MissingPartsError,
        NonFiniteError,
        QuantisedError,
        TargetMismatchError,
        UnknownFormatError,
        UnsafePickleError,
        UnsupportedLayerError,
        WeightShapeError,
        WriteError,
    )
    from .files import FileSource, MemoryFile, Output, open_source, read_metadata
    from .inspect.compare import Comparison, LayerComparison, compare
    from .inspect.compare_checkpoints import (
        CheckpointComparison,
        GroupComparison,
        Likeness,
        ParameterComparison,
        compare_checkpoints,
    )
    from .inspect.compare_several import LayerConflict, SeveralComparison, compare_several
    from .inspect.conflict import Conflict
    from .inspect.info import Info, Part, describe
    from .inspect.lint import Finding, Lint, Read, Verdict, lint
    from .inspect.spectra import Spectrum, spectra
    from .inspect.verify import verify
    from .inspect.verify_merge import MergeCheck, verify_merge
    from .linalg.ranks.budgets import Budget, parse_rule
    from .linalg.ranks.rules import RankRule, parse_rank
    from .models.architectures import Architecture, architecture_named
    from .models.pairing import Pair, Pairing
    from .operations.add.add import add
    from .operations.add.file import add_files
    from .operations.add.plan import AddOptions, plan_add_files
    from .operations.bake.bake import bake
    from .operations.bake.file import bake_file, plan_bake_file
    from .operations.bake.plan import BakePlan, plan_bake
    from .operations.bake.preview import preview_bake
    from .operations.control.bake import (
        bake_control_file,
        is_control_lora,
        plan_control_bake_file,
        preview_control_bake,
    )
    from .operations.control.file import extract_control_file
    from .operations.control.plan import (
        ControlOptions,
        ControlPlan,
        plan_control_file,
        preview_control,
    )
    from .operations.convert.convert import convert
    from .operations.convert.file import convert_file
    from .operations.convert.plan import ConvertOptions, plan_convert_file
    from .operations.convert.save import save_adapter
    from .operations.edit import EditPlan
    from .operations.extract.extract import extract
    from .operations.extract.file import extract_file, plan_file
    from .operations.extract.foretold import preview_extraction
    from .operations.extract.many import extract_files, preview_files
    from .operations.extract.peft_plan import Embeddings
    from .operations.extract.plan import Plan, PlanOptions, plan_extraction
    from .operations.merge.file import merge_file, plan_merge_file
    from .operations.merge.loras import recipe_of_loras
    from .operations.merge.merge import MergedSource, MergeOptions, MergeReport, merge
    from .operations.merge.plan import MergePlan, plan_merge
    from .operations.merge.preview import preview_merge
    from .operations.merge.recipes.ancestry import Ancestor
    from .operations.merge.recipes.document import as_toml, parse_document, read_recipe
    from .operations.merge.recipes.expression import parse_line
    from .operations.merge.recipes.find import Found, find_files
    from .operations.merge.recipes.opening import open_recipe
    from .operations.merge.recipes.recipe import Recipe, RecipeFile
    from .operations.metadata.edit import MetadataEdit, edit_metadata
    from .operations.metadata.file import MetadataReport, edit_metadata_file
    from .operations.metadata.plan import MetadataPlan, plan_metadata_file
    from .operations.preview import PlannedLayer, Preview
    from .operations.requantise.file import requantise_file
    from .operations.requantise.plan import RequantisePlan, plan_requantise_file
    from .operations.requantise.preview import preview_requantise
    from .operations.resize.file import resize_file
    from .operations.resize.plan import ResizeOptions, plan_resize_file
    from .operations.resize.resize import resize
    from .operations.scale.file import scale_file
    from .operations.scale.plan import plan_scale_file
    from .operations.scale.scale import scale
    from .operations.weights.change import BakedLayer
    from .parts.processes import Processes
    from .parts.ray_engine import RayTasks
    from .parts.whole import Division
    from .report import LayerReport, Report, Rounding, Skip, Weighted
    from .run.devices import Placement, place
    from .run.workers import Progress
    from .source import DictSource, TensorSource
    from .training import (
        collect,
        disable,
        eject,
        enable,
        inject,
        merge_into,
        record,
        set_strength,
        store_frozen,
        unmerge,
    )
    from .training.record import Recorder

__all__ = [
    "Adapter",
    "AddOptions",
    "Ancestor",
    "Architecture",
    "ArgumentError",
    "BakePlan",
    "BakedLayer",
    "Budget",
    "CheckpointComparison",
    "Comparison",
    "Conflict",
    "ControlOptions",
    "ControlPlan",
    "Convention",
    "ConvertOptions",
    "Described",
    "DictSource",
    "Division",
    "EditPlan",
    "EditReport",
    "Element",
    "Embeddings",
    "FileSource",
    "Finding",
    "FormatError",
    "Found",
    "FullLayer",
    "GroupComparison",
    "Info",
    "Ingredient",
    "Layer",
    "LayerComparison",
    "LayerConflict",
    "LayerReport",
    "LayerShapeError",
    "Likeness",
    "Lint",
    "LoraLayer",
    "LoraOpsError",
    "MemoryFile",
    "MergeCheck",
    "MergeOptions",
    "MergePlan",
    "MergeReport",
    "MergedSource",
    "MetadataEdit",
    "MetadataPlan",
    "MetadataReport",
    "MismatchError",
    "MissingPartsError",
    "NonFiniteError",
    "Output",
    "Pair",
    "Pairing",
    "ParameterComparison",
    "Part",
    "Placement",
    "Plan",
    "PlanOptions",
    "PlannedLayer",
    "Preview",
    "Processes",
    "Progress",
    "QuantisedError",
    "RankRule",
    "RayTasks",
    "Read",
    "Recipe",
    "RecipeFile",
    "Recorder",
    "Report",
    "RequantisePlan",
    "ResizeOptions",
    "Rounding",
    "SeveralComparison",
    "Sidecar",
    "Skip",
    "Spectrum",
    "TargetMismatchError",
    "TensorSource",
    "Term",
    "Thumbnail",
    "UnknownFormatError",
    "UnsafePickleError",
    "UnsupportedLayerError",
    "Verdict",
    "WeightShapeError",
    "Weighted",
    "WriteError",
    "add",
    "add_files",
    "architecture_named",
    "as_toml",
    "bake",
    "bake_control_file",
    "bake_file",
    "collect",
    "compare",
    "compare_checkpoints",
    "compare_several",
    "convert",
    "convert_file",
    "decode",
    "describe",
    "described",
    "disable",
    "edit_metadata",
    "edit_metadata_file",
    "eject",
    "enable",
    "extract",
    "extract_control_file",
    "extract_file",
    "extract_files",
    "find_files",
    "inject",
    "is_control_lora",
    "lint",
    "merge",
    "merge_file",
    "merge_into",
    "open_recipe",
    "open_source",
    "parse_document",
    "parse_line",
    "parse_rank",
    "parse_rule",
    "place",
    "plan_add_files",
    "plan_bake",
    "plan_bake_file",
    "plan_control_bake_file",
    "plan_control_file",
    "plan_convert_file",
    "plan_extraction",
    "plan_file",
    "plan_merge",
    "plan_merge_file",
    "plan_metadata_file",
    "plan_requantise_file",
    "plan_resize_file",
    "plan_scale_file",
    "preview_bake",
    "preview_control",
    "preview_control_bake",
    "preview_extraction",
    "preview_files",
    "preview_merge",
    "preview_requantise",
    "read_metadata",
    "read_recipe",
    "read_sidecar",
    "recipe_of_loras",
    "record",
    "requantise_file",
    "resize",
    "resize_file",
    "save_adapter",
    "scale",
    "scale_file",
    "set_strength",
    "spectra",
    "store_frozen",
    "trigger_words",
    "unmerge",
    "verify",
    "verify_merge",
]


@cache
def _homes() -> dict[str, str]:
    """The module of each name, by the imports above, which nobody runs: few programs need all, some no torch."""
    loader = cast("SourceLoader", __loader__)
    read = ast.walk(ast.parse(loader.get_source(__name__) or ""))
    found = [one for one in read if isinstance(one, ast.ImportFrom) and one.level == 1]
    return {alias.name: f".{one.module}" for one in found for alias in one.names}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    if name not in _homes():
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    found = globals()[name] = getattr(import_module(_homes()[name], __name__), name)
    return found


def __dir__() -> list[str]:
    """All that can be asked for."""
    return sorted({*globals(), *_homes()})
