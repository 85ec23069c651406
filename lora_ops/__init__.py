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
from .ingredients import Ingredient, ingredient
from .layers import FullLayer, LoraLayer
from .plan import Plan, plan_extraction
from .ranks import RankRule, parse_rank
from .report import LayerReport, Report, Skip
from .resize import resize
from .scale import scale
from .source import DictSource, TensorSource
from .terms import Term
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
    "compare",
    "convert",
    "decode",
    "describe",
    "extract",
    "extract_file",
    "ingredient",
    "open_source",
    "parse_rank",
    "place",
    "plan_extraction",
    "plan_file",
    "resize",
    "scale",
    "verify",
]
