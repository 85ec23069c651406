"""The layers of a block in the order in which their model has them."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Words of names in the order in which a model has them, where that is not the order of the alphabet.
# Words that never stand side by side are beside each other here without meaning.
_WORDS = (
    *("time_embed", "label_emb", "input_blocks"),
    *("norm", "in_layers", "emb_layers", "out_layers", "skip_connection"),
    *("proj_in", "attn1", "ff", "attn2", "transformer_blocks", "proj_out"),
    *("img_mod", "img_attn", "img_mlp", "txt_mod", "txt_attn", "txt_mlp"),
    *("self_attn", "cross_attn", "ffn", "attn", "attention", "feed_forward"),
    *("qkv", "proj", "out", "linear1", "linear2", "modulation", "adaLN_modulation"),
    *("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out", "to_add_out"),
    *("q", "k", "v", "o", "k_img", "v_img", "w1", "w2", "w3"),
)
_RANKS = {word: at for at, word in enumerate(_WORDS)}
_LONGEST_FIRST = "|".join(sorted(map(re.escape, _WORDS), key=len, reverse=True))
_PART = re.compile(rf"(?<![^_])(?:({_LONGEST_FIRST})|(\d+)|([^_]+))(?![^_])")


def ordered(flats: Iterable[str]) -> list[str]:
    """Return flattened names (`flat`) of one block's layers as their model has them."""
    return sorted(flats, key=_place)


def _place(name: str) -> list[tuple[int, int, str]]:
    found: list[tuple[int, int, str]] = []
    for match in _PART.finditer(name):
        word, number, other = match.groups()
        if number:
            found.append((0, int(number), ""))
        else:
            found.append((2, _RANKS[word], "") if word else (1, 0, other))
    return found
