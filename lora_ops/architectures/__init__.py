"""What models call their parameters: data, and the renaming of any file's names to one scheme."""

from __future__ import annotations

from .architecture import UNET, Architecture, Condition, Kohya, Size, TargetRule
from .canonical import naming, parameters
from .catalogue import ARCHITECTURES, detect, detect_targets
from .encoders import TE
from .parameter import Component, Parameter
from .unet_blocks import UnetNames, unet_names

__all__ = [
    "ARCHITECTURES",
    "TE",
    "UNET",
    "Architecture",
    "Component",
    "Condition",
    "Kohya",
    "Parameter",
    "Size",
    "TargetRule",
    "UnetNames",
    "detect",
    "detect_targets",
    "naming",
    "parameters",
    "unet_names",
]
