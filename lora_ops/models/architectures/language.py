"""Models of transformers whose own names are kept whole: GPT-2, BERT and their kin.

Their names may begin as a component of a pipeline does (`transformer.h.0.attn.c_attn`): here that is
part of the name. What ComfyUI knows as text encoders is in `encoders`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .encoders import Shapes

# One name of each family, whole.
_MARKS = re.compile(
    r"^(?:"
    # GPT-2, GPT-J, CodeGen, Falcon, BLOOM, StarCoder
    r"(?:transformer\.)?h\.\d+\.(?:attn|self_attention|mlp)\."
    # DistilBERT
    r"|(?:\w+\.)?transformer\.layer\.\d+\.attention\.q_lin\."
    # BERT, RoBERTa, ELECTRA, ViT
    r"|(?:\w+\.)?encoder\.layer\.\d+\.attention\.(?:self|attention)\.query\."
    # GPT-NeoX
    r"|(?:gpt_neox\.)?layers\.\d+\.attention\.query_key_value\."
    # MPT
    r"|transformer\.blocks\.\d+\.attn\.Wqkv\."
    # BART, OPT, Whisper
    r"|model\.(?:encoder|decoder)\.layers\.\d+\.self_attn\.q_proj\."
    r")"
)
_FUSED = re.compile(r"(?:^|\.)h\.\d+\.attn\.c_attn\.weight$")
_CONV1D = re.compile(
    r"(?:^|\.)h\.\d+\.(?:(?:attn|crossattention)\.(?:c_attn|q_attn|c_proj)|mlp\.(?:c_fc|c_proj))"
    r"\.weight$"
)


def is_language_model(names: Iterable[str]) -> bool:
    """Whether these are all names of such a model."""
    return any(_MARKS.match(name) for name in names)


def stored_turned(names: Shapes) -> frozenset[str]:
    """Return the weights that the model stores as (in, out): those of GPT-2's `Conv1D`.

    StarCoder has the same names for linear layers; the fused projection is wider than it is long
    there.
    """
    fused = next((name for name in names if _FUSED.search(name)), None)
    if fused is None or len(names[fused]) != 2:
        return frozenset()
    out = names.get(fused.removesuffix("weight") + "bias", (3 * names[fused][0],))
    if names[fused] == (out[0], out[0]) or names[fused][1] != out[0]:
        return frozenset()
    return frozenset(name for name in names if _CONV1D.search(name) and len(names[name]) == 2)
