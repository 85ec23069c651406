"""The core of lorakit: operations on tensors, files and names; knows neither click nor ComfyUI."""

from __future__ import annotations

from .adapter import Adapter
from .add import add
from .bake import bake
from .compare import compare
from .convert import convert
from .devices import Placement, place
from .errors import LoraOpsError
from .extract import extract
from .extract_file import extract_file, plan_file
from .files import open_source
from .formats import decode
from .info import describe
from .ingredients import Ingredient
from .layers import FullLayer, LoraLayer
from .lint import lint
from .plan import Plan, plan_extraction
from .ranks import RankRule, parse_rank
from .report import LayerReport, Report, Skip
from .resize import resize
from .save import save_adapter
from .scale import scale
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
    "DictSource",
    "FullLayer",
    "Ingredient",
    "LayerReport",
    "LoraLayer",
    "LoraOpsError",
    "Placement",
    "Plan",
    "RankRule",
    "Report",
    "Skip",
    "TensorSource",
    "Term",
    "add",
    "bake",
    "collect",
    "compare",
    "convert",
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
    "place",
    "plan_extraction",
    "plan_file",
    "resize",
    "save_adapter",
    "scale",
    "set_strength",
    "store_frozen",
    "unmerge",
    "verify",
]
