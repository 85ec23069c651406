"""The core of lorakit: operations on tensors, files and names; knows neither click nor ComfyUI.

What is named here is the public Python interface: docs/api.md is made from it, and examples/ use it.
"""

from __future__ import annotations

from .adapter import Adapter
from .add import add
from .add_file import add_files
from .architectures import Architecture, architecture_named
from .bake import bake
from .bake_file import bake_file, plan_bake_file
from .bake_plan import BakePlan, plan_bake
from .bake_tensor import BakedLayer
from .budgets import Budget, parse_rule
from .compare import Comparison, LayerComparison, compare
from .convert import convert
from .convert_file import convert_file
from .devices import Placement, place
from .edit import EditReport
from .errors import LoraOpsError
from .extract import extract
from .extract_file import extract_file, plan_file
from .files import FileSource, MemoryFile, Output, open_source
from .formats import decode
from .info import Info, Part, describe
from .ingredients import Ingredient
from .layers import Convention, FullLayer, Layer, LoraLayer
from .lint import Finding, Lint, Read, Verdict, lint
from .pairs import Pair, Pairing
from .parallel import Progress
from .plan import Plan, PlanOptions, plan_extraction
from .ranks import RankRule, parse_rank
from .report import LayerReport, Report, Skip
from .resize import resize
from .resize_file import resize_file
from .save import save_adapter
from .scale import scale
from .scale_file import scale_file
from .source import DictSource, TensorSource
from .terms import Term
from .training import (
    collect,
    disable,
    eject,
    enable,
    inject,
    merge_into,
    set_strength,
    store_frozen,
    unmerge,
)
from .verify import verify

__all__ = [
    "Adapter",
    "Architecture",
    "BakePlan",
    "BakedLayer",
    "Budget",
    "Comparison",
    "Convention",
    "DictSource",
    "EditReport",
    "FileSource",
    "Finding",
    "FullLayer",
    "Info",
    "Ingredient",
    "Layer",
    "LayerComparison",
    "LayerReport",
    "Lint",
    "LoraLayer",
    "LoraOpsError",
    "MemoryFile",
    "Output",
    "Pair",
    "Pairing",
    "Part",
    "Placement",
    "Plan",
    "PlanOptions",
    "Progress",
    "RankRule",
    "Read",
    "Report",
    "Skip",
    "TensorSource",
    "Term",
    "Verdict",
    "add",
    "add_files",
    "architecture_named",
    "bake",
    "bake_file",
    "collect",
    "compare",
    "convert",
    "convert_file",
    "decode",
    "describe",
    "disable",
    "eject",
    "enable",
    "extract",
    "extract_file",
    "inject",
    "lint",
    "merge_into",
    "open_source",
    "parse_rank",
    "parse_rule",
    "place",
    "plan_bake",
    "plan_bake_file",
    "plan_extraction",
    "plan_file",
    "resize",
    "resize_file",
    "save_adapter",
    "scale",
    "scale_file",
    "set_strength",
    "store_frozen",
    "unmerge",
    "verify",
]
