"""diffusers 0.42: `loaders/lora_pipeline.py` and `loaders/lora_conversion_utils.py`.

diffusers chooses the first conversion that a file's keys ask for; a file with a key that this
conversion does not know is refused as a whole.
"""

from __future__ import annotations

from dataclasses import replace

from .diffusers_common import (
    AB,
    CONVERTED,
    DORA,
    DOTS,
    DOTTED,
    FLAT,
    FLAT_CLIP,
    LOKR,
    LOKR_OWN,
    NATIVE,
    RENAMED,
    SAME,
    TRANSFORMER,
    UP,
    converting,
    own,
)
from .diffusers_flux import FLUX, FLUX2
from .program import CLIP_FLAT, CONTROL_PAIRS, Blocks, Program, Route, Scheme

_SD_KOHYA = Route(
    schemes=(
        # diffusers renames blocks from the model's own names for SDXL alone.
        Scheme("lora_unet_", "foreign", flat=True, but="^add_embedding"),
        replace(FLAT, only="time_embed_[02]"),
        *FLAT_CLIP,
        Scheme("lora_te2_", "any", only=CLIP_FLAT),
    ),
    pairs=UP,
    ignores=DORA,
    strict="keys",
    every=r"^lora_(unet|te1?|te2)_",
    common_alpha=r"_attn[12]_to_(q|k|v|out_0)$",  # their alphas get a name that no layer has
)
_SD = (_SD_KOHYA, own("unet.", Scheme("unet.", "processor")))
_QWEN = replace(
    converting(
        CONVERTED,
        NATIVE,
        FLAT,
        Scheme("", "foreign"),
        pairs=(*AB, *UP, ".lora_B.default.weight"),
    ),
    alpha="read",
    strict="keys",
)
# Fused projections are split where the ending has dots, and kohya's names get such endings.
_Z_ENDS = r"^(final_layer|x_embedder)"
_Z_OUT = r".+\.attention\.out"
_BARE = Scheme("", "native")
_Z_FOREIGN = (SAME, Scheme("", "foreign"))
_Z_IMAGE = replace(_QWEN, schemes=_Z_FOREIGN, refuses=r"attention\.out\.alpha$")
_Z_UP = replace(
    _QWEN,
    schemes=(*_Z_FOREIGN, *(replace(one, only=_Z_OUT) for one in (NATIVE, _BARE))),
    pairs=UP,
    besides=r"\.lora_(up|down)\.weight$",
)
_Z_DOTTED = replace(
    _QWEN,
    schemes=(*_Z_FOREIGN, *(replace(one, but=_Z_ENDS) for one in (NATIVE, _BARE))),
    pairs=DOTS,
    besides=r"\.lora\.down\.weight$",
)
_Z_KOHYA = replace(
    _QWEN,
    schemes=(Scheme("lora_unet_", "foreign", flat=True), replace(FLAT, but=_Z_ENDS)),
    pairs=(*UP, *DOTS),
    when=r"^lora_unet_",
)
_Z_LOKR = (
    replace(LOKR, schemes=_Z_FOREIGN, besides=r"\.alpha$|^diffusion_model\.", strict="keys"),
    LOKR_OWN,
)
# The gate of HiDream's experts is no linear layer in diffusers: no adapter can be on it.
_GATES = r"\.ff_i\.gate\."
# Differences of biases are read as biases of up, a whole one of the head as a pair of its rank.
_WAN_BIASES = (
    r"^diffusion_model\.(blocks\.\d+\.((self|cross)_attn\.([qkvo]|[kv]_img)|ffn\.[02])|head\.head"
    r"|(text|time)_embedding\.[02]|img_emb\.proj\.[13])\.diff_b$|\.head\.head\.diff$"
)
_WAN_TIME = r"^diffusion_model\.time_projection"
_WAN_DOTTED = replace(
    converting(DOTTED, NATIVE, pairs=(*AB, *UP)),
    alpha="read",
    ignores=(),
    drops=r"\.diff",  # the conversion leaves these keys over, and the loader ignores them
    refuses=r"^diffusion_model\.(?!blocks\.).*\.alpha$",
    asks={"layer of a block": r"^diffusion_model\.blocks\.\d", "pair": r"\.lora_(A|B|up|down)\."},
    blocks=(
        Blocks("diffusion_model.head.head.bias", ("",), 1, (r"head\.head\.diff$",)),
        *(
            Blocks(f"diffusion_model.{name}.{n}", ("",), 1, (rf"{name}\.{n}\.diff_b$",))
            for name in ("text_embedding", "time_embedding")
            for n in (0, 2)
        ),
    ),
    biases=_WAN_BIASES,
)
_WAN_BLOCKS = (
    Blocks(
        "lora_unet_blocks_{}_",
        (
            *(f"{part}_attn_{layer}" for part in ("self", "cross") for layer in "qkvo"),
            *("ffn_0", "ffn_2"),
        ),
    ),
    Blocks(
        "lora_unet_blocks_{}_", ("cross_attn_k_img", "cross_attn_v_img"), where=("k_img", "v_img")
    ),
)
_NEXT_DIT = ("attention.qkv", "attention.out", *(f"feed_forward.w{n}" for n in "123"))
_LUMINA_BLOCKS = (
    Blocks("diffusion_model.context_refiner.{}.", _NEXT_DIT),
    *(
        Blocks(f"diffusion_model.{part}.{{}}.", (*_NEXT_DIT, "adaLN_modulation.1"))
        for part in ("noise_refiner", "layers")
    ),
)

