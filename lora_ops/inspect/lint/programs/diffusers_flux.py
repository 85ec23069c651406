"""diffusers' loaders for Flux.1, Chroma and Flux.2."""

from __future__ import annotations

from dataclasses import replace

from .diffusers_common import (
    AB,
    DORA,
    FLAT,
    FLAT_CLIP,
    LOKR,
    LOKR_OWN,
    NATIVE,
    OLD,
    TRANSFORMER,
    UP,
    converting,
    own,
)
from .program import CLIP, CLIP_FLAT, Blocks, Route, Scheme

# Modules that a conversion drops in silence: it renames them and never looks at them again.
_FLUX_OUTSIDE = r"(guidance_in|img_in|txt_in|time_in|vector_in|final_layer)[._]"
_FLUX_KOHYA = Route(
    schemes=(
        *(replace(one, only=r"(double|single)_blocks[._].+") for one in (FLAT, NATIVE)),
        *FLAT_CLIP,
        Scheme("text_encoders.clip_l.transformer.", "any", only=CLIP),
    ),
    pairs=UP,
    ignores=DORA,
    strict="all",
    when=r"\.lora_down\.weight$",
    drops=rf"^lora_te[23]_|^text_encoders\.t5xxl\.|\.diff_b$|norm.*\.diff$|text_projection|position_embedding|^(lora_unet_|diffusion_model\.){_FLUX_OUTSIDE}",
)
# OneTrainer's names; of a block only the projections of its attention are read.
_FLUX_ONETRAINER = replace(
    _FLUX_KOHYA,
    schemes=(
        Scheme(
            "lora_transformer_",
            "foreign",
            flat=True,
            only=r"(single_)?transformer_blocks_\d+_attn_.+|(?!(single_)?transformer_blocks_).+",
            but="distilled_guidance_layer",
        ),
        Scheme("lora_te1_", "any", only=CLIP_FLAT),
    ),
    alpha="needed",
    when=r"^lora_transformer_.*(lora_down|lora_up|alpha)",
    drops="",
)
_FLUX_OWN = replace(own("transformer."), needs_lora=False, configured=True)
_FLUX_PEFT = replace(
    converting(
        "base_model",
        Scheme(
            "base_model.model.",
            "native",
            only=r"(double|single)_blocks\..+|final_layer\.linear",
        ),
    ),
    blocks=(
        Blocks(
            "base_model.model.double_blocks.{}.",
            tuple(
                f"{stream}_{layer}"
                for stream in ("img", "txt")
                for layer in ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")
            ),
            19,
        ),
        Blocks("base_model.model.single_blocks.{}.", ("modulation.lin", "linear1", "linear2"), 38),
        Blocks("base_model.model.final_layer.", ("linear",), 1),
    ),
)
_FLUX_XLABS = replace(
    converting(
        "",
        Scheme(
            "diffusion_model.",
            "any",
            only=r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)|single_blocks\.\d+\.(linear1_qkv|linear2)",
        ),
        pairs=UP,
    ),
    spelling="XLabs",
)
FLUX = (
    _FLUX_XLABS,
    replace(
        _FLUX_OWN,
        pairs=(*UP, *AB),
        alpha="ignored",
        when=r"^transformer\..*\.lora_down\.weight$",
        configured=False,
    ),
    _FLUX_ONETRAINER,
    _FLUX_KOHYA,
    _FLUX_PEFT,
    replace(_FLUX_OWN, common_alpha="$^", float_alphas=True),
)
_FLUX2_PREFIXES = ("diffusion_model.", "base_model.model.")
_FLUX2_BLOCKS = tuple(
    Scheme(prefix, "foreign", only=r"(single_)?transformer_blocks\..+")
    for prefix in _FLUX2_PREFIXES
)
_FLUX2_DOTTED = (
    # Keys with diffusers' names of blocks are not converted, and may have any suffix.
    converting(
        r"^(diffusion_model|base_model\.model)\.(single_)?transformer_blocks\..*\.lora\.",
        *_FLUX2_BLOCKS,
        pairs=OLD,
    ),
    converting(
        r"^(diffusion_model|base_model\.model)\.",
        *(Scheme(prefix, "native") for prefix in _FLUX2_PREFIXES),
        *_FLUX2_BLOCKS,
    ),
)
_FLUX2_LOKR = (
    replace(
        LOKR,
        schemes=(
            Scheme(
                "lycoris_",
                "foreign",
                flat=True,
                only=r"(single_)?transformer_blocks_\d+_(attn|ff|ff_context)_.+",
            ),
        ),
        besides="^lycoris_",
    ),
    # Fused projections stay fused: diffusers fuses the model's own to load them.
    replace(
        LOKR,
        schemes=tuple(Scheme(prefix, "native") for prefix in _FLUX2_PREFIXES),
        besides=r"^(diffusion_model|base_model\.model)\.",
    ),
    replace(LOKR_OWN, besides=r"^transformer\."),
    replace(LOKR, schemes=(Scheme("", "foreign"),), strict="keys"),
)
_FLUX2_LEFT = r"modulation|^guidance_in"
FLUX2 = (
    replace(
        converting(r"\.lora_down\.weight$", replace(FLAT, but=_FLUX2_LEFT), pairs=UP),
        alpha="read",
        strict="",
    ),
    *_FLUX2_LOKR,
    *_FLUX2_DOTTED,
    TRANSFORMER,
)
