"""What models call their parameters: data, and the renaming of any file's names to one scheme."""

from __future__ import annotations

from ..parameter import TABLES, Component, Parameter, Piece
from ..parameters import naming, own_parameters, parameters
from .architecture import UNET, Architecture, Condition, Kohya, Size
from .catalogue import ARCHITECTURES, architecture_named, detect
from .encoders import TE, encoder_title
from .language import is_language_model
from .lookup import ENCODERS, module_renames
from .recognition import Recognition, Shape, recognise_layers
from .renames import ModelRows, Packing, Renames
from .unet_blocks import Layout, UnetNames, layout_names, unet_names

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
