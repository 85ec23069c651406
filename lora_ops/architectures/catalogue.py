"""All architectures, and which of them a model or an adapter is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import ArgumentError
from .architecture import Architecture
from .cosmos import ANIMA, COSMOS
from .flux import CHROMA, FLUX, FLUX_SCHNELL
from .flux2 import FLUX2
from .hidream import HIDREAM
from .hunyuan_video import HUNYUAN_VIDEO
from .kandinsky5 import KANDINSKY5
from .krea2 import KREA2
from .ltxv import LTXV
from .mmdit import AURAFLOW, SD3
from .next_dit import LUMINA2, Z_IMAGE
from .parameter import Parameter
from .pixart import HUNYUAN_DIT, PIXART
from .qwen_image import QWEN_IMAGE
from .stable_cascade import STABLE_CASCADE
from .stable_diffusion import SD1, SD2, SDXL, SDXL_REFINER
from .wan import WAN

# The order decides: whoever has all of another's names and more stands before it.
ARCHITECTURES: tuple[Architecture, ...] = (
    HUNYUAN_VIDEO,
    FLUX2,
    CHROMA,
    FLUX,
    FLUX_SCHNELL,
    AURAFLOW,
    QWEN_IMAGE,
    SD3,
    ANIMA,
    COSMOS,
    WAN,
    Z_IMAGE,
    LUMINA2,
    HIDREAM,
    KREA2,
    KANDINSKY5,
    HUNYUAN_DIT,
    LTXV,
    PIXART,
    STABLE_CASCADE,
    SDXL,
    SDXL_REFINER,
    SD1,
    SD2,
)


def architecture_named(name: str) -> Architecture:
    """Return the architecture of that short name.

    Raises:
        ArgumentError: There is none.
    """
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    names = ", ".join(sorted(one.name for one in ARCHITECTURES))
    raise ArgumentError(f"unknown architecture `{name}`; it is one of {names}")


def detect(parameters: Mapping[str, Parameter]) -> Architecture | None:
    """Return the architecture of a checkpoint's diffusion model, or None if it is unknown.

    Args:
        parameters: By canonical name, as ``parameters`` gives them.
    """
    for architecture in ARCHITECTURES:
        if any(condition.holds(parameters) for condition in architecture.recognise):
            return architecture
    return None


def detect_targets(names: Iterable[str], width: int | None = None) -> tuple[Architecture, ...]:
    """Return the architectures that an adapter can be for, the likeliest first.

    Args:
        names: Module names without their prefix, with underscores for dots; those of a second text
            encoder begin with ``te2:``, as the names within all CLIP models are the same.
        width: Input features of the cross-attention's keys (``attn2.to_k``), if any is adapted: all
            that tells Stable Diffusion 1, 2 and XL apart in a shallow block.
    """
    listed = list(names)
    certain: list[Architecture] = []
    possible: list[Architecture] = []
    for architecture in ARCHITECTURES:
        rules = [rule for rule in architecture.targets if rule.holds(listed, width)]
        if rules:
            (possible if all(rule.shared for rule in rules) else certain).append(architecture)
    return (*certain, *possible)
