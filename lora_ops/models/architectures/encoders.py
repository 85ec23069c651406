"""Text encoders: which one it is, and OpenCLIP's names turned into those of CLIP in ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]
Rename = Callable[[str], str]

TE = "text_encoders."

CLIP_BY_WIDTH = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
# By size of vocabulary and width; any other T5 is taken for t5xxl.
T5_BY_SHAPE = {(256384, 4096): "umt5xxl", (32128, 2048): "pile_t5xl", (32128, 768): "t5base"}

#: What people call them: by ComfyUI's name of an encoder, and by llama.cpp's of a language model.
TITLES = {
    "clip_l": "CLIP-L",
    "clip_g": "CLIP-G",
    "clip_h": "CLIP-H",
    "t5xxl": "T5-XXL",
    "umt5xxl": "UMT5-XXL",
    "pile_t5xl": "Pile-T5-XL",
    "t5base": "T5-Base",
}
LANGUAGE_TITLES = {
    "llama": "Llama",
    "qwen2vl": "Qwen2-VL",
    "qwen3": "Qwen3",
    "qwen3vl": "Qwen3-VL",
}

OPENCLIP_MARK = "transformer.resblocks."
CLIP_MARKS = ("text_model.", "encoder.layers.0.self_attn.", "embeddings.token_embedding.")
T5_MARK = "encoder.block.0."
LLM_MARKS = ("model.layers.0.", "model.language_model.", "layers.0.self_attn.", "language_model.")

_OPENCLIP = tuple(
    (re.compile(pattern), to)
    for pattern, to in (
        (r"^positional_embedding$", "embeddings.position_embedding.weight"),
        (r"^token_embedding\.", "embeddings.token_embedding."),
        (r"^ln_final\.", "final_layer_norm."),
        (r"^transformer\.resblocks\.(\d+)\.ln_(\d)\.", r"encoder.layers.\1.layer_norm\2."),
        (r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"encoder.layers.\1.mlp.fc1."),
        (r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"encoder.layers.\1.mlp.fc2."),
        (r"^transformer\.resblocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    )
)


def is_text_encoder(names: Shapes) -> bool:
    """Whether these names, without any prefix, are a text encoder's."""
    marks = (OPENCLIP_MARK, *CLIP_MARKS, T5_MARK, *LLM_MARKS)
    return any(name.startswith(marks) for name in names) or "shared.weight" in names


def encoder_title(names: Iterable[str], told: str | None = None) -> str | None:
    """What people call the one text encoder that has all of these names.

    Args:
        names: Canonical ones.
        told: What a GGUF file says its model is.

    Returns:
        None where they are of several, of something else, or of a language model that is not told.
    """
    roots = {".".join(name.split(".")[:2]) for name in names}
    if roots == {f"{TE}transformer"}:
        return LANGUAGE_TITLES.get(told or "")
    return TITLES.get(min(roots).removeprefix(TE)) if len(roots) == 1 else None


def text_encoder(names: Shapes, clip: str = "clip_l") -> Rename:
    """Return the renaming of a text encoder's parameters to canonical names.

    Args:
        names: Its parameters without prefix, with their shapes.
        clip: Which CLIP it is if its width is none of the known ones.
    """
    if any(name.startswith(OPENCLIP_MARK) for name in names):
        return openclip(names, clip)
    if any(name.startswith(CLIP_MARKS) for name in names):
        return clip_text(names, clip)
    if any(name.startswith(T5_MARK) for name in names) or "shared.weight" in names:
        embedding = names.get("shared.weight", ())
        known = (name for shape, name in T5_BY_SHAPE.items() if shape == embedding)
        root = f"{TE}{next(known, 't5xxl')}.transformer."
    else:
        # ComfyUI takes any other encoder's layers without its name.
        root = TE + "transformer."
    return lambda name: root + name


def clip_text(names: Shapes, clip: str) -> Rename:
    """Return the renaming of a CLIP with Hugging Face's names, with or without ``text_model.``."""
    embedding = (
        "text_model.embeddings.token_embedding.weight",
        "embeddings.token_embedding.weight",
    )
    root = TE + _clip(names, embedding, clip) + "."

    def rename(name: str) -> str:
        if name.startswith("logit_scale"):
            return root + name
        if name.startswith(("text_model.", "text_projection")):
            return f"{root}transformer.{name}"
        return f"{root}transformer.text_model.{name}"

    return rename


def openclip(names: Shapes, clip: str) -> Rename:
    """Return the renaming of a CLIP with OpenCLIP's names; fused projections keep theirs."""
    root = TE + _clip(names, ("token_embedding.weight", "ln_final.weight"), clip) + "."

    def rename(name: str) -> str:
        for pattern, to in _OPENCLIP:
            renamed, found = pattern.subn(to, name)
            if found:
                return f"{root}transformer.text_model.{renamed}"
        return root + name

    return rename


def _clip(names: Shapes, embedding: tuple[str, ...], default: str) -> str:
    widths = [names[name][-1] for name in embedding if names.get(name)]
    return CLIP_BY_WIDTH.get(widths[0], default) if widths else default