# `ControlNetModel.load_lora_adapter`.
_CONTROL = Route(
    schemes=(Scheme("", "native", of=("sd1", "sd2", "sdxl")),),
    pairs=tuple(CONTROL_PAIRS),
    ends_beside=(".bias",),
)

DIFFUSERS = Program(
    name="diffusers",
    title="diffusers 0.42",
    format="diffusers",
    control=_CONTROL,
    routes={
        "sd1": _SD,
        "sd2": _SD,
        "sdxl": (replace(_SD_KOHYA, schemes=(*_SD_KOHYA.schemes, FLAT)), _SD[1]),
        **dict.fromkeys(("flux", "flux_schnell", "chroma"), FLUX),
        **dict.fromkeys(("sd3", "auraflow", "kandinsky5", "cosmos"), (TRANSFORMER,)),
        "ltxv": (RENAMED, TRANSFORMER),
        "hidream": tuple(replace(one, refuses=_GATES) for one in (RENAMED, TRANSFORMER)),
        "hunyuan_video": (
            converting("img_attn_qkv", Scheme("", "foreign", only=r"(double|single)_blocks\..+")),
            TRANSFORMER,
        ),
        "lumina2": (
            replace(
                converting(DOTTED, replace(NATIVE, only=r"((noise|context)_refiner|layers)\..+")),
                blocks=_LUMINA_BLOCKS,
            ),
            TRANSFORMER,
        ),
        # Blocks are renamed by parts of their names, which spoils diffusers' own.
        "anima": (
            replace(
                TRANSFORMER,
                schemes=(
                    NATIVE,
                    replace(SAME, but=r"blocks\."),
                    Scheme("transformer.", "foreign"),
                ),
                drops="",
            ),
        ),
        "wan": (
            replace(
                _WAN_DOTTED,
                besides=_WAN_TIME + r".*\.weight$",
                biases=rf"{_WAN_BIASES}|{_WAN_TIME}\.1\.diff_b$",
            ),
            _WAN_DOTTED,
            replace(
                converting("^lora_unet_", replace(FLAT, only=r"blocks_.+"), pairs=UP),
                alpha="needed",
                ignores=(),
                blocks=_WAN_BLOCKS,
            ),
            TRANSFORMER,
        ),
        "qwen_image": (_QWEN, TRANSFORMER),
        "z_image": (*_Z_LOKR, _Z_KOHYA, _Z_DOTTED, _Z_UP, _Z_IMAGE, TRANSFORMER),
        "krea2": (
            converting(
                r"^(diffusion_model|base_model\.model)\.",
                NATIVE,
                Scheme("base_model.model.", "native"),
            ),
            TRANSFORMER,
        ),
        "flux2": FLUX2,
    },
    stops=True,
    legacy=("XLabs", "Black Forest Labs' control LoRAs"),
)
