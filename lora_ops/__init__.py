"""The core of lorakit: operations on tensors, files and names; knows neither click nor ComfyUI."""

from __future__ import annotations

from .adapter import Adapter
from .devices import Placement, place
from .errors import LoraOpsError
from .extract import extract
from .extract_file import extract_file, plan_file
from .files import open_source
from .info import describe
from .layers import FullLayer, LoraLayer
from .plan import Plan, plan_extraction
from .ranks import RankRule, parse_rank
from .report import LayerReport, Report, Skip
from .source import DictSource, TensorSource
from .verify import verify

__all__ = [
    "Adapter",
    "DictSource",
    "FullLayer",
    "LayerReport",
    "LoraLayer",
    "LoraOpsError",
    "Placement",
    "Plan",
    "RankRule",
    "Report",
    "Skip",
    "TensorSource",
    "describe",
    "extract",
    "extract_file",
    "open_source",
    "parse_rank",
    "place",
    "plan_extraction",
    "plan_file",
    "verify",
]
