"""What diffusion models are called in GGUF files, and how their tensors lie there.

The names are those that ComfyUI-GGUF takes; a model that it does not know is not loaded. Models of one
family share a name, since its loader tells them apart by their tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

#: `general.architecture`, by the short name of ours.
GGUF_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("sd1", "sd2", "bk_sdm", "bk_sdm_tiny", "bk_sdm_v2", "bk_sdm_v2_tiny"), "sd1"),
    **dict.fromkeys(("sdxl", "sdxl_refiner", "koala"), "sdxl"),
    **dict.fromkeys(("flux", "flux_schnell", "chroma", "flux2"), "flux"),
    **dict.fromkeys(("cosmos", "anima"), "cosmos"),
    **dict.fromkeys(("lumina2", "z_image"), "lumina2"),
    "hunyuan_video": "hyvid",
    "qwen_image": "qwen_image",
    "sd3": "sd3",
    "auraflow": "aura",
    "hidream": "hidream",
    "ltxv": "ltxv",
    "wan": "wan",
}
#: Those whose kernels are written in blocks, too, in rows of 256, with their shape beside them.
WITH_KERNELS = ("sd1", "sdxl")
ROW = 256

# A parameter of no layer is used as it is stored, and must be no bfloat16 then. HiDream's routers are some.
_ROUTER = re.compile(r"\.ff_i\.gate\.weight$")
_SMALL = 1024  # numbers
_MOST_DIMS = 4


def is_float32(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is always written as float32: vectors, parameters of no layer, and the small ones.

    Kernels of five axes are, too: as published files have them.

    Args:
        name: Its native name, without the model's.
        shape: Of its numbers.
    """
    if not 1 < len(shape) <= _MOST_DIMS or math.prod(shape) <= _SMALL:
        return True
    return not name.endswith(".weight") or _ROUTER.search(name) is not None
