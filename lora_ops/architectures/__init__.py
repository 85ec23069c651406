"""What models call their parameters: data, and the renaming of any file's names to one scheme."""

from __future__ import annotations

from .architecture import UNET, Architecture, Condition, Kohya, Size, TargetRule
from .canonical import naming, parameters
from .catalogue import ARCHITECTURES, architecture_named, detect, detect_targets
from .encoders import TE
from .language import is_language_model
from .lookup import ENCODERS, module_renames
from .parameter import Component, Parameter
from .renames import Packing, Place, Renames
from .unet_blocks import UnetNames, unet_names

__all__ = [
    "ARCHITECTURES",
    "ENCODERS",
    "TE",
    "UNET",
    "Architecture",
    "Component",
    "Condition",
    "Kohya",
    "Packing",
    "Parameter",
    "Place",
    "Renames",
    "Size",
    "TargetRule",
    "UnetNames",
    "architecture_named",
    "detect",
    "detect_targets",
    "is_language_model",
    "module_renames",
    "naming",
    "parameters",
    "unet_names",
]
