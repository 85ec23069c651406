"""Which weights stay whole where a model is quantised: those that are few, and on which much depends.

The lists follow the programs that write such files: the first and the last layers, what turns times,
prompts and sizes into vectors, and modulations that all blocks share or that are small. Modulations of
single blocks that are a large part of the model (a quarter of Flux.1, a third of Qwen-Image) are not
in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_FIRST = "img_in|txt_in|time_in|vector_in|guidance_in|text_in|cond_seq_linear|init_x_linear|patchify_proj"
_LAST = "final_layer|final_linear|head|unpatchify"
_VECTORS = r"\w*embed\w*|label_emb|emb_layers|img_emb|time_projection|adaln_single|distilled_guidance_layer"
# Routers of mixtures of experts: a few rows that decide over all others, and no linear layers in ComfyUI.
_OTHERS = r"\w*norm\w*|gate|router"

#: Of any model: parts of a weight's native name.
_ANYWHERE = re.compile(rf"(?:^|\.)(?:{_FIRST}|{_LAST}|{_VECTORS}|{_OTHERS})(?:\.|$)", re.IGNORECASE)
#: Of any model: how a native name begins.
_OUTERMOST = re.compile(r"(?:proj_in|proj_out|caption_projection|input_blocks\.0\.0|out\.2)\.")
#: By the short name of an architecture: what it has besides, anywhere in a name.
_BESIDES: Mapping[str, str] = {
    "flux2": r"stream_modulation",
    "qwen_image": r"^transformer_blocks\.0\.(?:img|txt)_mod\.",
    "z_image": r"adaLN_modulation|_refiner\.",
    "lumina2": r"adaLN_modulation|_refiner\.",
    "ltxv": r"^transformer_blocks\.[01]\.",
}


def stays_whole(name: str, architecture: str | None) -> bool:
    """Whether a matrix of a diffusion model is left as it is where the model is quantised.

    Args:
        name: Its native name, without the model's: `double_blocks.0.img_attn.qkv.weight`.
        architecture: Short name of the model's architecture; None where it is unknown.
    """
    if _ANYWHERE.search(name) or _OUTERMOST.match(name):
        return True
    more = _BESIDES.get(architecture or "")
    return more is not None and re.search(more, name) is not None
