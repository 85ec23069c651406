"""All architectures, and which of them a checkpoint is of."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import ArgumentError
from ..parameter import Parameter
from .ace_step import ACE_STEP
from .architecture import Architecture
from .cogvideox import COGVIDEOX
from .cosmos import ANIMA, COSMOS
from .ernie import ERNIE
from .flux import CHROMA, FLUX, FLUX_SCHNELL
from .flux2 import FLUX2
from .flux_kin import BRIA, LONGCAT, OVIS
from .hidream import HIDREAM
from .hunyuan3d import HUNYUAN3D, HUNYUAN3D_2_1
from .hunyuan_video import HUNYUAN_VIDEO
from .ideogram4 import IDEOGRAM4
from .joyimage import JOYIMAGE
from .kandinsky5 import KANDINSKY5
from .krea2 import KREA2
from .lens import LENS
from .ltxv import LTXV
from .minimax_h3 import MINIMAX_H3
from .minimax_music import MINIMAX_MUSIC
from .mmdit import AURAFLOW, SD3
from .mochi import MOCHI
from .next_dit import LUMINA2, Z_IMAGE
from .omnigen2 import BOOGU, OMNIGEN2
from .pixart import HUNYUAN_DIT, PIXART
from .qwen_image import MAGE_FLOW, QWEN_IMAGE
from .seedvr2 import SEEDVR2
from .stable_audio import STABLE_AUDIO
from .stable_cascade import STABLE_CASCADE
from .stable_diffusion import (
    BK_SDM,
    BK_SDM_TINY,
    BK_SDM_V2,
    BK_SDM_V2_TINY,
    KOALA,
    SD1,
    SD2,
    SDXL,
    SDXL_REFINER,
    SVD,
)
from .wan import HELIOS, WAN

# In order: of several models that have a file's names, the first is the likeliest; of several whose
# conditions a checkpoint meets, the first is taken.
ARCHITECTURES: tuple[Architecture, ...] = (
    SD1,
    SD2,
    SDXL,
    SVD,
    SDXL_REFINER,
    KOALA,
    BK_SDM,
    BK_SDM_TINY,
    BK_SDM_V2,
    BK_SDM_V2_TINY,
    FLUX,
    FLUX_SCHNELL,
    CHROMA,
    HUNYUAN_VIDEO,
    FLUX2,
    QWEN_IMAGE,
    MAGE_FLOW,
    SD3,
    WAN,
    LTXV,
    ANIMA,
    COSMOS,
    Z_IMAGE,
    LUMINA2,
    HIDREAM,
    KREA2,
    AURAFLOW,
    PIXART,
    HUNYUAN_DIT,
    KANDINSKY5,
    STABLE_CASCADE,
    BRIA,
    LONGCAT,
    OVIS,
    HELIOS,
    OMNIGEN2,
    BOOGU,
    JOYIMAGE,
    LENS,
    IDEOGRAM4,
    ERNIE,
    COGVIDEOX,
    MOCHI,
    HUNYUAN3D,
    HUNYUAN3D_2_1,
    SEEDVR2,
    MINIMAX_H3,
    MINIMAX_MUSIC,
    STABLE_AUDIO,
    ACE_STEP,
)


def architecture_named(name: str) -> Architecture:
    """Return the architecture of that short name.

    Raises:
        ArgumentError: There is no such architecture.
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
