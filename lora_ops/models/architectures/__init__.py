"""What models call their parameters: data, and the renaming of any file's names to one scheme."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..parameter import TABLES, Component, Parameter, Piece
from .architecture import UNET, Architecture, Condition, Kohya, Size
from .catalogue import ARCHITECTURES, architecture_named, detect
from .encoders import TE, encoder_title
from .language import is_language_model
from .lookup import ENCODERS, module_renames
from .recognition import Recognition, Shape, recognise_layers
from .renames import ModelRows, Packing, Renames
from .unet_blocks import Layout, UnetNames, layout_names, unet_names

if TYPE_CHECKING:
    from ..parameters import naming, own_parameters, parameters

# What is asked for here, and stands on all of this: it is imported when it is asked for.
_READING = ("naming", "own_parameters", "parameters")

__all__ = [
    "ARCHITECTURES",
    "ENCODERS",
    "TABLES",
    "TE",
    "UNET",
    "Architecture",
    "Component",
    "Condition",
    "Kohya",
    "Layout",
    "ModelRows",
    "Packing",
    "Parameter",
    "Piece",
    "Recognition",
    "Renames",
    "Shape",
    "Size",
    "UnetNames",
    "architecture_named",
    "detect",
    "encoder_title",
    "is_language_model",
    "layout_names",
    "module_renames",
    "naming",
    "own_parameters",
    "parameters",
    "recognise_layers",
    "unet_names",
]


def __getattr__(name: str) -> Any:
    """Import what reads names by these tables."""
    if name not in _READING:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module("..parameters", __name__), name)
